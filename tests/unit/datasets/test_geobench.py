"""GEO-Bench v1 folders: what is read from the exact on-disk format, what is mended, what is refused."""

from __future__ import annotations

import datetime
import json
import pickle
import shutil
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from rasterio.crs import CRS

from embedcache.bands import canonical_band
from embedcache.datasets._registry import open_dataset
from embedcache.datasets._spec import OpenOptions
from embedcache.datasets.geobench import GeoBenchSource
from embedcache.errors import DatasetError, SampleError, SettingError

Writer = Callable[..., Any]
LANDSAT_KEYS = ("02 - Blue", "03 - Green", "04 - Red", "05 - NIR", "06 - SWIR1", "07 - SWIR2")
AERIAL_KEYS = ("Blue", "Green", "NearInfrared", "Red")
UTM33_WKT = CRS.from_epsg(32633).to_wkt()


def opened(path: Path, **options: Any) -> GeoBenchSource:
    return GeoBenchSource(path, OpenOptions(**options))


def targets(source: GeoBenchSource) -> dict[str, Any]:
    return {i: source.read(n, source.info.bands[:1]).target for n, i in enumerate(source.sample_ids)}


def replace_band(path: Path, key: str, data: npt.NDArray[Any] | None) -> None:
    with h5py.File(path, "a") as file:
        del file[key]
        if data is not None:
            file[key] = data


@pytest.fixture
def geobench_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """Return a stand-in for ``geobench.dataset.Sentinel2`` that pickles under that name; geobench is not installed."""

    class Sentinel2:
        def __init__(self, name: str) -> None:
            self.name = name

    Sentinel2.__module__, Sentinel2.__qualname__ = "geobench.dataset", "Sentinel2"
    module = types.ModuleType("geobench.dataset")
    module.Sentinel2 = Sentinel2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "geobench", types.ModuleType("geobench"))
    monkeypatch.setitem(sys.modules, "geobench.dataset", module)
    return Sentinel2


# partitions


