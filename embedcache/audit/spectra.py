"""Whether reflectances can belong to the bands that they are named after: spectra that no surface on Earth has.

Each rule is one-sided and wide. On genuine Sentinel-2 and Landsat images (top of atmosphere and surface reflectance;
fields, forests, towns, lakes and floods) one part of an image in a thousand breaks one of the first rules, one in fifty
the last; with bands exchanged, a tenth to nine tenths do. Physics: leaves absorb visible light and reflect near
infrared; water in leaves, soil, snow and clouds absorbs more at 2.2 than at 1.6 um; dry ground brightens from blue to
red and on to 1.6 um; cirrus is dark because the water vapour below absorbs at 1.38 um.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

Cells = Mapping[str, npt.NDArray[np.float64]]
"""Mean reflectance x 10 000 of small parts of images by band, all of one length."""

NEAR_INFRARED: Final = ("NIR_NARROW", "NIR", "NIR_BROAD")
_ORDERED: Final = ("BLUE", "GREEN", "RED", "NIR", "SWIR_1", "SWIR_2")
_ENOUGH_CELLS = 20
_ENOUGH_IMAGES = 16
"""For correlations, which depend on the mix of surfaces: fewer images may all show the same one."""


@dataclass(frozen=True)
class Suspicion:
    """Something that speaks against the names of bands."""

    error: bool
    """Whether the evidence is strong enough to stop."""
    bands: tuple[str, ...]
    sentence: str


@dataclass(frozen=True)
class _Rule:
    needs: tuple[str, ...]
    broken: Callable[[Cells], npt.NDArray[np.bool_]]
    among: Callable[[Cells], npt.NDArray[np.bool_]] | None
    """The cells that count; None: all."""
    warn: float
    """Share of them that may break the rule in silence."""
    error: float
    bands: tuple[str, ...]
    says: str


def _peak(one: str, *others: str) -> Callable[[Cells], npt.NDArray[np.bool_]]:
    def broken(c: Cells) -> npt.NDArray[np.bool_]:
        rest = np.maximum(c[others[0]], c[others[1]])
        return (c[one] > 1500) & (c[one] > 1.7 * rest) & (c[one] > 1.5 * c["NIR"])

    return broken


_VISIBLE = ("BLUE", "GREEN", "RED")
_RULES: Final = (
    *(
        _Rule(
            (*_VISIBLE, "NIR"),
            _peak(one, *(b for b in _VISIBLE if b != one)),
            None,
            0.01,
            0.04,
            (one, "NIR"),
            f"{one} is far brighter than the other visible bands and than NIR, as only near infrared is, over plants",
        )
        for one in _VISIBLE
    ),
    _Rule(
        ("SWIR_1", "SWIR_2"),
        lambda c: (c["SWIR_2"] > 1.25 * c["SWIR_1"]) & (c["SWIR_2"] > 1000),
        None,
        0.03,
        0.10,
        ("SWIR_1", "SWIR_2"),
        "SWIR_2 is far brighter than SWIR_1, which no plant, soil or water is",
    ),
    _Rule(
        ("NIR", "SWIR_1"),
        lambda c: (c["SWIR_1"] > 1.8 * c["NIR"]) & (c["SWIR_1"] > 1500),
        None,
        0.05,
        0.15,
        ("NIR", "SWIR_1"),
        "SWIR_1 is nearly twice as bright as NIR, as only freshly burnt ground is",
    ),
    _Rule(
        ("BLUE", "RED", "NIR", "SWIR_1"),
        lambda c: c["BLUE"] > 1.15 * c["RED"],
        lambda c: (c["SWIR_1"] > 2000) & (c["SWIR_1"] > 1.2 * c["NIR"]),
        0.15,
        0.30,
        ("BLUE", "RED"),
        "BLUE is brighter than RED on dry ground, where it should be darker",
    ),
)


def suspicions(cells: Cells, images: int, used: Collection[str] = ()) -> list[Suspicion]:
    """Look for evidence that bands are not what they are called.

    Parameters
    ----------
    cells
        By band name; bands that no rule knows are ignored.
    images
        How many the cells come from.
    used
        Bands of interest: where there are several near infrareds, one of these is judged.
    """
    there = sorted((b for b in NEAR_INFRARED if b in cells), key=lambda b: b not in used)
    nir = there[0] if there else "NIR"
    known = {b: cells[name] for b in _ORDERED if (name := nir if b == "NIR" else b) in cells}
    return _broken(known, images, nir) + _cirrus(cells) + _two_infrareds(cells)


def _broken(known: Cells, images: int, nir: str) -> list[Suspicion]:
    found = []
    for rule in _RULES:
        share = _share(rule, known)
        if share > rule.warn:
            bands = tuple(nir if b == "NIR" else b for b in rule.bands)
            where = "the parts that images were cut into" if rule.among is None else "them"
            says = re.sub(r"\bNIR\b", nir, rule.says)
            found.append(Suspicion(share > rule.error, bands, f"{says} (in {share:.0%} of {where})"))
    if not found and images >= _ENOUGH_IMAGES and _kinship(known) < -0.15:
        says = "GREEN resembles the short-wave infrared more closely than its neighbours BLUE and RED"
        found.append(Suspicion(False, ("BLUE", "GREEN", "RED"), says))
    if not found or not (fix := _exchange(known)):
        return found
    names = [nir if b == "NIR" else b for b in fix]
    how = f"with {names[0]} and {names[1]} exchanged" if len(fix) == 2 else "with all bands in the opposite order"
    return [replace(s, sentence=f"{s.sentence}; {how}, nothing would be amiss") for s in found]


def _share(rule: _Rule, c: Cells) -> float:
    if not all(b in c for b in rule.needs):
        return 0.0
    broken = rule.broken(c)
    if rule.among is not None:
        broken = broken[rule.among(c)]
    return float(broken.mean()) if broken.size >= (_ENOUGH_CELLS if rule.among else 1) else 0.0


def _kinship(c: Cells) -> float:
    """How much closer GREEN is to the farther of its neighbours than to the closer short-wave infrared, as correlation.

    Bands that lie close together look alike; at least 0 for 32 genuine images of mixed land.
    """
    far = [b for b in ("SWIR_1", "SWIR_2") if b in c]
    if not far or not all(b in c for b in _VISIBLE):
        return 0.0
    together = {b: _correlation(c["GREEN"], c[b]) for b in ("BLUE", "RED", *far)}
    return min(together["BLUE"], together["RED"]) - max(together[b] for b in far)


def _correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0


def _exchange(c: Cells) -> tuple[str, ...]:
    """Return two bands which, exchanged, break no rule; all bands if the opposite order does; or none."""
    names = [b for b in _ORDERED if b in c]
    now = _total(c)
    tried: dict[tuple[str, ...], float] = {
        pair: _total(_swapped(c, pair, pair[::-1])) for pair in itertools.combinations(names, 2)
    }
    best = min(tried, key=lambda pair: tried[pair], default=())
    if best and tried[best] < 0.2 * now:
        return best
    return tuple(names) if _total(_swapped(c, names, names[::-1])) < 0.2 * now else ()


def _swapped(c: Cells, to: tuple[str, ...] | list[str], of: tuple[str, ...] | list[str]) -> Cells:
    return {**c, **{a: c[b] for a, b in zip(to, of, strict=True)}}


def _total(c: Cells) -> float:
    return sum(_share(rule, c) for rule in _RULES) + max(0.0, -_kinship(c))


def _cirrus(cells: Cells) -> list[Suspicion]:
    if "CIRRUS" not in cells or (middle := float(np.median(cells["CIRRUS"]))) <= 500:
        return []
    sentence = f"CIRRUS has a median of {middle:.0f} (x 10 000), and is nearly black wherever no high cloud is"
    return [Suspicion(True, ("CIRRUS",), sentence)]


def _two_infrareds(cells: Cells) -> list[Suspicion]:
    if not {"NIR_NARROW", "NIR_BROAD"} <= cells.keys():
        return []
    narrow, broad = (float(np.median(cells[b])) for b in ("NIR_NARROW", "NIR_BROAD"))
    if max(narrow, broad) < 800 or max(narrow, broad) <= 2 * min(narrow, broad):
        return []
    sentence = f"NIR_NARROW and NIR_BROAD see nearly the same light, and have medians of {narrow:.0f} and {broad:.0f}"
    return [Suspicion(True, ("NIR_NARROW", "NIR_BROAD"), sentence)]
