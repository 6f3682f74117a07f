"""The band names of GEO-Bench's HDF5 keys: standard names, and true names where the published ones are wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Final

from embedcache.bands import canonical_band

KEYS: Final = {
    "01 - coastal aerosol": "COASTAL_AEROSOL",
    "02 - blue": "BLUE",
    "03 - green": "GREEN",
    "04 - red": "RED",
    "05 - vegetation red edge": "RED_EDGE_1",
    "06 - vegetation red edge": "RED_EDGE_2",
    "07 - vegetation red edge": "RED_EDGE_3",
    "08 - nir": "NIR_BROAD",
    "08a - vegetation red edge": "NIR_NARROW",
    "09 - water vapour": "WATER_VAPOR",
    "10 - swir - cirrus": "CIRRUS",
    "11 - swir": "SWIR_1",
    "12 - swir": "SWIR_2",
    "05 - nir": "NIR",  # Landsat 8 from here
    "06 - swir1": "SWIR_1",
    "07 - swir2": "SWIR_2",
    "blue": "BLUE",
    "green": "GREEN",
    "red": "RED",
    "nearinfrared": "NIR",
    "01 - vh.real": "VH_REAL",  # Sentinel-1, under TerraTorch's names
    "02 - vh.imaginary": "VH_IMAGINARY",
    "03 - vv.real": "VV_REAL",
    "04 - vv.imaginary": "VV_IMAGINARY",
    "05 - vh.lee filtered": "VH_LEE_FILTERED",
    "06 - vv.lee filtered": "VV_LEE_FILTERED",
    "07 - vh.lee filtered.real": "VH_LEE_FILTERED_REAL",
    "08 - vv.lee filtered.imaginary": "VV_LEE_FILTERED_IMAGINARY",
}
"""Standard band names by HDF5 key, lower case and without the date."""
RADAR: Final = tuple(key for key, band in KEYS.items() if band.startswith(("VH_", "VV_")))

# True bands by key: ServiceNow/geo-bench issues 28 and 29.
EUROSAT: Final = {
    "08a - vegetation red edge": "WATER_VAPOR",
    "09 - water vapour": "CIRRUS",
    "10 - swir - cirrus": "SWIR_1",
    "11 - swir": "SWIR_2",
    "12 - swir": "NIR_NARROW",
}
BRICK_KILN: Final = {
    "06 - vegetation red edge": "RED_EDGE_3",
    "07 - vegetation red edge": "NIR_NARROW",
    "08 - nir": "NIR_BROAD",
    "08a - vegetation red edge": "SWIR_1",
    "09 - water vapour": "SWIR_2",
    "10 - swir - cirrus": "TCI_RED",
    "11 - swir": "TCI_GREEN",
    "12 - swir": "TCI_BLUE",
}


def already_mended(path: Path, corrected: Mapping[str, str], keys: Set[str]) -> bool:
    """Whether a dataset with known wrong band names was published anew with right ones.

    Judged by the keys of a file: the converter of m-brick-kiln was repaired since, and gives its true colour the keys
    ``Red``, ``Green`` and ``Blue``. Else by the statistics: cirrus is nearly dark (a mean of about 12) and short-wave
    infrared is not (about 1800), and in wrongly named files ``10 - SWIR - Cirrus`` holds the latter. Without
    ``band_stats.json`` the names are taken to be wrong.
    """
    if "10 - swir - cirrus" not in corrected:
        return False
    if {"11 - swir", "12 - swir", "red"} <= keys and "10 - swir - cirrus" not in keys:
        return True
    try:
        stats = json.loads((path / "band_stats.json").read_bytes())
        return corrected["10 - swir - cirrus"] == "SWIR_1" and stats["10 - SWIR - Cirrus"]["mean"] < 100
    except (OSError, ValueError, KeyError, TypeError):
        return False


def standard_name(key: str, keys: Set[str]) -> str:
    """Return the standard name of an HDF5 key (lower case, no date) of a file that has all these ``keys``.

    A plain ``red`` beside ``04 - red`` is the 8-bit true colour of a Sentinel-2 product.
    """
    band = KEYS.get(key, canonical_band(key))
    return f"TCI_{band}" if key in {"red", "green", "blue"} and "04 - red" in keys else band
