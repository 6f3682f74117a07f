"""Our GEO-Bench reader beside TerraTorch's own loaders, on the same small copies of all twelve datasets.

Where the two differ a test says so: TerraTorch's loaders keep wrong band names, take sample ids for places, and run the
pickles.
"""

from __future__ import annotations

import datetime
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._terratorch import repair_torchvision
from embedcache.datasets._geobench_facts import FACTS
from embedcache.datasets._spec import OpenOptions
from embedcache.datasets.geobench import GeoBenchSource
from embedcache.errors import SampleError
from embedcache.extraction_plan import ExtractionPlan, ExtractOptions, plan_extraction
from embedcache_cli.app import app

sys.path.insert(0, str(Path(__file__).parents[1]))
from geobench_copies import COUNTS, RECIPES, Copy, geobench_classes, lat_of, lon_of, write_copy

LOADERS = {
    "m-eurosat": "MEuroSATNonGeo",
    "m-bigearthnet": "MBigEarthNonGeo",
    "m-so2sat": "MSo2SatNonGeo",
    "m-brick-kiln": "MBrickKilnNonGeo",
    "m-forestnet": "MForestNetNonGeo",
    "m-pv4ger": "MPv4gerNonGeo",
    "m-pv4ger-seg": "MPv4gerSegNonGeo",
    "m-chesapeake": "MChesapeakeLandcoverNonGeo",
    "m-cashew-plant": "MBeninSmallHolderCashewsNonGeo",
    "m-SA-crop-type": "MSACropTypeNonGeo",
    "m-nz-cattle": "MNzCattleNonGeo",
    "m-NeonTree": "MNeonTreeNonGeo",
}
UNPICKLES = {"m-so2sat", "m-brick-kiln", "m-forestnet", "m-pv4ger"}
SPLITS = {"train": "train", "val": "valid", "test": "test"}
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def loaders() -> ModuleType:
    """Return ``terratorch.datasets``; importing it takes seconds."""
    repair_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import terratorch.datasets
    return terratorch.datasets


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Copy]:
    root = tmp_path_factory.mktemp("geobench")
    return {name: write_copy(root, name) for name in LOADERS}


def theirs_of(loaders: ModuleType, copy: Copy, **options: Any) -> Any:
    return getattr(loaders, LOADERS[copy.path.name])(str(copy.path.parent), **options)


def opened(copy: Copy, bands: str = "as-published", partition: str | None = None) -> GeoBenchSource:
    return GeoBenchSource(copy.path, OpenOptions(bands=bands, partition=partition))


def compare(ours: GeoBenchSource, theirs: Any, split: str, bands: tuple[str, ...]) -> int:
    """Assert that one split is the same to both, and return how many samples it has."""
    rows = [i for i, s in enumerate(ours.splits) if s == split]
    assert len(theirs) == len(rows)
    for position, row in enumerate(rows):
        mine = ours.read(row, bands)
        with geobench_classes():
            other = theirs[position]
        assert theirs.image_files[position].name == f"{mine.sample_id}.hdf5"
        image = np.asarray(other["image"])
        np.testing.assert_array_equal(mine.image.astype(image.dtype), image)
        np.testing.assert_array_equal(mine.target, np.asarray(other["mask" if "mask" in other else "label"]))
    return len(rows)


