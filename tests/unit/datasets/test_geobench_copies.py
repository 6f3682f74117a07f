"""All twelve GEO-Bench v1 datasets, written in the official format and read back: pixels, labels, partitions, facts."""

from __future__ import annotations

import datetime
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from embedcache.datasets._geobench_facts import ALIASES, FACTS
from embedcache.datasets._registry import open_dataset
from embedcache.datasets._spec import OpenOptions
from embedcache.datasets.geobench import GeoBenchSource
from embedcache.errors import SampleError

sys.path.insert(0, str(Path(__file__).parents[2]))
from geobench_copies import PARTITIONS, RECIPES, SENTINEL1, Copy, lat_of, lon_of, write_copy

TWELVE = sorted(RECIPES)
DATED = {"m-forestnet", "m-cashew-plant", "m-nz-cattle"}
LOCATED = {"m-brick-kiln", "m-forestnet", "m-pv4ger", "m-pv4ger-seg", "m-nz-cattle", "m-NeonTree"}
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Copy]:
    root = tmp_path_factory.mktemp("geobench")
    return {name: write_copy(root, name) for name in TWELVE}


def opened(copy: Copy, **options: Any) -> GeoBenchSource:
    return GeoBenchSource(copy.path, OpenOptions(**options))


def day_of(time: float | None) -> datetime.date:
    assert time is not None
    return (EPOCH + datetime.timedelta(seconds=time)).date()


def key_of(copy: Copy, source: str) -> str:
    return next(key for key in copy.recipe.keys if key.lower() == source)


def test_the_twelve_are_all_there() -> None:
    assert set(FACTS) == set(TWELVE)
    assert len(TWELVE) == 12
    assert set(ALIASES.values()) <= set(FACTS)


@pytest.mark.parametrize("name", TWELVE)
def test_every_default_band_is_read_pixel_for_pixel(copies: dict[str, Copy], name: str) -> None:
    source = opened(copies[name])
    for index, sample_id in enumerate(source.sample_ids):
        sample = source.read(index, source.info.bands)
        written = [copies[name].pixels[sample_id][key_of(copies[name], s)] for s in source.info.band_sources]
        np.testing.assert_array_equal(sample.image, np.stack(written))
        assert sample.image.dtype == copies[name].recipe.dtype


@pytest.mark.parametrize("name", TWELVE)
def test_bands_classes_and_task_are_those_that_are_listed(copies: dict[str, Copy], name: str) -> None:
    info, facts = opened(copies[name]).info, FACTS[name]
    assert info.bands == facts.bands
    assert (info.task, info.num_classes, info.units) == (facts.task, facts.num_classes, facts.units)
    assert facts.num_classes == copies[name].recipe.classes
    assert info.class_names == (facts.class_names or copies[name].recipe.class_names or info.class_names)


@pytest.mark.parametrize("name", TWELVE)
def test_every_label_and_mask_is_read_as_written(copies: dict[str, Copy], name: str) -> None:
    source = opened(copies[name])
    for index, sample_id in enumerate(source.sample_ids):
        target = source.read(index, source.info.bands[:1]).target
        np.testing.assert_array_equal(target, copies[name].labels[sample_id])


@pytest.mark.parametrize("name", TWELVE)
def test_labels_are_the_same_where_only_the_pickles_tell_them(
    copies: dict[str, Copy], tmp_path: Path, name: str
) -> None:
    copy = write_copy(tmp_path, name)
    for file in copy.path.glob("label_*.json"):
        file.unlink()
    source = opened(copy)
    for index, sample_id in enumerate(source.sample_ids):
        np.testing.assert_array_equal(source.read(index, source.info.bands[:1]).target, copy.labels[sample_id])
    assert "geobench" not in sys.modules


@pytest.mark.parametrize("name", TWELVE)
@pytest.mark.parametrize("partition", PARTITIONS)
def test_every_partition_has_its_samples_in_order(copies: dict[str, Copy], name: str, partition: str) -> None:
    source = opened(copies[name], partition=partition)
    pairs = list(zip(source.sample_ids, source.splits, strict=True))
    for published, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        assert [i for i, s in pairs if s == split] == copies[name].partitions[partition][published]


