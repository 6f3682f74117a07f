"""The read side, and that plain xarray needs none of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcache_stores import FeatureStore, NotAStoreError, StoreNotFoundError, find_stores, open_store, peek_manifest

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def made(small: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FeatureStore]:
    content = small(rows=21, rows_per_group=4)
    return content, FeatureStore(content.write(tmp_path_factory.mktemp("cache") / "m-x" / "b.zarr"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 20), max_size=30))
def test_reading_rows_equals_numpy_indexing(made: tuple[Any, FeatureStore], rows: list[int]) -> None:
    content, store = made
    at = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(store.read("level_0", at), content.arrays["level_0"][at])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 20), max_size=30), name=st.sampled_from(["pooled_mean", "mask", "label", "lat"]))
def test_reading_rows_of_any_array_or_column_equals_numpy_indexing(
    made: tuple[Any, FeatureStore], rows: list[int], name: str
) -> None:
    content, store = made
    expected = {**content.arrays, **content.columns}[name][np.array(rows, dtype=np.int64)]
    got = store.read(name, np.array(rows, dtype=np.int64))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("row", [21, -1])
def test_rows_outside_are_refused(made: tuple[Any, FeatureStore], row: int) -> None:
    with pytest.raises(IndexError, match=rf"0\.\.20, got .*{row}"):
        made[1].read("level_0", np.array([3, row]))


def test_columns_are_read_whole_and_strings_as_python_text(made: tuple[Any, FeatureStore]) -> None:
    content, store = made
    for name, values in content.columns.items():
        np.testing.assert_array_equal(store.column(name), values)
        assert store.column(name).dtype == values.dtype
    assert store.split.tolist() == content.columns["split"].tolist()
    assert store.sample_ids.tolist() == list(content.spec.sample_ids)
    assert {type(v) for v in (*store.split, *store.sample_ids)} == {str}


def test_a_store_knows_what_it_has(made: tuple[Any, FeatureStore]) -> None:
    store = made[1]
    assert [store.has(n) for n in ("level_0", "mask", "label", "split")] == [True] * 4
    assert not store.has("level_1")
    assert (store.name, store.rows) == ("b", 21)
    assert repr(store) == "<FeatureStore m-x/b: 21 rows, pooled_mean[5], level_0[3, 4, 2], mask[6, 6]>"


def test_dask_arrays_are_lazy_and_equal(made: tuple[Any, FeatureStore]) -> None:
    content, store = made

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        lazy = store.to_dask("level_0")
        with pytest.raises(AssertionError, match="computed"):
            lazy.compute()
    assert lazy.chunks[0] == (4, 4, 4, 4, 4, 1)
    np.testing.assert_array_equal(lazy.compute(), content.arrays["level_0"])


def test_xarray_is_lazy_and_equal(made: tuple[Any, FeatureStore]) -> None:
    content, store = made

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        dataset = store.to_xarray()
        with pytest.raises(AssertionError, match="computed"):
            dataset.level_0.compute()
    for name, values in content.arrays.items():
        np.testing.assert_array_equal(dataset[name].values, values)


XARRAY_ALONE = """
import sys
import numpy as np
import xarray as xr
ds = xr.open_zarr(sys.argv[1])
want = np.load(sys.argv[2], allow_pickle=True)
assert ds.sample_id.dims == ds.split.dims == ("sample",)
assert {"sample_id", "split", "lat"} == set(ds.coords), ds.coords
assert ds.sample_id.values.tolist() == want["sample_id"].tolist()
assert ds.split.values.tolist() == want["split"].tolist()
for name in ("label", "lat", "pooled_mean", "level_0", "mask"):
    np.testing.assert_array_equal(ds[name].values, want[name])
    assert ds[name].dtype == want[name].dtype, name
