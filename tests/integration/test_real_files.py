"""Genuine files, read by us and by h5py, rasterio or Pillow directly; skipped where they are missing."""

from __future__ import annotations

import ast
import csv
import json
import pickletools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.warp import transform_bounds

from embedcache.bands import canonical_band
from embedcache.datasets._spec import OpenOptions
from embedcache.datasets.folder import FolderSource
from embedcache.datasets.geobench import GeoBenchSource

pytestmark = pytest.mark.data

EUROSAT_MS_BANDS = "B01,B02,B03,B04,B05,B06,B07,B08,B09,B10,B11,B12,B8A"
BRICK_KILN_IDS = ("examples_0_9", "examples_0_12", "examples_0_19")
CHESAPEAKE_IDS = ("id_000051", "id_000138", "id_000184")


def with_partition(source: Path, target: Path, ids: Sequence[str]) -> Path:
    """Copy a folder of samples and give it a partition that names only those that are there."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for file in target.glob("*_partition.json"):
        file.unlink()
    (target / "default_partition.json").write_text(json.dumps({"train": list(ids), "valid": [], "test": []}))
    return target


def opened(path: Path, **options: Any) -> GeoBenchSource:
    return GeoBenchSource(path, OpenOptions(**options))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def eurosat(real_data: Path, tmp_path: Path) -> Path:
    return with_partition(real_data / "geobench_v1_samples" / "m-eurosat", tmp_path / "m-eurosat", ["id_1905"])


@pytest.fixture
def brick_kiln(real_data: Path, tmp_path: Path) -> Path:
    source = real_data / "geobench_v1_samples" / "brick_kiln_v1.0"
    return with_partition(source, tmp_path / "m-brick-kiln", BRICK_KILN_IDS)


@pytest.fixture
def chesapeake(real_data: Path, tmp_path: Path) -> Path:
    source = real_data / "geobench_v1_samples" / "cvpr_chesapeake_landcover"
    return with_partition(source, tmp_path / "m-chesapeake", CHESAPEAKE_IDS)


@pytest.mark.parametrize("bands", ["corrected", "as-published"])
def test_genuine_eurosat_sample_is_read_pixel_for_pixel(eurosat: Path, bands: str) -> None:
    source = opened(eurosat, bands=bands)
    sample = source.read(0, source.info.bands)
    with h5py.File(eurosat / "id_1905.hdf5") as file:
        np.testing.assert_array_equal(sample.image, np.stack([file[k][()] for k in sorted(file)]))
    assert sample.image.shape == (13, 64, 64)
    assert sample.image.dtype == np.int16
    assert (source.info.units, source.info.num_classes) == ("dn", 10)


def test_genuine_eurosat_sample_has_the_label_that_its_own_attribute_tells(eurosat: Path) -> None:
    with h5py.File(eurosat / "id_1905.hdf5") as file:
        opcodes = list(pickletools.genops(ast.literal_eval(file.attrs["pickle"])))
    after = next(i for i, (_, argument, _) in enumerate(opcodes) if argument == "label")
    label = next(argument for opcode, argument, _ in opcodes[after + 1 :] if opcode.name == "BININT1")
    assert opened(eurosat).read(0, ["RED"]).target == label == 1


def test_genuine_eurosat_near_infrared_is_plausible_only_with_the_names_mended(eurosat: Path) -> None:
    means = {
        bands: opened(eurosat, bands=bands).read(0, ["NIR_NARROW"]).image.mean()
        for bands in ("corrected", "as-published")
    }
    neighbour = opened(eurosat).read(0, ["NIR_BROAD"]).image.mean()
    assert means["corrected"] > 1500
    assert abs(means["corrected"] - neighbour) < 0.2 * neighbour, "865 nm is much like 832 nm over vegetation"
    assert means["as-published"] < 1000


def test_genuine_eurosat_cirrus_band_is_nearly_dark_only_with_the_names_mended(eurosat: Path) -> None:
    assert opened(eurosat).read(0, ["CIRRUS"]).image.mean() < 50
    assert opened(eurosat, bands="as-published").read(0, ["CIRRUS"]).image.mean() > 500


def test_genuine_brick_kiln_samples_are_read_pixel_for_pixel_with_their_label(brick_kiln: Path) -> None:
    source = opened(brick_kiln)
    assert source.info.class_names == ("not brick kiln", "brick kiln")
    for index, sample_id in enumerate(BRICK_KILN_IDS):
        sample = source.read(index, source.info.bands)
        with h5py.File(brick_kiln / f"{sample_id}.hdf5") as file:
            np.testing.assert_array_equal(sample.image, np.stack([file[k][()] for k in sorted(file)]))
        assert sample.target == 0
        assert sample.image.shape == (13, 64, 64)


def test_genuine_brick_kiln_true_colour_follows_red_green_and_blue(brick_kiln: Path) -> None:
    sample = opened(brick_kiln).read(0, ("RED", "TCI_RED", "GREEN", "TCI_GREEN", "BLUE", "TCI_BLUE"))
    for measured, shown in sample.image.reshape(3, 2, -1):
        assert shown.max() <= 255 < measured.max()
        assert np.corrcoef(measured, shown)[0, 1] > 0.8


def test_genuine_chesapeake_samples_are_read_with_their_masks(chesapeake: Path) -> None:
    source = opened(chesapeake)
    assert (source.info.task, source.info.units, source.info.num_classes) == ("segmentation", "unit", 7)
    for index, sample_id in enumerate(CHESAPEAKE_IDS):
        sample = source.read(index, ("RED", "GREEN", "BLUE", "NIR"))
        with h5py.File(chesapeake / f"{sample_id}.hdf5") as file:
            np.testing.assert_array_equal(
                sample.image, np.stack([file[k][()] for k in ("Red", "Green", "Blue", "NearInfrared")])
            )
            np.testing.assert_array_equal(sample.target, file["label"][()])
        assert 0 <= sample.image.min() <= sample.image.max() <= 1


def test_genuine_chesapeake_masks_hold_the_published_share_of_each_class(chesapeake: Path) -> None:
    source = opened(chesapeake)
    published = json.loads((chesapeake / "label_stats.json").read_text())
    for index, sample_id in enumerate(CHESAPEAKE_IDS):
        mask = source.read(index, ["RED"]).target
        shares = np.bincount(mask.ravel(), minlength=7) / mask.size
        np.testing.assert_allclose(shares, published[sample_id], atol=1e-6)


def test_genuine_eurosat_ms_table_is_read_with_labels_splits_and_pixels(real_data: Path) -> None:
    path = real_data / "eurosat_ms" / "split.csv"
    lines = table(path)
    source = FolderSource(path, OpenOptions(bands=EUROSAT_MS_BANDS))
    assert [canonical_band(b) for b in EUROSAT_MS_BANDS.split(",")] == list(source.info.bands)
    assert (source.info.units, source.info.has_location) == ("dn", True)
    assert list(source.splits) == [line["split"] for line in lines]
    for index in range(0, len(lines), 4):
        sample = source.read(index, source.info.bands)
        assert sample.sample_id == lines[index]["path"]
        assert sample.target == int(lines[index]["label"])
        assert source.info.class_names[int(lines[index]["label"])] == lines[index]["class"]
        with rasterio.open(path.parent / lines[index]["path"]) as file:
            np.testing.assert_array_equal(sample.image, file.read())


def test_genuine_eurosat_ms_places_are_inside_their_images_and_in_europe(real_data: Path) -> None:
    path = real_data / "eurosat_ms" / "split.csv"
    source = FolderSource(path, OpenOptions(bands=EUROSAT_MS_BANDS))
    for index in range(0, len(source.sample_ids), 10):
        sample = source.read(index, ["RED"])
        assert sample.lat is not None
        assert sample.lon is not None
        with rasterio.open(path.parent / sample.sample_id) as file:
            west, south, east, north = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        assert west < sample.lon < east
        assert south < sample.lat < north
        assert 34 < sample.lat < 72
        assert -25 < sample.lon < 45


def test_genuine_eurosat_ms_band_that_lies_last_is_the_narrow_near_infrared(real_data: Path) -> None:
    path = real_data / "eurosat_ms" / "split.csv"
    source = FolderSource(path, OpenOptions(bands=EUROSAT_MS_BANDS))
    forest = source.info.class_names.index("Forest")
    rows = [i for i, line in enumerate(table(path)) if int(line["label"]) == forest]
    pairs = np.array([source.read(i, ("NIR_BROAD", "NIR_NARROW")).image.mean(axis=(1, 2)) for i in rows])
    np.testing.assert_allclose(pairs[:, 1], pairs[:, 0], rtol=0.25)
    assert pairs.min() > 1000


def test_genuine_eurosat_rgb_table_is_read_with_labels_splits_and_pixels(real_data: Path) -> None:
    path = real_data / "eurosat_rgb" / "split.csv"
    lines = table(path)
    source = FolderSource(path, OpenOptions())
    assert (source.info.bands, source.info.units) == (("RED", "GREEN", "BLUE"), "uint8")
    assert list(source.sample_ids) == [line["path"] for line in lines]
    assert list(source.splits) == [line["split"] for line in lines]
    assert source.info.num_classes == 10
    for index in range(0, len(lines), 60):
        sample = source.read(index, source.info.bands)
        assert sample.target == int(lines[index]["label"])
        assert source.info.class_names[sample.target] == lines[index]["class"]
        with Image.open(path.parent / lines[index]["path"]) as picture:
            np.testing.assert_array_equal(sample.image, np.moveaxis(np.asarray(picture), 2, 0))
