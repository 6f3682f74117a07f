"""Every layout and encoding, read by us, by zarr and by xarray: one answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from embedcache_stores import ArraySpec, DamagedStoreError, FeatureStore, FeatureWriter, SaturatedError, StoreSpec
from embedcache_stores.encodings import DTYPES, decode, encode, max_abs

Build = Callable[..., Any]
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one row a group": {"rows_per_group": 1},
    "group larger than the store": {"rows_per_group": 64},
    "lz4": {"compression": "lz4"},
    "zstd": {"compression": "zstd"},
    "sharded": {"rows_per_chunk": 2},
    "sharded, compressed": {"rows_per_chunk": 1, "compression": "zstd"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_direct_zarr_and_xarray_give_the_same_numbers(small: Build, tmp_path: Path, layout: str, place: str) -> None:
    made = small(rows=23)
    spec = dataclasses.replace(made.spec, **LAYOUTS[layout])
    made = dataclasses.replace(made, spec=spec)
    where: Any = tmp_path / "b.zarr" if place == "disk" else f"memory://{tmp_path.name}/b.zarr"
    made.write(where)
    store, unchecked = FeatureStore(where), FeatureStore(where, check=False)
    plain = place == "disk" and spec.compression == "none" and spec.rows_per_chunk is None
    group: Any = zarr.open_group(str(where), mode="r") if place == "disk" else None
    lazy = store.to_xarray()
    rng = np.random.default_rng(0)
    picks = [
        np.arange(23),
        np.arange(5, 17),
        rng.permutation(23),
        rng.integers(0, 23, 40),
        np.array([], dtype=np.int64),
    ]
    for name, values in made.arrays.items():
        assert (store.direct(name) is not None) == plain
        np.testing.assert_array_equal(lazy[name].values, values)
        np.testing.assert_array_equal(store.to_dask(name).compute(scheduler="synchronous"), values)
        if group is not None:
            np.testing.assert_array_equal(group[name][:], values)
            np.testing.assert_array_equal(xr.open_zarr(where)[name].values, values)
        for rows in picks:
            for reader in (store, unchecked):
                got = reader.read(name, rows)
                assert got.dtype == values.dtype
                np.testing.assert_array_equal(got, values[rows])


def test_files_of_the_plain_layout_are_those_that_zarr_writes(small: Build, tmp_path: Path) -> None:
    made = small(rows=10)
    path = made.write(tmp_path / "b.zarr")
    for spec in made.spec.arrays:
        ours = {p.name: p.read_bytes() for p in (path / spec.name).iterdir() if p.name != "zarr.json"}
        again: Any = zarr.open_array(str(path / spec.name), mode="r+")
        again = again.with_config({"write_empty_chunks": True})
        for file in (path / spec.name).glob("c.*"):
            file.unlink()
        again[:] = made.arrays[spec.name]
        assert {p.name: p.read_bytes() for p in (path / spec.name).iterdir() if p.name != "zarr.json"} == ours


def test_a_slice_of_a_wider_buffer_may_be_filled(small: Build, tmp_path: Path) -> None:
    made = small(rows=10)
    store = FeatureStore(made.write(tmp_path / "b.zarr"))
    wide = np.zeros((6, 9, 4, 2), dtype=np.float16)
    rows = np.array([9, 0, 3, 3, 4, 5])
    store.read_stored_into("level_0", rows, wide[:, 2:5])
    np.testing.assert_array_equal(wide[:, 2:5], made.arrays["level_0"][rows])
    assert not wide[:, :2].any()
    assert not wide[:, 5:].any()


@pytest.mark.parametrize("rows", [[10], [-1], [0, 99]])
def test_rows_outside_are_refused(small: Build, tmp_path: Path, rows: list[int]) -> None:
    store = FeatureStore(small().write(tmp_path / "b.zarr"))
    with pytest.raises(IndexError, match=r"rows must be in 0\.\.9"):
        store.read("level_0", np.array(rows))
    with pytest.raises(IndexError, match="flatnonzero"):
        store.read("level_0", np.array([True, False]))


def test_checksums_are_compared_once_and_only_where_asked(small: Build, tmp_path: Path) -> None:
    path = small().write(tmp_path / "b.zarr")
    chunk = path / "level_0" / "c.0.0.0.0"
    raw = bytearray(chunk.read_bytes())
    raw[3] ^= 1
    chunk.write_bytes(raw)
    FeatureStore(path, check=False).read("level_0", np.arange(4))
    with pytest.raises(
        DamagedStoreError, match=r"rows 0\.\.3 of 'level_0'\) is not what was written: its checksum is wrong"
    ):
        FeatureStore(path).read("level_0", np.array([1]))


FLOATS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.just(float("nan")),
)


@settings(deadline=None)
@given(values=FLOATS)
def test_bfloat16_is_torch_s(values: np.ndarray) -> None:
    spec = ArraySpec(name="x", shape=values.shape[1:], dtype="uint16", encoding="bfloat16")
    data = encode(values, spec).data
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(decode(data, spec), theirs.to(torch.float32).numpy())


@settings(deadline=None)
@given(values=FLOATS)
def test_int8_is_within_half_a_step_of_its_channel_and_keeps_nan(values: np.ndarray) -> None:
    spec = ArraySpec(name="x", shape=values.shape[1:], dtype="int8", encoding="int8")
    made = encode(values, spec)
    assert made.scale is not None
    got = decode(made.data, spec, made.scale)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(values))
    others = tuple(i for i in range(values.ndim) if i != 1)
    most = np.nanmax(np.where(np.isnan(values), 0, np.abs(values)).astype(np.float64), axis=others, keepdims=True)
    error = np.abs(np.where(np.isnan(values), 0, got.astype(np.float64) - values))
    assert (error <= most / 127 * 0.5001 + 1e-37).all()


@settings(deadline=None)
@given(values=npst.arrays(np.float16, npst.array_shapes(), elements=st.floats(width=16)))
def test_the_largest_magnitude_is_numpy_s(values: np.ndarray) -> None:
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    assert max_abs(values) == finite.max(initial=0.0)
    assert max_abs(values.astype(np.float32)) == finite.max(initial=0.0)
    assert max_abs(values.T) == finite.max(initial=0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_encoded_arrays_open_in_plain_xarray_under_a_name_that_says_so(tmp_path: Path, dtype: str) -> None:
    on_disk, encoding = DTYPES[dtype]
    spec = StoreSpec(
        sample_ids=tuple("abcdefghij"),
        arrays=(ArraySpec(name="pooled_mean", dims=("channel",), shape=(3,), dtype=on_disk, encoding=encoding),),
        columns=(),
        provenance={},
        rows_per_group=4,
    )
    values = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    with FeatureWriter(tmp_path / "b.zarr", spec) as writer:
        for group in writer.missing:
            writer.write_group(group, {"pooled_mean": values[spec.group_rows(group)]}, {})
        writer.commit()
    plain = xr.open_zarr(tmp_path / "b.zarr")
    assert "pooled_mean" not in plain
    if dtype == "bfloat16":
        bits = plain.pooled_mean_bfloat16_bits
        decoded = (bits.values.astype(np.uint32) << 16).view(np.float32)  # what the comment in the attributes says
        assert "value = (bits << 16)" in bits.attrs["comment"]
    else:
        codes = plain.pooled_mean_int8
        decoded = codes.values * plain.pooled_mean_scale.values[np.arange(10) // 4]
        assert "pooled_mean_scale[row_group, channel]" in codes.attrs["comment"]
    store = FeatureStore(tmp_path / "b.zarr")
    np.testing.assert_array_equal(store.read("pooled_mean", np.arange(10)), decoded)
    np.testing.assert_array_equal(store.to_xarray().pooled_mean.values, decoded)
    np.testing.assert_allclose(decoded, values, rtol=2**-8, atol=np.abs(values).max() / 127 if dtype == "int8" else 0)


def test_saturation_is_counted_and_refused_above_its_bound(tmp_path: Path) -> None:
    values = np.ones((8, 5), dtype=np.float32)
    values[3, 2], values[4, 0] = 1e6, -1e6

    def write(path: Path, bound: float) -> FeatureStore:
        spec = StoreSpec(
            sample_ids=tuple("abcdefgh"),
            arrays=(ArraySpec(name="x", dims=("c",), shape=(5,), dtype="float16"),),
            columns=(),
            provenance={},
            rows_per_group=8,
            max_saturation=bound,
        )
        with FeatureWriter(path, spec) as writer:
            writer.write_group(0, {"x": values}, {})
            writer.commit()
        return FeatureStore(path)

    with pytest.raises(SaturatedError, match=r"2 of 40 values of x in rows 0\.\.7 are beyond what float16 holds"):
        write(tmp_path / "a.zarr", 0.04)
    store = write(tmp_path / "b.zarr", 0.05)
    assert store.manifest.saturated == {"x": 2}
    got = store.read("x", np.arange(8))
    assert (got[3, 2], got[4, 0]) == (65504, -65504)