@pytest.mark.parametrize("partition", ["default", "0.50x_train"])
@pytest.mark.parametrize("name", LOADERS)
def test_terratorch_reads_the_same_pixels_and_targets(
    copies: dict[str, Copy], loaders: ModuleType, name: str, partition: str
) -> None:
    ours = opened(copies[name], partition=partition)
    theirs = {split: theirs_of(loaders, copies[name], split=split, partition=partition) for split in SPLITS}
    bands = tuple(theirs["train"].bands)
    if name != "m-NeonTree":  # TerraTorch's default there is RED, GREEN, BLUE: its other layers have other sizes
        assert ours.info.bands == bands == theirs["train"].all_band_names
    counts = [compare(ours, theirs[split], split, bands) for split in SPLITS]
    assert counts == [COUNTS["train"] // (1 if partition == "default" else 2), COUNTS["valid"], COUNTS["test"]]


@pytest.mark.parametrize("name", sorted(LOADERS.keys() - {"m-nz-cattle"}))
def test_terratorch_reads_the_same_pixels_for_some_bands_in_another_order(
    copies: dict[str, Copy], loaders: ModuleType, name: str
) -> None:
    names = getattr(loaders, LOADERS[name]).all_band_names
    bands = ("RED", "BLUE") if name == "m-NeonTree" else tuple(names[::-2])
    assert compare(opened(copies[name]), theirs_of(loaders, copies[name], bands=bands), "train", bands) == 8


@pytest.mark.parametrize("name", sorted(LOADERS.keys() - {"m-eurosat", "m-brick-kiln"}))
def test_names_are_the_same_corrected_where_nothing_is_wrong_with_them(
    copies: dict[str, Copy], loaders: ModuleType, name: str
) -> None:
    bands = FACTS[name].bands
    theirs = theirs_of(loaders, copies[name], bands=bands, split="test")
    assert compare(opened(copies[name], "corrected"), theirs, "test", bands) == 2


# where the two differ


@pytest.mark.parametrize(
    ("name", "by_their_names"),
    [
        ("m-eurosat", ("BLUE", "GREEN", "RED", "SWIR_2", "CIRRUS", "SWIR_1")),
        ("m-brick-kiln", ("BLUE", "GREEN", "RED", "RED_EDGE_3", "NIR_NARROW", "WATER_VAPOR")),
    ],
)
def test_mended_names_are_other_names_for_what_terratorch_reads(
    copies: dict[str, Copy], loaders: ModuleType, name: str, by_their_names: tuple[str, ...]
) -> None:
    """The workaround that TerraTorch users need today to give Prithvi its six bands."""
    true = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")
    theirs = theirs_of(loaders, copies[name], split="test", bands=by_their_names)
    assert compare(opened(copies[name], "corrected"), theirs, "test", true) == 2
    wrong = theirs_of(loaders, copies[name], split="test", bands=true)
    with pytest.raises(AssertionError):
        compare(opened(copies[name], "corrected"), wrong, "test", true)


def test_terratorch_numbers_the_classes_of_eurosat_by_those_that_are_there(tmp_path: Path, loaders: ModuleType) -> None:
    copy = write_copy(tmp_path, "m-eurosat")
    by_class = json.loads((copy.path / "label_map.json").read_text())
    by_class["1"] += by_class.pop("0")
    (copy.path / "label_map.json").write_text(json.dumps(by_class))
    assert opened(copy).read(1, ["RED"]).target == 1
    assert theirs_of(loaders, copy)[1]["label"] == 0


def test_terratorch_ignores_the_bands_asked_of_nz_cattle(copies: dict[str, Copy], loaders: ModuleType) -> None:
    theirs = theirs_of(loaders, copies["m-nz-cattle"], bands=("RED",))[0]["image"]
    ours = opened(copies["m-nz-cattle"]).read(0, ("RED",)).image
    assert (theirs.shape[0], ours.shape[0]) == (3, 1)
    np.testing.assert_array_equal(ours[0], theirs[2])


def test_neither_stacks_the_coarser_layers_of_neontree(copies: dict[str, Copy], loaders: ModuleType) -> None:
    bands = ("RED", "CANOPY_HEIGHT_MODEL")
    with pytest.raises(ValueError, match="same shape"):
        theirs_of(loaders, copies["m-NeonTree"], bands=bands)[0]
    with pytest.raises(SampleError, match="shapes"):
        opened(copies["m-NeonTree"]).read(0, bands)


@pytest.mark.parametrize("name", sorted(UNPICKLES))
def test_terratorch_needs_geobench_where_it_unpickles_and_we_do_not(
    copies: dict[str, Copy], loaders: ModuleType, name: str
) -> None:
    assert opened(copies[name]).read(0, ("RED",)).target == copies[name].labels[copies[name].ids[0]]
    with pytest.raises(ModuleNotFoundError, match="geobench"):
        theirs_of(loaders, copies[name])[0]


@pytest.mark.parametrize("name", ["m-forestnet", "m-cashew-plant", "m-nz-cattle"])
def test_terratorch_knows_the_same_dates(copies: dict[str, Copy], loaders: ModuleType, name: str) -> None:
    ours, theirs = opened(copies[name]), theirs_of(loaders, copies[name], use_metadata=True)
    for row in range(len(theirs)):
        with geobench_classes():
            year, day = theirs[row]["temporal_coords"][0].tolist()
        time = ours.read(row, ("RED",)).time
        assert time is not None
        date = EPOCH + datetime.timedelta(seconds=time)
        assert (date.year, date.timetuple().tm_yday - 1) == (year, day)


@pytest.mark.parametrize("name", ["m-forestnet", "m-nz-cattle"])
def test_terratorch_knows_the_same_places(copies: dict[str, Copy], loaders: ModuleType, name: str) -> None:
    ours, theirs = opened(copies[name]), theirs_of(loaders, copies[name], use_metadata=True)
    for row in range(len(theirs)):
        mine = ours.read(row, ("RED",))
        with geobench_classes():
            place = theirs[row]["location_coords"].tolist()
        assert (mine.lat, mine.lon) == pytest.approx(place, abs=1e-5)


@pytest.mark.parametrize("name", ["m-pv4ger", "m-pv4ger-seg"])
def test_terratorch_takes_longitude_for_latitude_where_the_id_of_pv4ger_names_it_first(
    copies: dict[str, Copy], loaders: ModuleType, name: str
) -> None:
    ours, theirs = opened(copies[name]), theirs_of(loaders, copies[name], use_metadata=True)
    for row in range(len(theirs)):
        mine, true = ours.read(row, ("RED",)), (lat_of(row), lon_of(row))
        with geobench_classes():
            place = theirs[row]["location_coords"].tolist()
        assert (mine.lat, mine.lon) == pytest.approx(true, abs=1e-9)
        assert place == pytest.approx(true if row % 2 == 0 else true[::-1], abs=1e-5)


# the choice of names, in the fingerprint and in the plan


def plan(copy: Copy, cache: Path, backbone: str, bands: str) -> ExtractionPlan:
    return plan_extraction(opened(copy, bands), get_backbone(backbone), cache, ExtractOptions(weights="random"))


@pytest.mark.parametrize("name", ["m-eurosat", "m-brick-kiln"])
def test_choice_of_names_is_in_the_fingerprint_where_it_chooses_other_pixels(
    copies: dict[str, Copy], tmp_path: Path, name: str
) -> None:
    six = [plan(copies[name], tmp_path, "prithvi_eo_v2_tiny_tl", b).spec.recipe for b in CHOICES]
    rgb = [plan(copies[name], tmp_path, "sam2_hiera_tiny", b).spec.recipe for b in CHOICES]
    assert six[0] != six[1]
    assert rgb[0] == rgb[1], "red, green and blue have their right names either way"


CHOICES = ("corrected", "as-published")


@pytest.mark.parametrize("name", ["m-eurosat", "m-brick-kiln", "m-forestnet", "m-pv4ger", "m-SA-crop-type"])
@pytest.mark.parametrize("bands", CHOICES)
def test_plan_shows_what_is_known_to_be_wrong(copies: dict[str, Copy], tmp_path: Path, name: str, bands: str) -> None:
    words = ["extract", "--dataset", f"geobench:{copies[name].path}", "--backbone", "sam2_hiera_tiny", "--weights"]
    words += ["random", "--plan", "--bands", bands, "--cache", str(tmp_path)]
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == 0, printed.output
    told = " ".join(printed.output.split())
    for note in opened(copies[name], bands).info.notes:
        assert " ".join(note.split()) in told
    assert RECIPES[name].classes == FACTS[name].num_classes
