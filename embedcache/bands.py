"""The names of spectral bands, and which band may stand in for which.

Names are TerraTorch's (``HLSBands``); wavelengths are DOFA's (``waves_list`` in TerraTorch's ``dofa_vit.py``), in
micrometres.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from embedcache.errors import BandError

WAVELENGTHS_UM: Final = {
    "COASTAL_AEROSOL": 0.44,
    "BLUE": 0.49,
    "GREEN": 0.56,
    "RED": 0.665,
    "RED_EDGE_1": 0.705,
    "RED_EDGE_2": 0.74,
    "RED_EDGE_3": 0.783,
    "NIR_BROAD": 0.832,
    "NIR": 0.832,
    "NIR_NARROW": 0.864,
    "WATER_VAPOR": 0.945,
    "CIRRUS": 1.373,
    "SWIR_1": 1.61,
    "SWIR_2": 2.20,
}

SENTINEL2: Final = {
    "B01": "COASTAL_AEROSOL",
    "B02": "BLUE",
    "B03": "GREEN",
    "B04": "RED",
    "B05": "RED_EDGE_1",
    "B06": "RED_EDGE_2",
    "B07": "RED_EDGE_3",
    "B08": "NIR_BROAD",
    "B8A": "NIR_NARROW",
    "B09": "WATER_VAPOR",
    "B10": "CIRRUS",
    "B11": "SWIR_1",
    "B12": "SWIR_2",
}

STAND_INS: Final = {
    "NIR_NARROW": ("NIR_NARROW", "NIR", "NIR_BROAD"),
    "NIR_BROAD": ("NIR_BROAD", "NIR", "NIR_NARROW"),
}
"""Bands that may be used for another, best first: one near infrared for another. Recorded in the store's provenance."""

_ALIASES: Final = {"R": "RED", "G": "GREEN", "B": "BLUE", "N": "NIR", "S1": "SWIR_1", "S2": "SWIR_2"}


def canonical_band(name: str) -> str:
    """Return the standard name of a band given by standard name, Sentinel-2 id (``B8A``, ``b2``) or letter (``R``).

    Unknown names are kept, in capitals: a dataset may hold bands that no backbone asks for.
    """
    key = re.sub(r"[\s\-]+", "_", name.strip().upper())
    if match := re.fullmatch(r"B0?(\d{1,2})(A?)", key):
        key = f"B{int(match[1]):02d}" if not match[2] else f"B{int(match[1])}A"
    return SENTINEL2.get(key, _ALIASES.get(key, key))


def parse_bands(text: str) -> tuple[str, ...]:
    """Read a comma-separated list of band names in file order.

    Raises
    ------
    BandError
        If a name is empty or given twice.
    """
    names = tuple(canonical_band(part) for part in text.split(","))
    if "" in names:
        raise BandError(f"band list {text!r} holds an empty name; write it as RED,GREEN,BLUE.")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise BandError(
            f"band list {text!r} names {', '.join(twice)} twice; each band of the files needs its own name."
        )
    return names


def match_bands(
    wanted: Sequence[str], required: Iterable[str], available: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Pair the bands a backbone wants with the bands a dataset has.

    Parameters
    ----------
    wanted
        Bands in the backbone's own order.
    required
        Those of them that it cannot do without.
    available
        Bands of the dataset.

    Returns
    -------
    pairs, absent
        (wanted, available) pairs in the backbone's order, and wanted bands that the dataset does not have.

    Raises
    ------
    BandError
        If a required band is not there.
    """
    pairs: list[tuple[str, str]] = []
    absent: list[str] = []
    for band in wanted:
        source = next((s for s in STAND_INS.get(band, (band,)) if s in available), None)
        if source is None:
            absent.append(band)
        else:
            pairs.append((band, source))
    missing = [b for b in absent if b in set(required)]
    if missing:
        raise BandError(
            f"bands {', '.join(missing)} are needed and not in the data, which has {', '.join(available)}. "
            "If the files do hold them under other names, say so with --bands."
        )
    return pairs, absent
