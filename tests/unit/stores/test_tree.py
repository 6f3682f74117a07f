"""A whole cache as one lazy tree, and what xarray shows of each store in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from embedcache_stores import NotAStoreError, StoreNotFoundError, open_cache_tree
from embedcache_stores.copying import copy_store
from embedcache_stores.feature_store import FeatureStore

Build = Callable[..., Any]


@pytest.fixture
def cache(small: Build, tmp_path: Path) -> Path:
    """Two datasets of different lengths; three complete stores, one that is not, and a stranger."""
    small().write(tmp_path / "m-a" / "vit.zarr")
    small(seed=1).write(tmp_path / "m-a" / "vit@tag.zarr")
    small(rows=21, seed=2).write(tmp_path / "m-b" / "vit.zarr")
    small().write(tmp_path / "m-b" / "half.zarr", [0], commit=False)
    (tmp_path / "m-b" / "notes.zarr").mkdir()
    return tmp_path


def test_every_complete_store_is_a_node_and_others_are_named(cache: Path) -> None:
    tree = open_cache_tree(cache)
    assert [node.path for node in tree.leaves] == ["/m-a/vit", "/m-a/vit@tag", "/m-b/vit"]
    assert tree.attrs["incomplete"] == ["/m-b/half"]
    assert tree["m-a"].children.keys() == {"vit", "vit@tag"}
    store = FeatureStore(cache / "m-b" / "vit.zarr")
    assert tree["m-b/vit"].attrs["fingerprint"] == store.manifest.fingerprint
    assert tree["m-b/vit"].sizes["sample"] == 21


def test_values_and_coordinates_are_those_of_the_store(cache: Path, small: Build) -> None:
    made = small(rows=21, seed=2)
    node = open_cache_tree(cache)["m-b/vit"]
    assert set(node.coords) == {"sample_id", "split", "lat"}
    np.testing.assert_array_equal(node.level_0.values, made.arrays["level_0"])
    assert node.split.values.tolist() == made.columns["split"].tolist()
    chosen = node.pooled_mean.where((node.split == "test").compute(), drop=True)
    np.testing.assert_array_equal(chosen.values, made.arrays["pooled_mean"][made.columns["split"] == "test"])


def test_a_function_is_mapped_over_the_cache(cache: Path) -> None:
    means = open_cache_tree(cache).map_over_datasets(lambda ds: ds[["pooled_mean"]].mean("sample") if ds else ds)
    assert means["m-a/vit"].pooled_mean.shape == (5,)
    assert not np.array_equal(means["m-a/vit"].pooled_mean, means["m-a/vit@tag"].pooled_mean)


def test_nothing_is_computed_by_opening(cache: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        tree = open_cache_tree(cache)
        with pytest.raises(AssertionError, match="computed"):
            tree["m-a/vit"].level_0.compute()


def test_no_chunk_of_a_large_array_is_opened(cache: Path) -> None:
    script = """
import os, sys
from embedcache_stores import open_cache_tree
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
open_cache_tree(sys.argv[1])
inside = sorted({os.path.relpath(name, sys.argv[1]) for name in opened if name.startswith(sys.argv[1])})
print("\\n".join(inside))
"""
    done = subprocess.run([sys.executable, "-c", script, cache], capture_output=True, text=True, check=True)
    chunks = [line for line in done.stdout.splitlines() if "/c." in line]
    assert [line for line in chunks if "/pooled_mean/" in line or "/level_0/" in line or "/mask/" in line] == []
    assert "m-a/vit.zarr/zarr.json" in done.stdout.splitlines()


def test_one_dataset_alone(cache: Path) -> None:
    assert [n.path for n in open_cache_tree(cache, "m-b").leaves] == ["/m-b/vit"]
    with pytest.raises(StoreNotFoundError, match="no store of dataset 'm-z'; it has stores of m-a, m-b"):
        open_cache_tree(cache, "m-z")


def test_caches_in_memory_open_alike(cache: Path) -> None:
    store = FeatureStore(cache / "m-a" / "vit.zarr")
    url = f"memory://{cache.name}"
    copy_store(store, f"{url}/m-a/vit.zarr")
    tree = open_cache_tree(url)
    np.testing.assert_array_equal(tree["m-a/vit"].level_0.values, store.read("level_0", np.arange(store.rows)))


def test_no_cache_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no cache at"):
        open_cache_tree(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotAStoreError, match="is a file"):
        open_cache_tree(tmp_path / "file")
