"""The checks of an audit, on a sample of images: units, constant bands, nodata, band order, range."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import numpy as np

from embedcache.audit.record import Check, Finding
from embedcache.audit.sample import ImageSample
from embedcache.audit.spectra import suspicions
from embedcache.preprocessing import Preprocessing

_PICTURES: Final = {"uint8": 255.0, "unit": 1.0}
_DN: Final = {"dn": 1.0, "reflectance": 1e4}


def findings(
    sample: ImageSample, units: str, preprocessing: Preprocessing, absent: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Return everything that is not as it should be, errors first.

    Parameters
    ----------
    sample
        The images.
    units
        What their values are said to be.
    preprocessing
        How the backbone's inputs are made of them.
    absent
        Bands that the backbone knows and the data lack.
    """
    found = [*_constant(sample), *_nodata(sample)]
    scale = list(_scale(sample, units))
    found += scale
    if not scale:  # what follows means nothing on a wrong scale
        found += _eight_bits(sample, units)
        found += _order(sample, units)
        found += _range(sample, preprocessing)
    if absent:
        says = f"the data lack {', '.join(absent)}, which the backbone was trained on; it runs without"
        found.append(_warning("missing", absent, says))
    if sample.unreadable:
        first, n = sample.unreadable[0], len(sample.unreadable)
        says = f"{n} of {n + sample.images} images cannot be used, the first is {first.sample_id!r}: {first.reason}"
        found.append(_warning("unreadable", (), says))
    return tuple(sorted(found, key=lambda f: f.severity))


def _error(check: Check, bands: Collection[str], message: str) -> Finding:
    return Finding(severity="error", check=check, bands=tuple(bands), message=message)


def _warning(check: Check, bands: Collection[str], message: str) -> Finding:
    return Finding(severity="warning", check=check, bands=tuple(bands), message=message)


def _of_used(sample: ImageSample) -> list[str]:
    return [b for b in sample.bands if b in sample.used]


def _constant(sample: ImageSample) -> Iterator[Finding]:
    """Bands without content: one value everywhere, one value in many images, or another band's copy."""
    n = sample.images
    dead = []
    for band in _of_used(sample):
        flat = int(sample.constant[sample.bands.index(band)].sum())
        values = sample[band]
        if flat == n and values.size and values.min() == values.max():
            dead.append(band)
            says = f"band {band} is {values[0]:g} everywhere in {n} images: it is missing, or was never filled"
            yield _error("constant", (band,), says)
        elif flat == n and not values.size:
            dead.append(band)
            yield _error("constant", (band,), f"band {band} holds nothing but fill values in {n} images")
        elif flat > 0.2 * n:
            yield _warning("constant", (band,), f"band {band} has one single value in {flat} of {n} images")
    used = [b for b in _of_used(sample) if b not in dead]
    copies = [b for b in used[1:] if np.array_equal(sample[used[0]], sample[b])]
    if len(used) > 2 and len(copies) == len(used) - 1:
        yield _warning("constant", used, f"bands {', '.join(used)} are equal: the images are grey")
        return
    for i, one in enumerate(used):
        for other in used[i + 1 :]:
            if np.array_equal(sample[one], sample[other]):
                yield _error("constant", (one, other), f"band {other} is a copy of band {one}, value for value")


def _nodata(sample: ImageSample) -> Iterator[Finding]:
    for band in _of_used(sample):
        share = float(sample.filled[sample.bands.index(band)])
        if 0 < share < 1:
            says = (
                f"band {band} holds values that stand for no data (such as -9999 or 65535) in {_percent(share)} of "
                "its pixels; a backbone would take them for light: set them to 0"
            )
            yield (_error if share > 0.05 else _warning)("nodata", (band,), says)
    if 0.3 < sample.empty < 1:
        yield _warning("nodata", (), f"{_percent(sample.empty)} of the pixels are 0 in every band: nodata, or borders")