train = ds.pooled_mean.where((ds.split == "train").compute(), drop=True)
np.testing.assert_array_equal(train.values, want["pooled_mean"][want["split"] == "train"])
assert ds.attrs["title"] == "small"
print(sorted(m for m in sys.modules if m.startswith("embedcache")))
"""


def test_plain_xarray_reads_a_store_in_a_process_without_embedcache(
    made: tuple[Any, FeatureStore], tmp_path: Path
) -> None:
    content, store = made
    ids = np.array(content.spec.sample_ids, dtype=object)
    np.savez(tmp_path / "want.npz", sample_id=ids, **content.arrays, **content.columns)
    command = [sys.executable, "-W", "error", "-c", XARRAY_ALONE, store.path, tmp_path / "want.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_an_unknown_array_lists_those_there(made: tuple[Any, FeatureStore]) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no array 'level_9'.*pooled_mean, level_0, mask"):
        made[1].array("level_9")


def test_xarray_shows_coordinates_and_features(made: tuple[Any, FeatureStore]) -> None:
    content, store = made
    dataset = store.to_xarray()
    assert set(dataset.coords) == {"sample_id", "split", "lat"}
    assert dataset.level_0.dims == ("sample", "channel_0", "y_0", "x_0")
    chosen = dataset.pooled_mean.where((dataset.split == "val").compute(), drop=True)
    np.testing.assert_array_equal(chosen, content.arrays["pooled_mean"][content.columns["split"] == "val"])


def test_a_flipped_bit_is_noticed(small: Build, tmp_path: Path) -> None:
    store = FeatureStore(small().write(tmp_path / "b.zarr"))
    chunk = store.path / "level_0" / "c.1.0.0.0"
    raw = bytearray(chunk.read_bytes())
    raw[10] ^= 1
    chunk.write_bytes(raw)
    store.read("level_0", np.arange(4))
    with pytest.raises(ValueError, match="checksum"):
        store.read("level_0", np.arange(4, 8))


@pytest.mark.parametrize("name", ["pooled_mean", "level_0", "mask", "sample_id", "split", "label", "lat"])
@pytest.mark.parametrize("place", [0, 0.5, 0.999])
def test_a_flipped_byte_anywhere_in_any_chunk_is_noticed(small: Build, tmp_path: Path, name: str, place: float) -> None:
    store = FeatureStore(small().write(tmp_path / "b.zarr"))
    chunk = next(p for p in sorted((store.path / name).iterdir()) if p.name.startswith("c."))
    raw = bytearray(chunk.read_bytes())
    raw[int(place * len(raw))] ^= 0xFF
    chunk.write_bytes(raw)
    with pytest.raises(ValueError, match="checksum"):
        store.column(name)
    with pytest.raises(ValueError, match="checksum"):
        store.to_xarray()[name].compute()


def test_opening_reads_one_small_file_and_nothing_else(small: Build, tmp_path: Path) -> None:
    script = """
import os, sys
from embedcache_stores import FeatureStore
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in ("open", "os.listdir") else None)
store = FeatureStore(sys.argv[1])
print([os.path.relpath(name, sys.argv[1]) for name in opened if name.startswith(sys.argv[1])])
"""
    path = small(rows=80, rows_per_group=2).write(tmp_path / "b.zarr")
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == "['zarr.json']\n"


def test_opening_touches_a_constant_number_of_files(small: Build, tmp_path: Path) -> None:
    script = """
import sys
from embedcache_stores import FeatureStore
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
store = FeatureStore(sys.argv[1])
store.array("level_0")
print(len([name for name in opened if name.startswith(sys.argv[1])]))
"""
    counts = []
    for rows in (8, 80):
        path = small(rows=rows, rows_per_group=2).write(tmp_path / f"{rows}.zarr")
        done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
        counts.append(int(done.stdout))
    assert counts[0] == counts[1] <= 4


def test_stores_are_found_by_dataset_and_name(small: Build, tmp_path: Path) -> None:
    for dataset, name in (("m-b", "y"), ("m-a", "z"), ("m-a", "x")):
        small().write(tmp_path / dataset / f"{name}.zarr")
    small().write(tmp_path / "m-a" / "part.zarr", [0], commit=False)
    (tmp_path / "m-a" / "foreign.zarr").mkdir()
    found = [(m.dataset, m.name, m.state, m.groups_done) for m in find_stores(tmp_path)]
    assert found == [
        ("m-a", "part", "partial", 1),
        ("m-a", "x", "complete", 3),
        ("m-a", "z", "complete", 3),
        ("m-b", "y", "complete", 3),
    ]


def test_opening_what_is_not_there_lists_what_is(small: Build, tmp_path: Path) -> None:
    small().write(tmp_path / "m-a" / "x.zarr")
    assert open_store(tmp_path, "m-a", "x").rows == 10
    with pytest.raises(StoreNotFoundError, match="for 'm-a' it has x"):
        open_store(tmp_path, "m-a", "y")
    with pytest.raises(StoreNotFoundError, match="stores of m-a"):
        open_store(tmp_path, "m-z", "y")
    with pytest.raises(StoreNotFoundError, match="no cache at"):
        list(find_stores(tmp_path / "absent"))


def test_foreign_zarr_and_damaged_json_are_not_stores(tmp_path: Path) -> None:
    import zarr

    zarr.create_group(str(tmp_path / "other.zarr"))
    with pytest.raises(NotAStoreError, match="did not write it"):
        peek_manifest(tmp_path / "other.zarr")
    (tmp_path / "other.zarr" / "zarr.json").write_text("{")
    with pytest.raises(NotAStoreError, match="damaged"):
        peek_manifest(tmp_path / "other.zarr")


def test_a_newer_schema_says_so(small: Build, tmp_path: Path) -> None:
    commit = small().write(tmp_path / "b.zarr") / "zarr.json"
    commit.write_text(commit.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    with pytest.raises(NotAStoreError, match="schema version 99"):
        FeatureStore(commit.parent)
