"""Copies keep the values and the identity; sweeping removes what nobody needs, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache_stores import (
    DamagedStoreError,
    FeatureStore,
    FeatureWriter,
    IncompleteStoreError,
    StoreError,
    peek_manifest,
)
from embedcache_stores.copying import copy_store, is_copied
from embedcache_stores.encodings import DTYPES
from embedcache_stores.housekeeping import leftovers, sweep
from embedcache_stores.verify import verify_store

Build = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]


def stored_as(made: Any, dtype: str) -> Any:
    """The same store with its features in another dtype."""
    on_disk, encoding = DTYPES[dtype]
    arrays = tuple(
        a if a.name == "mask" else dataclasses.replace(a, dtype=on_disk, encoding=encoding) for a in made.spec.arrays
    )
    values = {k: v if k == "mask" else v.astype(np.float32) for k, v in made.arrays.items()}
    if encoding is None:
        values = {k: v if k == "mask" else v.astype(on_disk) for k, v in values.items()}
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, arrays=arrays), arrays=values)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "int8"])
@pytest.mark.parametrize("to", ["disk", "bucket"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_copy_holds_the_same_values_under_the_same_fingerprint(
    small: Build, tmp_path: Path, dtype: str, to: str, compression: Any
) -> None:
    source = FeatureStore(stored_as(small(rows=40), dtype).write(tmp_path / "m-x" / "a.zarr"))
    root = str(tmp_path / "other") if to == "disk" else f"memory://{tmp_path.name}"
    assert not is_copied(source, f"{root}/m-x/a.zarr")
    place = copy_store(source, f"{root}/m-x/a.zarr", compression=compression)
    assert is_copied(source, place)
    copy = FeatureStore(place)
    assert copy.manifest.fingerprint == source.manifest.fingerprint
    assert copy.manifest.compression == (compression or "none")
    assert copy.manifest.environment == source.manifest.environment
    assert copy.manifest.max_abs == source.manifest.max_abs
    rows = np.arange(40)
    for name in ("pooled_mean", "level_0", "mask", "split", "label", "lat", "sample_id"):
        np.testing.assert_array_equal(copy.read(name, rows), source.read(name, rows))
    if to == "bucket" and dtype != "int8":
        assert copy.manifest.rows_per_group == 32
    assert verify_store(place).faults == []
    with pytest.raises(StoreError, match="complete and never changes"):
        copy_store(source, place)


def test_a_plain_copy_is_byte_for_byte(small: Build, contents: Contents, tmp_path: Path) -> None:
    source = small().write(tmp_path / "m-x" / "a.zarr")
    copy_store(FeatureStore(source), tmp_path / "o" / "m-x" / "a.zarr")
    assert contents(tmp_path / "o" / "m-x" / "a.zarr") == contents(source)


def test_a_stopped_copy_is_continued_and_nobody_reads_half_of_it(
    small: Build, contents: Contents, tmp_path: Path
) -> None:
    source = FeatureStore(small(rows=20).write(tmp_path / "m-x" / "a.zarr"))
    target = tmp_path / "o" / "m-x" / "a.zarr"

    def stop(done: int, _: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_store(source, target, on_rows=stop)
    with pytest.raises(IncompleteStoreError):
        FeatureStore(target)
    assert peek_manifest(target).groups_done == 2
    done: list[int] = []
    copy_store(source, target, on_rows=lambda rows, _: done.append(rows))
    assert done == [12, 16, 20]
    assert contents(target) == contents(source.path)


def test_a_damaged_store_is_not_copied(small: Build, tmp_path: Path) -> None:
    path = small().write(tmp_path / "m-x" / "a.zarr")
    chunk = path / "mask" / "c.1.0.0"
    raw = bytearray(chunk.read_bytes())
    raw[5] ^= 4
    chunk.write_bytes(raw)
    with pytest.raises(DamagedStoreError, match="checksum"):
        copy_store(FeatureStore(path), tmp_path / "o" / "m-x" / "a.zarr")
    with pytest.raises(IncompleteStoreError):
        FeatureStore(tmp_path / "o" / "m-x" / "a.zarr")
    with pytest.raises(StoreError, match="onto itself"):
        copy_store(FeatureStore(path), path)


def test_leftovers_are_found_and_swept_and_stores_are_not(small: Build, contents: Contents, tmp_path: Path) -> None:
    made = small()
    whole = made.write(tmp_path / "m-x" / "whole.zarr")
    before = contents(whole)
    (whole / "progress.jsonl").write_text("{}\n")
    (whole / "level_0" / "c.0.0.0.0.partial").write_bytes(b"half")
    half = made.write(tmp_path / "m-x" / "half.zarr", [0], commit=False)
    (half / "mask" / "c.2.0.0.partial").write_bytes(b"half")
    trash = tmp_path / "m-x" / "gone.zarr.trash" / "level_0"
    trash.mkdir(parents=True)
    (trash / "c.0.0.0.0").write_bytes(b"12345")
    begun = tmp_path / "m-x" / "begun.zarr"
    (begun / "mask").mkdir(parents=True)
    (begun / "writer.lock").write_text("process 1")
    foreign = tmp_path / "m-x" / "foreign.zarr"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    found = {f.place.name: f for f in leftovers(str(tmp_path))}
    assert set(found) == {"whole.zarr", "half.zarr", "gone.zarr.trash", "begun.zarr"}
    assert set(found["whole.zarr"].keys) == {"progress.jsonl", "level_0/c.0.0.0.0.partial"}
    assert found["gone.zarr.trash"].nbytes == 5
    for leftover in found.values():
        sweep(leftover)
    assert list(leftovers(str(tmp_path))) == []
    assert contents(whole) == before
    assert peek_manifest(half).groups_done == 1
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert not begun.exists()
    assert [f.what for f in leftovers(str(tmp_path), partial=True)] == ["never completed, 1 of 3 row groups"]
    sweep(next(leftovers(str(tmp_path), partial=True)))
    assert not half.exists()


def test_a_store_that_is_being_written_is_left_alone(small: Build, tmp_path: Path) -> None:
    made = small()
    with FeatureWriter(tmp_path / "m-x" / "a.zarr", made.spec) as writer:
        writer.write_group(0, *made.group(0))
        (tmp_path / "m-x" / "a.zarr" / "mask" / "c.1.0.0.partial").write_bytes(b"half")
        assert list(leftovers(str(tmp_path), partial=True)) == []
    assert len(list(leftovers(str(tmp_path), partial=True))) == 1
