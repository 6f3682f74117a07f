"""What is known of the twelve GEO-Bench v1 datasets beyond their files.

Sources: the converters in ServiceNow/geo-bench (``make_benchmark``), TerraTorch's statistics, and the issues named.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embedcache.datasets._spec import Task, Units

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
}
"""Standard band names by HDF5 key, lower case and without the date."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one dataset's files do not say, or say wrongly."""

    task: Task
    units: Units
    num_classes: int
    corrected: dict[str, str] = field(default_factory=dict)
    """True band by HDF5 key (lower case), where the published name is wrong."""
    fault: str = ""
    class_names: tuple[str, ...] = ()
    """In label order, where the files hold none or wrong ones."""
    wrong_places: str = ""
    """Why the recorded transform and CRS must not be believed."""


_EUROSAT = {
    "08a - vegetation red edge": "WATER_VAPOR",
    "09 - water vapour": "CIRRUS",
    "10 - swir - cirrus": "SWIR_1",
    "11 - swir": "SWIR_2",
    "12 - swir": "NIR_NARROW",
}
_BRICK_KILN = {
    "06 - vegetation red edge": "RED_EDGE_3",
    "07 - vegetation red edge": "NIR_NARROW",
    "08 - nir": "NIR_BROAD",
    "08a - vegetation red edge": "SWIR_1",
    "09 - water vapour": "SWIR_2",
    "10 - swir - cirrus": "TCI_RED",
    "11 - swir": "TCI_GREEN",
    "12 - swir": "TCI_BLUE",
}

FACTS: Final = {
    "m-eurosat": Facts(
        task="classification",
        units="dn",
        num_classes=10,
        corrected=_EUROSAT,
        # The files hold the order of torchgeo's class list; the labels follow the folders, which are alphabetical.
        class_names=(
            "AnnualCrop",
            "Forest",
            "HerbaceousVegetation",
            "Highway",
            "Industrial",
            "Pasture",
            "PermanentCrop",
            "Residential",
            "River",
            "SeaLake",
        ),
        wrong_places="every file records the place of the first image",
        fault="published band names are shifted from index 8 on: B8A is really last (ServiceNow/geo-bench issue 28)",
    ),
    "m-bigearthnet": Facts(task="multilabel", units="dn", num_classes=43),
    "m-so2sat": Facts(task="classification", units="reflectance", num_classes=17),
    "m-brick-kiln": Facts(
        task="classification",
        units="dn",
        num_classes=2,
        corrected=_BRICK_KILN,
        fault="published band names are shifted, the last three are true colour (ServiceNow/geo-bench issue 29)",
    ),
    "m-forestnet": Facts(task="classification", units="uint8", num_classes=12),
    "m-pv4ger": Facts(task="classification", units="uint8", num_classes=2),
    "m-pv4ger-seg": Facts(task="segmentation", units="uint8", num_classes=2),
    "m-chesapeake": Facts(task="segmentation", units="unit", num_classes=7),
    "m-cashew-plant": Facts(task="segmentation", units="dn", num_classes=7),
    "m-SA-crop-type": Facts(task="segmentation", units="uint8", num_classes=10),
    "m-nz-cattle": Facts(task="segmentation", units="uint8", num_classes=2),
    "m-NeonTree": Facts(task="segmentation", units="uint8", num_classes=2),
}
ALIASES: Final = {"m-chesapeake-landcover": "m-chesapeake", "m-cashew-plantation": "m-cashew-plant"}


def already_mended(path: Path, facts: Facts) -> bool:
    """Whether a dataset with known wrong band names was published anew with right ones, judged by its statistics.

    Cirrus is nearly dark (a mean of about 12) and short-wave infrared is not (about 1800): in wrongly named files
    ``10 - SWIR - Cirrus`` holds the latter. Without ``band_stats.json`` the names are taken to be wrong.
    """
    if "10 - swir - cirrus" not in facts.corrected or facts.units != "dn":
        return False
    try:
        stats = json.loads((path / "band_stats.json").read_bytes())
        return facts.corrected["10 - swir - cirrus"] == "SWIR_1" and stats["10 - SWIR - Cirrus"]["mean"] < 100
    except (OSError, ValueError, KeyError, TypeError):
        return False