def test_partition_gives_ids_in_order_and_valid_is_called_val(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", samples=5, classes=10)
    source = opened(folder.path)
    assert source.sample_ids == list(folder.ids)
    assert source.splits == ["train", "train", "train", "val", "test"]


def test_another_partition_is_read_when_asked_for(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", samples=4, classes=10)
    small = {"train": ["id_0002"], "valid": ["id_0000"], "test": []}
    (folder.path / "0.10x_train_partition.json").write_text(json.dumps(small))
    source = opened(folder.path, partition="0.10x_train")
    assert list(zip(source.sample_ids, source.splits, strict=True)) == [("id_0002", "train"), ("id_0000", "val")]
    np.testing.assert_array_equal(source.read(0, ["RED"]).image[0], folder.pixels["id_0002"]["04 - Red"])


def test_unknown_partition_is_refused_with_those_that_are_there(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat")
    shutil.copy(folder.path / "default_partition.json", folder.path / "0.01x_train_partition.json")
    with pytest.raises(
        DatasetError, match=r"has no partition '0\.5x': the partitions there are 0\.01x_train, default\."
    ):
        opened(folder.path, partition="0.5x")


def test_folder_without_any_partition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no partition 'default': there is none at all\."):
        opened(tmp_path)


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"m-nothing' does not exist"):
        opened(tmp_path / "m-nothing")


def test_partition_that_names_no_sample_is_refused(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat")
    (folder.path / "default_partition.json").write_text('{"train": [], "valid": [], "test": []}')
    with pytest.raises(DatasetError, match="names no sample"):
        opened(folder.path)


def test_sample_that_is_in_two_splits_is_refused_with_its_name(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat")
    partition = {"train": ["id_0000", "id_0001"], "valid": ["id_0002"], "test": ["id_0001"]}
    (folder.path / "default_partition.json").write_text(json.dumps(partition))
    with pytest.raises(DatasetError, match=r"names sample 'id_0001' twice; ids must be unique"):
        opened(folder.path)


def test_missing_files_are_counted_and_the_first_is_named(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", samples=5)
    (folder.path / "id_0001.hdf5").unlink()
    (folder.path / "id_0003.hdf5").rename(folder.path / "id_0003.hdf5.part")
    with pytest.raises(DatasetError, match=r"^2 of 5 samples of partition .* the first is 'id_0001\.hdf5'\."):
        opened(folder.path)


@pytest.mark.parametrize("sample_id", ["../id_0000", "sub/id_0000"])
def test_sample_outside_the_folder_is_not_read(write_geobench: Writer, sample_id: str) -> None:
    folder = write_geobench("m-eurosat")
    (folder.path / "sub").mkdir()
    for place in (folder.path.parent, folder.path / "sub"):
        shutil.copy(folder.path / "id_0000.hdf5", place / "id_0000.hdf5")
    (folder.path / "default_partition.json").write_text(json.dumps({"train": [sample_id]}))
    with pytest.raises(DatasetError, match="have no file"):
        opened(folder.path)


# labels


def test_labels_of_a_classification_dataset_come_from_label_map(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", samples=12, classes=10)
    source = opened(folder.path)
    assert source.info.task == "classification"
    assert source.info.num_classes == 10
    assert targets(source) == folder.labels
    assert all(type(label) is int for label in targets(source).values())


def test_label_map_is_read_even_where_the_files_say_nothing(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", classes=10)
    for sample_id in folder.ids:
        with h5py.File(folder.path / f"{sample_id}.hdf5", "a") as file:
            del file.attrs["pickle"]
    assert targets(opened(folder.path)) == folder.labels


@pytest.mark.parametrize("protocol", [3, 4])
def test_labels_come_from_the_pickles_where_there_is_no_json(write_geobench: Writer, protocol: int) -> None:
    folder = write_geobench("m-brick-kiln", labels_in="pickle", protocol=protocol)
    assert not list(folder.path.glob("label_*.json"))
    assert targets(opened(folder.path)) == folder.labels


def test_numpy_integer_in_a_pickle_is_a_label(write_geobench: Writer) -> None:
    folder = write_geobench("m-pv4ger", ("Blue", "Green", "Red"), labels_in="pickle", dtype="uint8")
    for i, sample_id in enumerate(folder.ids):
        with h5py.File(folder.path / f"{sample_id}.hdf5", "a") as file:
            file.attrs["pickle"] = str(pickle.dumps({"label": np.int64(i % 2)}, protocol=4))
    assert targets(opened(folder.path)) == {"id_0000": 0, "id_0001": 1, "id_0002": 0, "id_0003": 1}


@pytest.mark.parametrize("labels_in", ["json", "pickle"])
def test_labels_of_a_multilabel_dataset_are_rows_of_zero_and_one(
    write_geobench: Writer, sentinel2_keys: tuple[str, ...], labels_in: str
) -> None:
    keys = tuple(k for k in sentinel2_keys if "Cirrus" not in k)
    folder = write_geobench("m-bigearthnet", keys, task="multi", classes=43, labels_in=labels_in)
    source = opened(folder.path)
    assert (source.info.task, source.info.num_classes) == ("multilabel", 43)
    for sample_id, target in targets(source).items():
        assert target.dtype == np.uint8
        np.testing.assert_array_equal(target, folder.labels[sample_id])


def test_mask_is_the_target_of_a_segmentation_dataset(write_geobench: Writer) -> None:
    folder = write_geobench("m-chesapeake", AERIAL_KEYS, task="mask", classes=7, dtype="float32")
    source = opened(folder.path)
    assert (source.info.task, source.info.num_classes) == ("segmentation", 7)
    assert source.info.bands == ("BLUE", "GREEN", "NIR", "RED")
    for sample_id, mask in targets(source).items():
        np.testing.assert_array_equal(mask, folder.labels[sample_id])


def test_dated_keys_are_read_with_their_dated_mask(write_geobench: Writer) -> None:
    keys = ("Blue", "Green", "Red")
    facts = {"task": "mask", "dtype": "uint8", "date": "_2017-01-01", "mask_key": "label_2017-01-01"}
    folder = write_geobench("m-nz-cattle", keys, **facts)
    source = opened(folder.path)
    assert source.info.bands == ("BLUE", "GREEN", "RED")
    sample = source.read(1, ("RED", "BLUE"))
    pixels = folder.pixels["id_0001"]
    np.testing.assert_array_equal(sample.image, np.stack([pixels["Red_2017-01-01"], pixels["Blue_2017-01-01"]]))
    np.testing.assert_array_equal(sample.target, folder.labels["id_0001"])


def test_sample_that_no_label_file_names_is_refused(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", classes=10)
    (folder.path / "label_map.json").write_text(json.dumps({"3": ["id_0000", "id_0001", "id_0002"]}))
    source = opened(folder.path)
    assert source.read(2, ["RED"]).target == 3
    with pytest.raises(SampleError, match=r"^sample 'id_0003' cannot be used: it has no label\."):
        source.read(3, ["RED"])


def test_segmentation_sample_without_its_mask_is_refused(write_geobench: Writer) -> None:
    folder = write_geobench("m-chesapeake", AERIAL_KEYS, task="mask", dtype="float32")
    replace_band(folder.path / "id_0002.hdf5", "label", None)
    with pytest.raises(SampleError, match=r"^sample 'id_0002' cannot be used: it has no label mask"):
        opened(folder.path).read(2, ["RED"])


def test_dataset_without_labels_anywhere_is_refused(write_geobench: Writer) -> None:
    folder = write_geobench("m-own", labels_in="pickle")
    for sample_id in folder.ids:
        with h5py.File(folder.path / f"{sample_id}.hdf5", "a") as file:
            file.attrs["pickle"] = str(pickle.dumps({}))
    with pytest.raises(DatasetError, match=r"m-own' has no labels: neither label_map\.json"):
        opened(folder.path)


# bands


def test_bands_are_read_pixel_for_pixel_in_the_order_and_dtype_asked(write_geobench: Writer) -> None:
    folder = write_geobench("m-bigearthnet", task="multi", classes=43)
    sample = opened(folder.path).read(2, ("SWIR_2", "BLUE", "NIR_NARROW"))
    pixels = folder.pixels["id_0002"]
    assert sample.sample_id == "id_0002"
    assert sample.image.dtype == np.int16
    expected = [pixels["12 - SWIR"], pixels["02 - Blue"], pixels["08A - Vegetation Red Edge"]]
    np.testing.assert_array_equal(sample.image, np.stack(expected))


TRUE_ORDER = {
    # torchgeo's EuroSAT: the source images hold B8A last.
    "m-eurosat": "B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 B12 B8A",
    # ServiceNow/geo-bench issue 29.
    "m-brick-kiln": "B01 B02 B03 B04 B05 B07 B8A B08 B11 B12 TCI_RED TCI_GREEN TCI_BLUE",
}
PUBLISHED_ORDER = "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12"


@pytest.mark.parametrize("name", ["m-eurosat", "m-brick-kiln"])
@pytest.mark.parametrize("bands", [None, "corrected"])
def test_wrong_band_names_are_mended_unless_told_otherwise(
    write_geobench: Writer, sentinel2_keys: tuple[str, ...], name: str, bands: str | None
) -> None:
    folder = write_geobench(name, classes=2)
    source = opened(folder.path, bands=bands)
    order = [canonical_band(b) for b in TRUE_ORDER[name].split()]
    assert list(source.info.bands) == order
    image = source.read(0, order).image
    for i, key in enumerate(sentinel2_keys):
        np.testing.assert_array_equal(image[i], folder.pixels["id_0000"][key], err_msg=f"{key} is {order[i]}")
    assert any("mended here" in note for note in source.info.notes)


@pytest.mark.parametrize("name", ["m-eurosat", "m-brick-kiln"])
def test_wrong_band_names_are_kept_as_published_when_asked(
    write_geobench: Writer, sentinel2_keys: tuple[str, ...], name: str
) -> None:
    folder = write_geobench(name, classes=2)
    source = opened(folder.path, bands="as-published")
    order = [canonical_band(b) for b in PUBLISHED_ORDER.split()]
    assert list(source.info.bands) == order
    image = source.read(0, order).image
    for i, key in enumerate(sentinel2_keys):
        np.testing.assert_array_equal(image[i], folder.pixels["id_0000"][key])
    assert any("kept as published" in note for note in source.info.notes)


@pytest.mark.parametrize("bands", ["corrected", "as-published"])
def test_dataset_without_known_faults_has_the_same_bands_either_way(write_geobench: Writer, bands: str) -> None:
    folder = write_geobench("m-bigearthnet", task="multi", classes=43)
    assert list(opened(folder.path, bands=bands).info.bands) == [canonical_band(b) for b in PUBLISHED_ORDER.split()]


@pytest.mark.parametrize("bands", ["RED,GREEN,BLUE", "Corrected", "published"])
def test_band_names_are_refused_where_the_files_name_their_own(write_geobench: Writer, bands: str) -> None:
    folder = write_geobench("m-eurosat")
    with pytest.raises(SettingError, match=r"choose 'corrected' .* or 'as-published'"):
        opened(folder.path, bands=bands)


@pytest.mark.parametrize(
    ("name", "keys", "bands"),
    [
        ("m-forestnet", LANDSAT_KEYS, ("BLUE", "GREEN", "RED", "NIR", "SWIR_1", "SWIR_2")),
        ("m-chesapeake", AERIAL_KEYS, ("BLUE", "GREEN", "NIR", "RED")),
        ("m-pv4ger", ("Blue", "Green", "Red"), ("BLUE", "GREEN", "RED")),
        (
            "m-NeonTree",
            ("Blue", "Canopy Height Model", "Green", "Red"),
            ("BLUE", "GREEN", "RED"),
        ),
    ],
)
def test_other_sensors_get_standard_names_in_sorted_key_order(
    write_geobench: Writer, name: str, keys: tuple[str, ...], bands: tuple[str, ...]
) -> None:
    task = "mask" if name in {"m-chesapeake", "m-NeonTree"} else "single"
    assert opened(write_geobench(name, keys, task=task, dtype="uint8").path).info.bands == bands


def test_radar_and_optical_bands_of_so2sat_do_not_hide_each_other(write_geobench: Writer) -> None:
    optical = (
        "02 - Blue",
        "03 - Green",
        "04 - Red",
        "05 - Vegetation Red Edge",
        "08 - NIR",
        "08A - Vegetation Red Edge",
    )
    radar = ("01 - VH.Real", "02 - VH.Imaginary", "03 - VV.Real", "04 - VV.Imaginary", "05 - VH.LEE Filtered")
    folder = write_geobench("m-so2sat", optical + radar, classes=17, dtype="float32", labels_in="pickle")
    assert len(opened(folder.path).info.bands) == 6
    source = opened(folder.path, bands="as-published")
    assert len(source.info.bands) == 11
    assert source.info.units == "reflectance"
    image = source.read(0, source.info.bands).image
    for layer, key in zip(image, sorted(optical + radar), strict=True):
        np.testing.assert_array_equal(layer, folder.pixels["id_0000"][key])


@pytest.mark.parametrize(
    ("alias", "name"), [("m-chesapeake-landcover", "m-chesapeake"), ("m-cashew-plantation", "m-cashew-plant")]
)
def test_older_folder_name_is_known_as_the_dataset_it_is(write_geobench: Writer, alias: str, name: str) -> None:
    keys = AERIAL_KEYS if "chesapeake" in name else ("02 - Blue", "03 - Green", "04 - Red")
    old, new = (opened(write_geobench(n, keys, task="mask", dtype="float32").path).info for n in (alias, name))
    assert (old.task, old.units, old.class_names, old.bands) == (new.task, new.units, new.class_names, new.bands)
    assert not any("not one of the twelve" in note for note in old.notes)


@pytest.mark.parametrize(
    ("dtype", "scale", "units"),
    [("uint8", 1, "uint8"), ("int16", 1, "dn"), ("float32", 1 / 250, "reflectance"), ("float32", 20, "dn")],
)
def test_units_of_an_unknown_dataset_are_judged_by_its_pixels(
    write_geobench: Writer, dtype: str, scale: float, units: str
) -> None:
    folder = write_geobench("m-own", ("Blue", "Green", "Red"), dtype=dtype)
    for sample_id in folder.ids:
        for key, data in folder.pixels[sample_id].items():
            replace_band(folder.path / f"{sample_id}.hdf5", key, (data * scale).astype(dtype))
    info = opened(folder.path).info
    assert info.units == units
    assert (info.task, info.num_classes) == ("classification", 2)
    assert any("not one of the twelve" in note for note in info.notes)


def test_units_given_by_option_win(write_geobench: Writer) -> None:
    assert opened(write_geobench("m-eurosat").path, units="reflectance").info.units == "reflectance"


def test_class_names_come_from_the_task_specifications_without_loading_their_classes(
    write_geobench: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["no panel", "panel"]
    module = types.ModuleType("geobench.task")
    for cls in ("TaskSpecifications", "Classification"):
        setattr(module, cls, type(cls, (), {"__module__": "geobench.task"}))
    monkeypatch.setitem(sys.modules, "geobench", types.ModuleType("geobench"))
    monkeypatch.setitem(sys.modules, "geobench.task", module)
    specs, label_type = module.TaskSpecifications(), module.Classification()
    label_type.__dict__.update(n_classes=2, class_names=names)
    specs.__dict__.update(label_type=label_type, patch_size=(6, 6))
    folder = write_geobench("m-pv4ger", ("Blue", "Green", "Red"), dtype="uint8")
    (folder.path / "task_specs.pkl").write_bytes(pickle.dumps(specs))
    monkeypatch.undo()
    assert opened(folder.path).info.class_names == tuple(names)
    assert "geobench" not in sys.modules


def test_classes_are_numbered_where_the_task_specifications_are_refused(write_geobench: Writer) -> None:
    folder = write_geobench("m-pv4ger", ("Blue", "Green", "Red"), dtype="uint8")
    (folder.path / "task_specs.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert opened(folder.path).info.class_names == ("0", "1")


# unusable samples


def test_truncated_file_is_refused_with_its_name_and_the_others_are_read(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", size=32)
    bad = folder.path / "id_0001.hdf5"
    whole = bad.read_bytes()
    source = opened(folder.path)
    for length in (0, 8, 200, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:length])
        with pytest.raises(SampleError, match=r"^sample 'id_0001' cannot be used: its file cannot be read") as caught:
            source.read(1, source.info.bands)
        assert caught.value.sample_id == "id_0001"
    assert source.read(0, ["RED"]).image.shape == (1, 32, 32)


def test_file_that_vanished_is_refused_with_its_name(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat")
    source = opened(folder.path)
    (folder.path / "id_0002.hdf5").unlink()
    with pytest.raises(SampleError, match=r"^sample 'id_0002'"):
        source.read(2, ["RED"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused_only_in_bands_that_are_asked_for(
    write_geobench: Writer, value: float
) -> None:
    folder = write_geobench("m-so2sat", ("02 - Blue", "03 - Green", "04 - Red"), classes=17, dtype="float32")
    spoilt = folder.pixels["id_0001"]["03 - Green"].copy()
    spoilt[0, 3] = value
    replace_band(folder.path / "id_0001.hdf5", "03 - Green", spoilt)
    source = opened(folder.path)
    with pytest.raises(SampleError, match=r"^sample 'id_0001' cannot be used: it holds NaN pixels"):
        source.read(1, ("RED", "GREEN"))
    assert source.read(1, ("RED", "BLUE")).image.shape == (2, 6, 6)


def test_sample_without_one_of_the_bands_is_refused_naming_it(write_geobench: Writer) -> None:
    folder = write_geobench("m-bigearthnet", task="multi", classes=43)
    replace_band(folder.path / "id_0003.hdf5", "11 - SWIR", None)
    with pytest.raises(SampleError, match=r"^sample 'id_0003' cannot be used: it has no band '11 - swir'"):
        opened(folder.path).read(3, ("RED", "SWIR_1"))


def test_bands_of_different_sizes_are_refused_with_the_sizes(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat")
    replace_band(folder.path / "id_0001.hdf5", "03 - Green", np.zeros((3, 3), np.int16))
    with pytest.raises(SampleError, match=r"its bands have shapes \[\(6, 6\), \(3, 3\)\], not one 2-D size"):
        opened(folder.path).read(1, ("RED", "GREEN"))


def test_band_with_a_length_one_axis_is_read_as_two_dimensional(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat")
    pixels = folder.pixels["id_0001"]["04 - Red"]
    replace_band(folder.path / "id_0001.hdf5", "04 - Red", pixels[:, :, None])
    np.testing.assert_array_equal(opened(folder.path).read(1, ["RED"]).image, pixels[None])


def test_file_without_any_band_is_refused(write_geobench: Writer) -> None:
    folder = write_geobench("m-chesapeake", (), task="mask")
    with pytest.raises(DatasetError, match=r"'id_0000\.hdf5' in .* holds no band"):
        opened(folder.path)


def test_damaged_attribute_is_refused_with_the_samples_name(write_geobench: Writer) -> None:
    folder = write_geobench("m-brick-kiln", labels_in="pickle")
    with h5py.File(folder.path / "id_0001.hdf5", "a") as file:
        file.attrs["pickle"] = str(file.attrs["pickle"])[:40]
    source = opened(folder.path)
    assert source.read(0, ["RED"]).target == folder.labels["id_0000"]
    with pytest.raises(SampleError, match=r"^sample 'id_0001' cannot be used: its pickle attribute is damaged"):
        source.read(1, ["RED"])


def test_attribute_that_would_run_code_is_refused_with_the_samples_name_and_does_not_run(
    write_geobench: Writer, tmp_path: Path
) -> None:
    folder = write_geobench("m-brick-kiln", labels_in="pickle")
    marker = tmp_path / "it-ran"
    with h5py.File(folder.path / "id_0001.hdf5", "a") as file:
        file.attrs["pickle"] = str(f"cos\nsystem\n(S'touch \"{marker}\"'\ntR.".encode())
    with pytest.raises(SampleError, match=r"^sample 'id_0001' cannot be used: its pickle is refused: .*os\.system"):
        opened(folder.path).read(1, ["RED"])
    assert not marker.exists()


# time and place


@pytest.mark.parametrize("date", ["2014-01-01", "2019-11-05"])
def test_time_is_midnight_utc_of_the_date_in_the_keys(write_geobench: Writer, date: str) -> None:
    folder = write_geobench("m-forestnet", LANDSAT_KEYS, classes=12, dtype="uint8", date=f"_{date}")
    source = opened(folder.path)
    assert source.info.has_time
    assert source.info.bands == ("BLUE", "GREEN", "RED", "NIR", "SWIR_1", "SWIR_2")
    sample = source.read(0, ("NIR",))
    assert sample.time == datetime.datetime.fromisoformat(f"{date}T00:00:00+00:00").timestamp()
    np.testing.assert_array_equal(sample.image[0], folder.pixels["id_0000"][f"05 - NIR_{date}"])


def test_each_sample_may_have_its_own_date(write_geobench: Writer) -> None:
    folder = write_geobench("m-forestnet", LANDSAT_KEYS, classes=12, dtype="uint8", date="_2014-01-01")
    with h5py.File(folder.path / "id_0001.hdf5", "a") as file:
        for key in list(file):
            file.move(key, key.replace("2014-01-01", "2016-02-29"))
    source = opened(folder.path)
    days = [datetime.date(1970, 1, 1) + datetime.timedelta(seconds=source.read(i, ["RED"]).time or 0) for i in (0, 1)]
    assert days == [datetime.date(2014, 1, 1), datetime.date(2016, 2, 29)]


def test_keys_without_dates_give_no_time(write_geobench: Writer) -> None:
    source = opened(write_geobench("m-eurosat").path)
    assert not source.info.has_time
    assert source.read(0, ["RED"]).time is None


@pytest.mark.parametrize("crs", [CRS.from_epsg(32633), UTM33_WKT, "EPSG:32633"])
def test_place_is_the_centre_by_the_pickled_transform_and_crs(
    write_geobench: Writer, geobench_class: type, crs: Any
) -> None:
    # UTM zone 33 N: the central meridian, 15 degrees east, is easting 500 000; the equator is northing 0.
    band = {
        "date": datetime.date(2020, 1, 1),
        "band_info": geobench_class("04 - Red"),
        "transform": Affine(10.0, 0.0, 499_970.0, 0.0, -10.0, 30.0),
        "crs": crs,
    }
    folder = write_geobench("m-brick-kiln", extra={"04 - Red": band}, size=6)
    source = opened(folder.path)
    assert source.info.has_location
    sample = source.read(1, ["RED"])
    assert (sample.lat, sample.lon) == pytest.approx((0.0, 15.0), abs=1e-6)
    assert sample.target == folder.labels["id_0001"]


@pytest.mark.parametrize(
    "band",
    [
        {"transform": None, "crs": UTM33_WKT},
        {"transform": Affine(10.0, 0.0, 5e5, 0.0, -10.0, 30.0), "crs": None},
        {"transform": Affine(10.0, 0.0, 5e5, 0.0, -10.0, 30.0), "crs": "nonsense"},
        {"transform": (10.0, 0.0, 5e5, 0.0, -10.0, 30.0), "crs": UTM33_WKT},
        {"transform": Affine(1.0, 0.0, 500.0, 0.0, -1.0, 300.0), "crs": "EPSG:4326"},
    ],
)
def test_dataset_whose_pickles_tell_no_usable_place_has_none(write_geobench: Writer, band: dict[str, Any]) -> None:
    source = opened(write_geobench("m-brick-kiln", extra={"04 - Red": band}).path)
    sample = source.read(0, ["RED"])
    assert not source.info.has_location
    assert (sample.lat, sample.lon) == (None, None)


def test_reading_imports_none_of_the_classes_that_a_pickle_names(write_geobench: Writer, geobench_class: type) -> None:
    folder = write_geobench("m-brick-kiln", labels_in="pickle", extra={"04 - Red": {"band_info": geobench_class("x")}})
    del sys.modules["geobench.dataset"], sys.modules["geobench"]
    source = opened(folder.path)
    assert targets(source) == folder.labels
    assert "geobench" not in sys.modules


# threads, revision, opening by name


def test_threads_read_the_same_as_one_after_the_other(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", samples=12, classes=10, size=32)
    source = opened(folder.path)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: source.read(i % 12, source.info.bands), range(96)))
    for i, sample in enumerate(together):
        alone = source.read(i % 12, source.info.bands)
        assert (sample.sample_id, sample.target) == (alone.sample_id, alone.target)
        np.testing.assert_array_equal(sample.image, alone.image)


def test_revision_tells_changed_labels_and_splits_apart(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", classes=10)
    everything = range(4)
    before = dict(opened(folder.path).revision(everything))
    assert dict(opened(folder.path).revision(everything)) == before

    partition = folder.path / "default_partition.json"
    kept = partition.read_text()
    partition.write_text(json.dumps({"train": ["id_0000"], "valid": ["id_0001", "id_0002"], "test": ["id_0003"]}))
    resplit = opened(folder.path).revision(everything)
    partition.write_text(kept)

    labels = folder.path / "label_map.json"
    kept = labels.read_text()
    labels.write_text(json.dumps({"0": list(folder.ids)}))
    relabelled = opened(folder.path).revision(everything)
    labels.write_text(kept)

    with h5py.File(folder.path / "id_0002.hdf5", "a") as file:
        file["13 - more"] = np.zeros((64, 64))
    refilled = opened(folder.path).revision(everything)

    assert {k for k in before if resplit[k] != before[k]} == {"splits"}
    assert {k for k in before if relabelled[k] != before[k]} == {"labels"}
    assert dict(refilled) == before, "pixels are told apart by their content hashes, not here"
    assert opened(folder.path).revision([0, 1])["splits"] != before["splits"]


@pytest.mark.parametrize("suite", ["", "classification_v1.0", "segmentation_v1.0"])
def test_dataset_is_found_by_name_in_its_suite(write_geobench: Writer, tmp_path: Path, suite: str) -> None:
    folder = write_geobench(str(Path(suite) / "m-eurosat"), classes=10)
    source = open_dataset("m-eurosat", tmp_path)
    assert isinstance(source, GeoBenchSource)
    assert list(source.sample_ids) == list(folder.ids)
    assert list(open_dataset(f"geobench:{folder.path}").sample_ids) == list(folder.ids)


def test_reading_leaves_the_files_alone(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.path.iterdir()}
    source = opened(folder.path)
    source.read(0, source.info.bands)
    source.revision([0])
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.path.iterdir()} == before


def test_m_eurosat_has_no_place_and_alphabetical_classes(write_geobench: Writer) -> None:
    # Its published files all record the place of the first image, and a class list in another order than the labels.
    band = {"transform": Affine(10.0, 0.0, 499_970.0, 0.0, -10.0, 30.0), "crs": "EPSG:32633"}
    source = opened(write_geobench("m-eurosat", extra={"04 - Red": band}, classes=10).path)
    assert not source.info.has_location
    assert source.read(0, ["RED"]).lat is None
    assert source.info.class_names == tuple(sorted(source.info.class_names))
    assert any("place of the first image" in note for note in source.info.notes)


@pytest.mark.parametrize(("mean", "mended"), [(1810.0, True), (12.0, False)])
def test_band_names_are_only_mended_where_the_statistics_say_they_are_wrong(
    write_geobench: Writer, mean: float, mended: bool
) -> None:
    folder = write_geobench("m-eurosat", classes=10)
    (folder.path / "band_stats.json").write_text(json.dumps({"10 - SWIR - Cirrus": {"mean": mean}}))
    source = opened(folder.path)
    at = source.info.bands.index("NIR_NARROW")
    assert source.info.band_sources[at] == ("12 - swir" if mended else "08a - vegetation red edge")