def _scale(sample: ImageSample, units: str) -> Iterator[Finding]:  # noqa: PLR0912 - one table of causes
    """Whether values have the magnitude of their units, judged by the brightest band."""
    p99 = {b: float(np.percentile(sample[b], 99)) for b in sample.bands if sample[b].size and np.any(sample[b])}
    if not p99:
        return
    band = max(p99, key=lambda b: p99[b])
    top, middle = p99[band], float(np.median(sample[band]))
    values = np.concatenate([sample[b] for b in p99])
    largest, whole = float(values.max()), bool(np.all(values == np.round(values)))
    seen = f"band {band}, the brightest, has a median of {middle:.4g} and 99 % of it is below {top:.4g}"
    if units == "dn":
        if largest <= 10 and top <= 2:
            cause = "values look 10000x too small for reflectance x 10 000: --units reflectance?"
        elif largest <= 255 and whole:
            cause = "no value is above 255, as in 8-bit pictures: --units uint8?"
        elif top < 100:
            cause = "values look 100x too small for reflectance x 10 000; is it a percentage?"
        elif min(float(np.percentile(sample[b], 1)) for b in p99) >= 7000:
            cause = (
                "no band is ever dark, as in Landsat Collection 2 Level 2, whose integers are not reflectance x 10 000 "
                "(reflectance = integer * 0.0000275 - 0.2): convert the images"
            )
        elif middle > 20000:
            cause = "values look too large for reflectance x 10 000; is it a 16-bit picture? Convert it to 8 bits"
        else:
            return
    elif units == "reflectance":
        if middle > 255 or (middle > 2.5 and not whole):
            cause = "values look 10000x too large for reflectance 0-1: --units dn?"
        elif middle > 2.5:
            cause = "values look like an 8-bit picture: --units uint8?"
        elif largest < 0.01:
            cause = "values look 100x too small for reflectance 0-1; was it divided twice?"
        else:
            return
    elif units == "uint8":
        if largest > 255:
            cause = f"values reach {largest:.4g}, above 255: --units dn (reflectance x 10 000)?"
        elif largest <= 1 and not whole:
            cause = "values look 255x too small for an 8-bit picture: --units unit (0-1)?"
        else:
            return
    elif middle > 1.5 or largest > 10:
        cause = f"values reach {largest:.4g}, above 1: --units {'uint8' if largest <= 255 else 'dn'}?"
    elif largest < 0.005:
        cause = "values look 255x too small for a picture of 0-1; was it divided twice?"
    else:
        return
    yield _error("units", (band,), f"{cause} ({seen}; units {units!r})")


def _eight_bits(sample: ImageSample, units: str) -> Iterator[Finding]:
    """Find an 8-bit layer among reflectances: true colour under another band's name."""
    if units != "dn":
        return
    middles = {b: float(np.median(sample[b])) for b in sample.bands if sample[b].size}
    brightest = max(middles, key=lambda b: middles[b])
    small = [b for b in _of_used(sample) if b in middles and sample[b].max() <= 255 and middles[b] >= 20]
    if small and middles[brightest] >= 1020:
        each = ", ".join(f"{b} (median {middles[b]:.0f})" for b in small)
        says = (
            f"no value of {each} is above 255, while {brightest} has a median of {middles[brightest]:.0f}: an 8-bit "
            "picture under the name of a band; check --bands"
        )
        yield _error("units", small, says)


def _order(sample: ImageSample, units: str) -> Iterator[Finding]:
    """Spectra that no surface has; an error only where the backbone reads one of the bands in question."""
    if units not in _DN:
        return
    known = ~np.isnan(sample.parts).any(axis=0) & (sample.parts != 0).any(axis=0)
    parts = sample.parts[:, known] * _DN[units]
    if not parts.size:
        return
    cells = dict(zip(sample.bands, parts, strict=True))
    for one in suspicions(cells, sample.images, sample.used):
        if sample.used.isdisjoint(one.bands):
            yield _warning("order", one.bands, f"{one.sentence} (this backbone reads neither); check --bands")
        else:
            says = f"{one.sentence}. Are bands named in the order of the files? Check --bands"
            yield (_error if one.error else _warning)("order", one.bands, says)


def _range(sample: ImageSample, preprocessing: Preprocessing) -> Iterator[Finding]:
    """Compare what the backbone is given with what it was trained on."""
    for i, (band, source) in enumerate(zip(preprocessing.bands, preprocessing.source_bands, strict=True)):
        values = sample[source] * preprocessing.gain[i]
        if not values.size or values.min() == values.max():
            continue
        ceiling = preprocessing.ceiling[i]
        if ceiling is not None and (over := float((values > ceiling).mean())) > 0.5:
            says = f"{_percent(over)} of {source} is brighter than what the backbone takes for white, and is cut to it"
            yield _warning("range", (source,), says)
        mean, std = model_statistics(sample, preprocessing, i)
        if abs(mean) > 4 or std < 0.01:
            says = (
                f"{source} reaches the backbone's {band} with a mean of {mean:.2g} and a standard deviation of "
                f"{std:.2g}; it was trained on 0 and 1"
            )
            yield _warning("range", (source,), says)


def model_statistics(sample: ImageSample, preprocessing: Preprocessing, channel: int) -> tuple[float, float]:
    """Mean and standard deviation of one of the backbone's inputs, before resizing."""
    values = sample[preprocessing.source_bands[channel]] * preprocessing.gain[channel]
    ceiling = preprocessing.ceiling[channel]
    if ceiling is not None:
        values = np.clip(values, 0.0, ceiling)
    values = (values - preprocessing.mean[channel]) / preprocessing.std[channel]
    return float(values.mean()), float(values.std())


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1 %"
