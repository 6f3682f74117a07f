"""What is known of the twelve GEO-Bench v1 datasets beyond their files.

Sources: the converters in ServiceNow/geo-bench (``make_benchmark``), TerraTorch's statistics, the issues named, genuine
files of m-eurosat, m-brick-kiln and m-chesapeake, and for sizes the paper's table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from embedcache.bands import SENTINEL2, canonical_band
from embedcache.datasets._geobench_bands import BRICK_KILN, EUROSAT, KEYS, RADAR
from embedcache.datasets._spec import Task, Units


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one dataset's files do not say, or say wrongly."""

    task: Task
    units: Units
    num_classes: int
    samples: tuple[int, int, int]
    """Train, val and test of the default partition."""
    size: int
    """Height and width in px."""
    bands: tuple[str, ...]
    """What is read unless told otherwise."""
    sensor: str
    resolution_m: float
    corrected: dict[str, str] = field(default_factory=dict)
    """True band by HDF5 key (lower case), where the published name is wrong."""
    fault: str = ""
    left_out: tuple[str, ...] = ()
    """HDF5 keys (lower case) of layers that are no part of the image; ``as-published`` has them."""
    class_names: tuple[str, ...] = ()
    """In label order, where the files hold none or wrong ones."""
    wrong_places: str = ""
    """Why the recorded transform and CRS must not be believed."""
    swapped_places: bool = False
    """Whether latitude and longitude may be exchanged; the latitude is the larger one at every true place."""
    peculiar: tuple[str, ...] = ()
    """What else a user should know."""


_S2 = tuple(band for band in SENTINEL2.values() if band != "CIRRUS")
_BGR = ("BLUE", "GREEN", "RED")

