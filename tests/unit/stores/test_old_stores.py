"""Stores that older versions wrote are read for ever: these were written by them and are never written again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from embedcache_stores import FeatureStore, FeatureWriter, FingerprintMismatchError, StoreSpec, find_stores
from embedcache_stores.repair import reopen
from embedcache_stores.verify import verify_store

OLD = Path(__file__).with_name("old")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "v1", tmp_path / "v1"))


def test_version_1_is_read_value_for_value(old: Path) -> None:
    (manifest,) = find_stores(old)
    assert (manifest.schema_version, manifest.dataset, manifest.name, manifest.state) == (
        1,
        "m-old",
        "tiny",
        "complete",
    )
    assert manifest.fingerprint == manifest.recipe
    store = FeatureStore(manifest.place)
    rows = np.arange(10)
    np.testing.assert_array_equal(store.read("pooled_mean", rows), np.arange(40).reshape(10, 4))
    np.testing.assert_array_equal(store.read("level_0", rows[::-1]), np.arange(180).reshape(10, 2, 3, 3)[::-1])
    np.testing.assert_array_equal(store.column("label"), rows % 2)
    assert store.sample_ids[3] == "tile-3/é.tif"
    assert store.split.tolist()[:4] == ["train", "val", "test", "train"]
    assert store.levels[0].reduction == 16
    lazy = xr.open_zarr(manifest.path)
    np.testing.assert_array_equal(lazy.pooled_mean, store.read("pooled_mean", rows))
    np.testing.assert_array_equal(store.to_xarray().level_0, store.read("level_0", rows))


def test_version_1_is_verified_and_repaired(old: Path) -> None:
    path = old / "m-old" / "tiny.zarr"
    assert verify_store(path).faults == []
    (path / "level_0" / "c.1.0.0.0").unlink()
    found = verify_store(path)
    assert found.bad_groups == [1]
    reopen(path, drop=found.bad_groups)  # its row groups' record is made from the store itself
    manifest = next(iter(find_stores(old)))
    assert (manifest.state, manifest.groups_done) == ("partial", 2)


def test_version_1_in_the_way_is_refused_by_what_differs(old: Path) -> None:
    spec = StoreSpec(sample_ids=("a",), arrays=(), columns=(), provenance={"recipe": 2}, rows_per_group=4)
    with pytest.raises(FingerprintMismatchError, match=r"backbone is .*'tiny'.*and 1 more.*--rebuild"):
        FeatureWriter(old / "m-old" / "tiny.zarr", spec)