@pytest.mark.parametrize("name", TWELVE)
def test_time_is_known_where_the_keys_tell_it(copies: dict[str, Copy], name: str) -> None:
    source = opened(copies[name])
    assert source.info.has_time == (name in DATED)
    for i in range(len(source.sample_ids)):
        time = source.read(i, source.info.bands[:1]).time
        assert time is None if name not in DATED else day_of(time) == copies[name].recipe.date(i)


@pytest.mark.parametrize("name", TWELVE)
def test_place_is_known_where_the_files_tell_it_truly(copies: dict[str, Copy], name: str) -> None:
    source = opened(copies[name])
    assert source.info.has_location == (name in LOCATED)
    sample = source.read(0, source.info.bands[:1])
    assert (sample.lat is not None) == (name in LOCATED)


def test_place_of_forestnet_is_the_one_in_its_sample_id(copies: dict[str, Copy]) -> None:
    source = opened(copies["m-forestnet"])
    for i, sample_id in enumerate(source.sample_ids):
        sample = source.read(i, ["RED"])
        assert (sample.lat, sample.lon) == pytest.approx([float(v) for v in sample_id.split("_")[:2]], abs=1e-9)


@pytest.mark.parametrize("name", ["m-pv4ger", "m-pv4ger-seg"])
@pytest.mark.parametrize("swapped", [False, True])
def test_place_of_pv4ger_is_in_germany_whatever_order_its_files_have(
    copies: dict[str, Copy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, swapped: bool
) -> None:
    copy = copies[name]
    if swapped:
        monkeypatch.setattr("geobench_copies._degrees", _exchanged)
        copy = write_copy(tmp_path, name)
    source = opened(copy)
    for i in range(len(source.sample_ids)):
        sample = source.read(i, ["RED"])
        assert (sample.lat, sample.lon) == pytest.approx((lat_of(i), lon_of(i)), abs=1e-9)


def _exchanged(lat: float, lon: float, size: int, pixel: float) -> Any:
    from affine import Affine

    return Affine(pixel, 0, lat - pixel * size / 2, 0, -pixel, lon + pixel * size / 2), "EPSG:4326"


# layers that are no image


def test_radar_of_so2sat_is_left_out_by_default_and_there_as_published(copies: dict[str, Copy]) -> None:
    optical, everything = opened(copies["m-so2sat"]), opened(copies["m-so2sat"], bands="as-published")
    assert len(optical.info.bands) == 10
    assert not any(b.startswith("V") for b in optical.info.bands)
    assert len(everything.info.bands) == 18
    radar = everything.read(0, ("VV_REAL", "VH_LEE_FILTERED")).image
    pixels = copies["m-so2sat"].pixels["id_0000"]
    np.testing.assert_array_equal(radar, np.stack([pixels[SENTINEL1[2]], pixels[SENTINEL1[4]]]))
    assert any("VH_REAL" in note and "as-published" in note for note in optical.info.notes)


@pytest.mark.parametrize("name", ["m-cashew-plant", "m-SA-crop-type"])
def test_cloud_probability_is_left_out_by_default(copies: dict[str, Copy], name: str) -> None:
    assert "CLOUD_PROBABILITY" not in opened(copies[name]).info.bands
    assert opened(copies[name], bands="as-published").info.bands[-1] == "CLOUD_PROBABILITY"


def test_layers_of_neontree_on_a_coarser_grid_are_refused_with_their_shape(copies: dict[str, Copy]) -> None:
    source = opened(copies["m-NeonTree"], bands="as-published")
    assert source.info.bands == ("BLUE", "CANOPY_HEIGHT_MODEL", "GREEN", "NEON", "RED")
    assert source.read(0, ("RED", "GREEN", "BLUE")).image.shape == (3, 20, 20)
    with pytest.raises(SampleError, match="its bands have shapes"):
        source.read(0, ("RED", "CANOPY_HEIGHT_MODEL"))


# faults, in the open


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m-eurosat", "B8A is really last"),
        ("m-eurosat", "place of the first image"),
        ("m-brick-kiln", "8-bit true colour"),
        ("m-forestnet", "which infrared band is which"),
        ("m-pv4ger", "either order"),
        ("m-pv4ger-seg", "either order"),
        ("m-SA-crop-type", "one and the same place"),
        ("m-SA-crop-type", "8-bit"),
        ("m-cashew-plant", "place of the whole scene"),
        ("m-nz-cattle", "1 January"),
    ],
)
@pytest.mark.parametrize("bands", ["corrected", "as-published"])
def test_known_fault_is_told(copies: dict[str, Copy], name: str, words: str, bands: str) -> None:
    assert any(words in note for note in opened(copies[name], bands=bands).info.notes)