FACTS: Final = {
    "m-eurosat": Facts(
        task="classification",
        units="dn",
        num_classes=10,
        samples=(2000, 1000, 1000),
        size=64,
        bands=(*_S2[:8], "WATER_VAPOR", "CIRRUS", "SWIR_1", "SWIR_2", "NIR_NARROW"),
        sensor="Sentinel-2",
        resolution_m=10,
        corrected=EUROSAT,
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
    "m-bigearthnet": Facts(
        task="multilabel",
        units="dn",
        num_classes=43,
        samples=(20000, 1000, 1000),
        size=120,
        bands=_S2,
        sensor="Sentinel-2",
        resolution_m=10,
    ),
    "m-so2sat": Facts(
        task="classification",
        units="reflectance",
        num_classes=17,
        samples=(19992, 986, 986),
        size=32,
        bands=tuple(b for b in _S2 if b not in {"COASTAL_AEROSOL", "WATER_VAPOR"}),
        sensor="Sentinel-2 + Sentinel-1",
        resolution_m=10,
        left_out=RADAR,
    ),
    "m-brick-kiln": Facts(
        task="classification",
        units="dn",
        num_classes=2,
        samples=(15063, 999, 999),
        size=64,
        bands=(
            *("COASTAL_AEROSOL", "BLUE", "GREEN", "RED", "RED_EDGE_1", "RED_EDGE_3", "NIR_NARROW", "NIR_BROAD"),
            *("SWIR_1", "SWIR_2", "TCI_RED", "TCI_GREEN", "TCI_BLUE"),
        ),
        sensor="Sentinel-2",
        resolution_m=10,
        corrected=BRICK_KILN,
        fault="published band names are shifted, the last three are 8-bit true colour (ServiceNow/geo-bench issue 29)",
    ),
    "m-forestnet": Facts(
        task="classification",
        units="uint8",
        num_classes=12,
        samples=(6464, 989, 993),
        size=332,
        bands=("BLUE", "GREEN", "RED", "NIR", "SWIR_1", "SWIR_2"),
        sensor="Landsat-8",
        resolution_m=15,
        peculiar=(
            "which infrared band is which is not documented (torchgeo-bench issue 256): NIR, SWIR_1 and SWIR_2 are the "
            "published names, and nobody has confirmed them",
            "pixels outside the region of forest loss are faded towards white",
            "1 January stands for a composite of several dates",
        ),
    ),
    "m-pv4ger": Facts(
        task="classification",
        units="uint8",
        num_classes=2,
        samples=(11814, 999, 999),
        size=320,
        bands=_BGR,
        sensor="aerial RGB",
        resolution_m=0.1,
        swapped_places=True,
    ),
    "m-pv4ger-seg": Facts(
        task="segmentation",
        units="uint8",
        num_classes=2,
        samples=(3000, 403, 403),
        size=320,
        bands=_BGR,
        sensor="aerial RGB",
        resolution_m=0.1,
        swapped_places=True,
    ),
    "m-chesapeake": Facts(
        task="segmentation",
        units="unit",
        num_classes=7,
        samples=(3000, 1000, 1000),
        size=256,
        bands=("BLUE", "GREEN", "NIR", "RED"),
        sensor="aerial RGB + NIR",
        resolution_m=1,
        class_names=(
            *("water", "tree canopy, forest", "low vegetation, field", "barren land", "impervious, other"),
            *("impervious, roads", "no data"),
        ),
        peculiar=("class 6 means no data, and counts as a class, as in the benchmark",),
    ),
    "m-cashew-plant": Facts(
        task="segmentation",
        units="dn",
        num_classes=7,
        samples=(1350, 400, 50),
        size=256,
        bands=_S2,
        sensor="Sentinel-2",
        resolution_m=10,
        left_out=("cloud probability",),
        class_names=(
            *("no data", "well-managed plantation", "poorly-managed plantation", "non-plantation", "residential"),
            *("background", "uncertain"),
        ),
        wrong_places="every file records the place of the whole scene, not that of its own chip",
        peculiar=("class 0 means no data, and counts as a class, as in the benchmark",),
    ),
    "m-SA-crop-type": Facts(
        task="segmentation",
        units="uint8",
        num_classes=10,
        samples=(3000, 1000, 1000),
        size=256,
        bands=_S2,
        sensor="Sentinel-2",
        resolution_m=10,
        left_out=("cloud probability",),
        class_names=(
            *("No Data", "Lucerne/Medics", "Planted pastures (perennial)", "Fallow", "Wine grapes", "Weeds"),
            *("Small grain grazing", "Wheat", "Canola", "Rooibos"),
        ),
        wrong_places="every file records one and the same place",
        peculiar=(
            "values are 8-bit, not reflectance x 10 000",
            "class 0 means no data, and counts as a class, as in the benchmark",
        ),
    ),
    "m-nz-cattle": Facts(
        task="segmentation",
        units="uint8",
        num_classes=2,
        samples=(524, 66, 65),
        size=500,
        bands=_BGR,
        sensor="aerial RGB",
        resolution_m=0.1,
        peculiar=(
            "only the year of a date is known: all are 1 January",
            "recorded pixels are 0.1 degrees wide instead of 0.1 m: centres are right, corners are not",
        ),
    ),
    "m-NeonTree": Facts(
        task="segmentation",
        units="uint8",
        num_classes=2,
        samples=(270, 94, 93),
        size=400,
        bands=_BGR,
        sensor="aerial RGB + hyperspectral + elevation",
        resolution_m=0.1,
        left_out=("canopy height model", "neon"),
        peculiar=("training images are cut from larger tiles, and record the place of their tile's first image",),
    ),
}
ALIASES: Final = {"m-chesapeake-landcover": "m-chesapeake", "m-cashew-plantation": "m-cashew-plant"}


def also_called(name: str) -> tuple[str, ...]:
    """Return other names that a dataset's folder may have."""
    return tuple(alias for alias, known in ALIASES.items() if known == name)


def same_dataset(name: str) -> tuple[str, ...]:
    """Return a folder's name, then the other names that the same dataset may have."""
    known = ALIASES.get(name, name)
    return tuple(dict.fromkeys((name, known, *also_called(known))))


def known_notes(facts: Facts) -> tuple[str, ...]:
    """Return what a user should know before extraction, whatever the files look like."""
    notes = []
    if facts.left_out:
        names = ", ".join(KEYS.get(k, canonical_band(k)) for k in facts.left_out)
        notes.append(f"no part of the image unless --bands as-published asks for it: {names}")
    if facts.wrong_places:
        notes.append(f"{facts.wrong_places}; no location is used")
    if facts.swapped_places:
        notes.append(
            "sample ids name longitude and latitude in either order (TerraTorch takes them as they come); places are "
            "read from the transforms and put in order"
        )
    return (*notes, *facts.peculiar)
