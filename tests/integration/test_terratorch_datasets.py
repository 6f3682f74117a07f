"""Our GEO-Bench reader beside TerraTorch's own loaders, on the same small files."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

from embedcache.backbones._terratorch import repair_torchvision
from embedcache.datasets._spec import OpenOptions
from embedcache.datasets.geobench import GeoBenchSource

SENTINEL2_KEYS = (
    "01 - Coastal aerosol",
    "02 - Blue",
    "03 - Green",
    "04 - Red",
    "05 - Vegetation Red Edge",
    "06 - Vegetation Red Edge",
    "07 - Vegetation Red Edge",
    "08 - NIR",
    "08A - Vegetation Red Edge",
    "09 - Water vapour",
    "10 - SWIR - Cirrus",
    "11 - SWIR",
    "12 - SWIR",
)
SPLITS = {"train": ["a_0", "a_1", "a_2", "a_3"], "valid": ["b_0", "b_1"], "test": ["c_1", "c_0"]}


@pytest.fixture(scope="module")
def loaders() -> ModuleType:
    """Return ``terratorch.datasets``; importing it takes seconds."""
    repair_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import terratorch.datasets
    return terratorch.datasets


def write(folder: Path, keys: tuple[str, ...], multilabel: bool) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(7)
    ids = [i for part in SPLITS.values() for i in part]
    labels: dict[str, Any] = {}
    for n, sample_id in enumerate(ids):
        labels[sample_id] = rng.integers(0, 2, 43).tolist() if multilabel else (3 * n) % 10
        with h5py.File(folder / f"{sample_id}.hdf5", "w") as file:
            for key in keys:
                file[key] = rng.integers(-5, 12000, (16, 16)).astype(np.int16)
            file.attrs["pickle"] = str(pickle.dumps({"label": labels[sample_id], "bands_order": list(keys)}))
    by_class = {str(c): [i for i in ids if labels[i] == c] for c in range(10)}
    (folder / ("label_stats.json" if multilabel else "label_map.json")).write_text(
        json.dumps(labels if multilabel else by_class)
    )
    (folder / "default_partition.json").write_text(json.dumps(SPLITS))
    (folder / "0.50x_train_partition.json").write_text(json.dumps({**SPLITS, "train": SPLITS["train"][::2]}))
    return folder


def compare(ours: GeoBenchSource, theirs: Any, split: str, bands: tuple[str, ...]) -> int:
    """Assert that one split is the same to both, and return how many samples it has."""
    rows = [i for i, s in enumerate(ours.splits) if s == split]
    assert len(theirs) == len(rows)
    for position, row in enumerate(rows):
        mine, other = ours.read(row, bands), theirs[position]
        assert theirs.image_files[position].stem == mine.sample_id
        np.testing.assert_array_equal(mine.image, np.asarray(other["image"]))
        np.testing.assert_array_equal(np.asarray(mine.target), np.asarray(other["label"]))
    return len(rows)


@pytest.mark.parametrize("partition", ["default", "0.50x_train"])
def test_terratorch_reads_the_same_pixels_and_labels_of_eurosat(
    tmp_path: Path, loaders: ModuleType, partition: str
) -> None:
    folder = write(tmp_path / "m-eurosat", SENTINEL2_KEYS, multilabel=False)
    ours = GeoBenchSource(folder, OpenOptions(bands="as-published", partition=partition))
    bands = loaders.MEuroSATNonGeo.all_band_names
    assert ours.info.bands == bands
    counts = [
        compare(ours, loaders.MEuroSATNonGeo(str(tmp_path), split=split, partition=partition), split, bands)
        for split in ("train", "val", "test")
    ]
    assert counts == [4 if partition == "default" else 2, 2, 2]


def test_terratorch_reads_the_same_pixels_for_bands_in_another_order(tmp_path: Path, loaders: ModuleType) -> None:
    folder = write(tmp_path / "m-eurosat", SENTINEL2_KEYS, multilabel=False)
    ours = GeoBenchSource(folder, OpenOptions(bands="as-published"))
    bands = ("SWIR_2", "RED", "GREEN", "BLUE", "NIR_NARROW")
    assert compare(ours, loaders.MEuroSATNonGeo(str(tmp_path), split="train", bands=bands), "train", bands) == 4


def test_mended_names_are_other_names_for_what_terratorch_reads(tmp_path: Path, loaders: ModuleType) -> None:
    """The workaround that TerraTorch users need today, by the names that its loader has for these bands."""
    folder = write(tmp_path / "m-eurosat", SENTINEL2_KEYS, multilabel=False)
    mended = GeoBenchSource(folder, OpenOptions())
    true = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")
    theirs = loaders.MEuroSATNonGeo(
        str(tmp_path), split="test", bands=("BLUE", "GREEN", "RED", "SWIR_2", "CIRRUS", "SWIR_1")
    )
    assert compare(mended, theirs, "test", true) == 2


def test_terratorch_reads_the_same_pixels_and_labels_of_bigearthnet(tmp_path: Path, loaders: ModuleType) -> None:
    keys = tuple(k for k in SENTINEL2_KEYS if "Cirrus" not in k)
    folder = write(tmp_path / "m-bigearthnet", keys, multilabel=True)
    ours = GeoBenchSource(folder, OpenOptions(bands="as-published"))
    bands = loaders.MBigEarthNonGeo.all_band_names
    assert ours.info.bands == bands
    assert (ours.info.task, ours.info.num_classes) == ("multilabel", 43)
    counts = [
        compare(ours, loaders.MBigEarthNonGeo(str(tmp_path), split=split), split, bands)
        for split in ("train", "val", "test")
    ]
    assert counts == [4, 2, 2]
