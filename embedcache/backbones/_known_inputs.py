"""Which bands a backbone of TerraTorch's registry takes, and how they are normalised: as is known, or as is said."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from embedcache.backbones._spec import TRUE_COLOUR_DN, BandInput
from embedcache.bands import canonical_band
from embedcache.errors import SettingError

_RGB = ("RED", "GREEN", "BLUE")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TERRAMIND = "untok_sen2l2a@224"
_EIGHT_BIT = ("satlas", "seco", "fmow")
"""Families of torchgeo weights that were trained on 8-bit pictures where their statistics reach no further than 255."""


@dataclass(frozen=True)
class KnownInput:
    """What a backbone takes, in its own order."""

    bands: tuple[BandInput, ...]
    source: str
    """Who says so, for people."""
    key: str | None = None
    """Where the input is a mapping: the images' key."""
    own_choice: bool = False
    """Whether the bands were asked for."""


def known_input(name: str, constructor: Any, config: Any) -> KnownInput | None:
    """Return what is known of a backbone's input, or None.

    Parameters
    ----------
    name
        In TerraTorch's registry, without the prefix of its source.
    constructor
        What builds it; None for timm's.
    config
        timm's pretrained configuration; None for others.
    """
    if constructor is None:
        return _timm(name, config)
    if name.startswith("prithvi"):
        from terratorch.models.backbones.prithvi_vit import prithvi_cfgs

        facts = prithvi_cfgs[name]
        names = [str(getattr(b, "value", b)) for b in facts["bands"]]
        return KnownInput(_plain(names, facts["mean"], facts["std"]), "TerraTorch's statistics of Prithvi")
    if name.startswith("terramind") and "tokenizer" not in name:
        return _terramind(name)
    if name.startswith("dofa"):
        from embedcache.backbones.dofa import SPECS

        return KnownInput(SPECS[0].bands, "embedcache's own DOFA, which is there as 'dofa_...'")
    if name.startswith("dinov3"):
        return KnownInput(_pictures(*_IMAGENET), "ImageNet's RGB statistics, as DINOv3's web weights take them")
    weights = inspect.signature(constructor).parameters.get("weights")
    return None if weights is None else _torchgeo(name, weights.default)


def chosen_input(name: str, known: KnownInput | None, asked: str) -> KnownInput:
    """Return the bands that were asked for, as ``RED,GREEN`` or, with statistics in DN, ``RED=1433/2178``.

    Raises
    ------
    SettingError
        If the request cannot be read, or it is not known how a band is normalised.
    """
    by_name = {b.name: b for b in known.bands} if known else {}
    if not asked:
        if known is None:
            raise SettingError(
                f"TerraTorch does not say which bands {name!r} takes, nor how they are normalised; say both in the "
                f"model's order, as reflectance x 10 000: terratorch:{name}:RED=MEAN/STD,GREEN=MEAN/STD,..."
            )
        return replace(known, bands=tuple(replace(b, required=True) for b in known.bands))
    bands, own = [], False
    for part in asked.split(","):
        label, _, numbers = part.partition("=")
        band = canonical_band(label)
        if numbers:
            own = True
            bands.append(BandInput(name=band, gain=1.0, required=True, **_statistics(part, numbers)))
        elif band in by_name:
            bands.append(replace(by_name[band], required=True))
        else:
            raise SettingError(
                f"it is not known how {name!r} takes band {band or part!r}; give its mean and standard deviation as "
                f"reflectance x 10 000: {band or 'RED'}=MEAN/STD."
                + (f" Known are {', '.join(by_name)}." if by_name else "")
            )
    if len({b.name for b in bands}) != len(bands):
        raise SettingError(f"bands {asked!r} of {name!r} name one twice.")
    source = known.source if known and any(b.name in by_name for b in bands) else ""
    source += f"{'; ' if source else ''}{'statistics' if own else 'bands'} as given"
    return KnownInput(tuple(bands), source, known.key if known else None, own_choice=True)


def _statistics(part: str, numbers: str) -> dict[str, float]:
    mean, _, std = numbers.partition("/")
    try:
        found = {"mean": float(mean), "std": float(std)}
    except ValueError:
        raise SettingError(f"band {part!r}: write it as NAME=MEAN/STD, as in RED=1433/2178.") from None
    if not found["std"] > 0:
        raise SettingError(f"band {part!r}: its standard deviation must be above 0.")
    return found


def _plain(names: Sequence[str], means: Sequence[float], stds: Sequence[float]) -> tuple[BandInput, ...]:
    return tuple(
        BandInput(name=n, gain=1.0, mean=float(m), std=float(s)) for n, m, s in zip(names, means, stds, strict=True)
    )


def _pictures(means: Sequence[float], stds: Sequence[float]) -> tuple[BandInput, ...]:
    return tuple(
        BandInput(name=n, gain=1 / TRUE_COLOUR_DN, ceiling=1.0, mean=float(m), std=float(s))
        for n, m, s in zip(_RGB, means, stds, strict=True)
    )


def _timm(name: str, config: Any) -> KnownInput | None:
    """RGB pictures, unless TerraTorch put a model of other data among timm's."""
    if name.startswith(("clay", "prithvi")) or (config is not None and config.input_size[0] != 3):
        return None
    if config is None or len(config.mean) != 3:
        return KnownInput(_pictures(*_IMAGENET), "ImageNet's RGB statistics, by default")
    return KnownInput(_pictures(config.mean, config.std), "timm's statistics of RGB pictures, as its weights take them")


def _terramind(name: str) -> KnownInput:
    from terratorch.models.backbones.terramind.model import terramind_register as terramind

    first = name.startswith("terramind_v01")
    mean = terramind.v01_pretraining_mean if first else terramind.v1_pretraining_mean
    std = terramind.v01_pretraining_std if first else terramind.v1_pretraining_std
    bands = _plain(terramind.PRETRAINED_BANDS[_TERRAMIND], mean[_TERRAMIND], std[_TERRAMIND])
    return KnownInput(bands, "TerraMind's pretraining statistics of Sentinel-2 L2A", key="S2L2A")


def _torchgeo(name: str, weights: Any) -> KnownInput | None:
    """Read bands and normalisation from torchgeo's description of the weights; Sentinel-2 and RGB only."""
    meta: Mapping[str, Any] = getattr(weights, "meta", {})
    names = [canonical_band(b) for b in meta.get("bands") or (_RGB if meta.get("in_chans") == 3 else ())]
    if not names or ("sentinel2" not in name and tuple(names) != _RGB):
        return None  # Landsat's B1 is another band than Sentinel-2's, radar is not reflectance
    mean, std = [0.0] * len(names), [1.0] * len(names)
    for step in weights.transforms:
        kind = type(step).__name__
        if kind == "Normalize":
            for i in range(len(names)):
                m, s = (float(v[i if len(v) > 1 else 0]) for v in (step.mean, step.std))
                mean[i], std[i] = mean[i] + std[i] * m, std[i] * s
        elif kind not in {"Resize", "CenterCrop"}:
            return None
    eight_bit = name.startswith(_EIGHT_BIT)
    bands = []
    for band, m, s in zip(names, mean, std, strict=True):
        picture = eight_bit and s <= 255
        top = 255.0 if picture else 8160.0 if eight_bit else None
        gain = 255.0 / TRUE_COLOUR_DN if picture else 1.0
        bands.append(BandInput(name=band, gain=gain, mean=m, std=s, ceiling=top))
    return KnownInput(tuple(bands), "torchgeo's description of its weights")