def test_brick_kiln_as_its_repaired_converter_writes_it_is_read_under_the_same_names(
    copies: dict[str, Copy], tmp_path: Path
) -> None:
    # ServiceNow/geo-bench gave the bands true keys, and the true colour those of a picture, after issue 29.
    keys = ("01 - Coastal aerosol", "02 - Blue", "03 - Green", "04 - Red", "05 - Vegetation Red Edge")
    keys += ("07 - Vegetation Red Edge", "08A - Vegetation Red Edge", "08 - NIR", "11 - SWIR", "12 - SWIR")
    keys += ("Red", "Green", "Blue")
    old = copies["m-brick-kiln"]
    new = write_copy(tmp_path, "m-brick-kiln")
    for sample_id in new.ids:
        with h5py.File(new.path / f"{sample_id}.hdf5", "a") as file:
            pixels = [file[k][()] for k in old.recipe.keys]
            for key in list(file):
                del file[key]
            for key, data in zip(keys, pixels, strict=True):
                file[key] = data
    (new.path / "band_stats.json").unlink()
    for choice in ("corrected", "as-published"):
        source = opened(new, bands=choice)
        assert sorted(source.info.bands) == sorted(FACTS["m-brick-kiln"].bands)
        np.testing.assert_array_equal(
            source.read(0, FACTS["m-brick-kiln"].bands).image, opened(old).read(0, FACTS["m-brick-kiln"].bands).image
        )
        assert any("right ones already" in note for note in source.info.notes)


@pytest.mark.parametrize(("alias", "name"), sorted(ALIASES.items()))
def test_other_folder_names_are_the_same_datasets(tmp_path: Path, alias: str, name: str) -> None:
    info = opened(write_copy(tmp_path, name, alias)).info
    assert (info.name, info.bands, info.class_names) == (alias, FACTS[name].bands, FACTS[name].class_names)


@pytest.mark.parametrize("asked", ["m-chesapeake", "m-chesapeake-landcover"])
@pytest.mark.parametrize("folder", ["m-chesapeake", "m-chesapeake-landcover"])
def test_a_dataset_is_found_by_either_of_its_names(tmp_path: Path, asked: str, folder: str) -> None:
    write_copy(tmp_path / "segmentation_v1.0", "m-chesapeake", folder)
    assert open_dataset(asked, tmp_path).info.name == folder


# pickles are not trusted


@pytest.mark.parametrize("name", TWELVE)
def test_attack_in_an_attribute_or_the_task_specifications_does_not_run(tmp_path: Path, name: str) -> None:
    copy, marker = write_copy(tmp_path, name), tmp_path / "it-ran"
    attack = f"cos\nsystem\n(S'touch \"{marker}\"'\ntR.".encode()
    (copy.path / "task_specs.pkl").write_bytes(attack)
    with h5py.File(copy.path / f"{copy.ids[1]}.hdf5", "a") as file:
        file.attrs["pickle"] = str(attack)
    for file_name in ("label_map.json", "label_stats.json"):
        (copy.path / file_name).unlink(missing_ok=True)
    source = opened(copy)
    source.read(0, source.info.bands)
    needed = name in LOCATED or FACTS[name].task != "segmentation"
    if needed:
        with pytest.raises(SampleError, match=r"its pickle is refused: .*os\.system"):
            source.read(1, source.info.bands)
    assert not marker.exists()
    pickle.loads(attack)  # the attack is one
    assert marker.exists()


def test_the_copies_are_what_the_official_writer_leaves(copies: dict[str, Copy]) -> None:
    for name, copy in copies.items():
        names = {p.name for p in copy.path.iterdir()}
        assert {"band_stats.json", "task_specs.pkl", *(f"{p}_partition.json" for p in PARTITIONS)} < names
        assert {f"{i}.hdf5" for i in copy.ids} < names, name
        assert set(json.loads((copy.path / "band_stats.json").read_text())) == {*copy.recipe.keys, "label"}
