"""Augmented views as an axis of stored arrays: every reader gives the view that is asked for, and stores without are as
they were."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from embedcache_stores import FeatureStore, StoreNotFoundError, StoreSpec
from embedcache_stores.chunks import layout_for
from embedcache_stores.copying import copy_store
from embedcache_stores.encodings import DTYPES, decode
from embedcache_stores.manifest import GROUPS_FILE
from embedcache_stores.repair import reopen
from embedcache_stores.verify import verify_store

Build = Callable[..., Any]
VIEWS = ("identity", "hflip", "rot90")
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one row a group": {"rows_per_group": 1},
    "zstd": {"compression": "zstd"},
    "sharded": {"rows_per_chunk": 2},
    "sharded, compressed": {"rows_per_chunk": 1, "compression": "lz4"},
}


def viewed(small: Build, rows: int = 23, dtype: str = "float16", **changes: Any) -> Any:
    """A store whose features have three views, and whose mask has none."""
    made = small(rows=rows, dtype="float32" if dtype != "float16" else dtype)
    on_disk, encoding = DTYPES[dtype]
    arrays = tuple(
        a if a.name == "mask" else dataclasses.replace(a, views=3, dtype=on_disk, encoding=encoding)
        for a in made.spec.arrays
    )
    rng = np.random.default_rng(1)
    values = {
        a.name: made.arrays["mask"]
        if a.name == "mask"
        else (100 * rng.normal(size=(rows, 3, *a.shape))).astype(made.arrays[a.name].dtype)
        for a in arrays
    }
    spec = dataclasses.replace(made.spec, arrays=arrays, views=VIEWS, **changes)
    return dataclasses.replace(made, spec=spec, arrays=values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_every_reader_gives_the_view_that_is_asked_for(small: Build, tmp_path: Path, layout: str, place: str) -> None:
    made = viewed(small, **LAYOUTS[layout])
    where: Any = tmp_path / "b.zarr" if place == "disk" else f"memory://{tmp_path.name}/b.zarr"
    made.write(where)
    store = FeatureStore(where)
    assert store.views == VIEWS
    assert not verify_store(where).faults
    whole = store.to_xarray()
    assert whole["view"].values.tolist() == list(VIEWS)
    rng = np.random.default_rng(0)
    picks = [np.arange(23), np.arange(5, 17), rng.integers(0, 23, 40), np.array([], dtype=np.int64)]
    for name in ("pooled_mean", "level_0"):
        values = made.arrays[name]
        np.testing.assert_array_equal(whole[name].values, values)
        for number, view in enumerate(VIEWS):
            np.testing.assert_array_equal(whole[name].sel(view=view).values, values[:, number])
            np.testing.assert_array_equal(store.to_dask(name, view).compute(scheduler="synchronous"), values[:, number])
        for rows in picks:
            np.testing.assert_array_equal(store.read(name, rows), values[rows, 0])
            np.testing.assert_array_equal(store.read(name, rows, "rot90"), values[rows, 2])
            drawn = rng.integers(0, 3, len(rows))
            np.testing.assert_array_equal(store.read(name, rows, drawn), values[rows, drawn])
        every = np.repeat(np.arange(4, 9), 3)
        np.testing.assert_array_equal(
            store.read(name, every, np.tile(np.arange(3), 5)), values[4:9].reshape(-1, *values.shape[2:])
        )
    np.testing.assert_array_equal(store.read("mask", picks[2]), made.arrays["mask"][picks[2]])
    if place == "disk":
        assert xr.open_zarr(where)["level_0"].dims == ("sample", "view", "channel_0", "y_0", "x_0")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("layout", ["plain", "sharded"])
def test_views_of_encoded_arrays(small: Build, tmp_path: Path, dtype: str, layout: str) -> None:
    made = viewed(small, dtype=dtype, **LAYOUTS[layout])
    store = FeatureStore(made.write(tmp_path / "b.zarr"))
    rows = np.random.default_rng(0).permutation(23)
    for name in ("pooled_mean", "level_0"):
        values, spec = made.arrays[name], store.spec(name)
        whole = decode(store.read_whole(name, slice(0, 23)), spec, store.scale(name, np.arange(23)))
        bound = np.abs(values) * 2**-8 if dtype == "bfloat16" else np.abs(values).max() / 127
        assert (np.abs(whole - values) <= bound).all()
        for number, view in enumerate(VIEWS):
            np.testing.assert_array_equal(store.read(name, rows, view), whole[rows, number])
            np.testing.assert_array_equal(store.to_dask(name, view).compute(scheduler="synchronous"), whole[:, number])
            np.testing.assert_array_equal(store.to_xarray()[name].sel(view=view).values, whole[:, number])


def test_a_store_without_views_has_the_bytes_and_records_it_had(small: Build, tmp_path: Path) -> None:
    path = small().write(tmp_path / "b.zarr")
    recorded = json.loads((path / "zarr.json").read_text())["attributes"]["embedcache"]
    assert "views" not in recorded
    assert all("views" not in a for a in recorded["arrays"])
    assert not (path / "view").exists()
    store = FeatureStore(path)
    assert store.views == ("identity",)
    assert "view" not in store.to_xarray().variables


def test_wrong_views_are_named(small: Build, tmp_path: Path) -> None:
    store = FeatureStore(viewed(small).write(tmp_path / "b.zarr"))
    rows = np.arange(3)
    with pytest.raises(
        StoreNotFoundError, match="pooled_mean of store 'b' has no view 'vflip'; it has identity, hflip"
    ):
        store.read("pooled_mean", rows, "vflip")
    with pytest.raises(StoreNotFoundError, match="mask of store 'b' has no view 'hflip'; it has identity "):
        store.read("mask", rows, "hflip")
    with pytest.raises(StoreNotFoundError, match="no view 'vflip'"):
        store.to_dask("pooled_mean", "vflip")
    with pytest.raises(IndexError, match=r"views must be in 0\.\.2, got 0\.\.3"):
        store.read("level_0", rows, np.array([0, 3, 1]))
    with pytest.raises(IndexError, match="one a row"):
        store.read("level_0", rows, np.array([0]))
    made = viewed(small).spec
    for wrong in (("identity",), ("hflip", "identity", "rot90"), ("identity", "hflip"), ("identity", "hflip", "hflip")):
        with pytest.raises(ValueError, match="views must be"):
            dataclasses.replace(made, views=wrong)


def test_verify_finds_a_view_that_was_changed_and_repair_puts_it_right(small: Build, tmp_path: Path) -> None:
    made = viewed(small)
    path = made.write(tmp_path / "b.zarr")
    file = path / "level_0" / "c.2.0.0.0.0"
    raw = bytearray(file.read_bytes())
    raw[-20] ^= 1  # in the last view of the group's last row
    file.write_bytes(raw)
    found = verify_store(path)
    assert [f.group for f in found.faults] == [2]
    reopen(path, drop=found.bad_groups)
    made.write(path)
    assert not verify_store(path).faults
    (path / GROUPS_FILE).unlink()  # what repair goes by is made again from the arrays, with all views
    reopen(path)
    made.write(path)
    assert not verify_store(path).faults
    (path / "view" / "c.0").unlink()
    assert any(f.file == "view" for f in verify_store(path).faults)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_copy_in_a_bucket_has_every_view(small: Build, tmp_path: Path, dtype: str) -> None:
    source = FeatureStore(viewed(small, dtype=dtype).write(tmp_path / "b.zarr"))
    copied = FeatureStore(copy_store(source, f"memory://{tmp_path.name}/d/b.zarr", compression="zstd"))
    assert copied.views == VIEWS
    assert copied.manifest.fingerprint == source.manifest.fingerprint
    for view in VIEWS:
        np.testing.assert_array_equal(
            copied.read("level_0", np.arange(23), view), source.read("level_0", np.arange(23), view)
        )


def test_row_groups_of_views_hold_enough_rows_and_shards_have_a_chunk_a_view(small: Build, tmp_path: Path) -> None:
    map_bytes = 1_700_000
    assert layout_for(map_bytes, 10_000, local=True)[0] == 16
    assert layout_for(8 * map_bytes, 10_000, local=True, views=8)[0] == 8
    spec: StoreSpec = viewed(small, rows_per_chunk=2).spec
    made = dataclasses.replace(viewed(small), spec=spec)
    store = FeatureStore(made.write(tmp_path / "b.zarr"))
    assert store.array("level_0").chunks[:2] == (2, 1)
    assert store.array("mask").chunks[:1] == (2,)
