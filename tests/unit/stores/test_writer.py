"""All or nothing: what the writer leaves behind, whatever happens to it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcache_stores import (
    FeatureStore,
    FeatureWriter,
    FingerprintMismatchError,
    IncompleteStoreError,
    NotAStoreError,
    StoreError,
    StoreLockedError,
    StoreWriteError,
    discard,
    peek_manifest,
)

Build = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 23),
    rows_per_group=st.sampled_from([1, 2, 4, 8, 32]),
    dtype=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 100),
)
def test_what_was_written_is_read(
    small: Build, tmp_path_factory: pytest.TempPathFactory, rows: int, rows_per_group: int, dtype: str, seed: int
) -> None:
    made = small(rows, rows_per_group, dtype, seed)
    store = FeatureStore(made.write(tmp_path_factory.mktemp("s") / "d" / "b.zarr"))
    assert store.sample_ids.tolist() == list(made.spec.sample_ids)
    for name, values in made.arrays.items():
        np.testing.assert_array_equal(store.read(name, np.arange(rows)), values)
    for name, values in made.columns.items():
        np.testing.assert_array_equal(store.column(name), values)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_an_interrupted_store_ends_with_the_bytes_of_one_that_was_not(
    small: Build, contents: Contents, tmp_path: Path, stop_after: int
) -> None:
    made = small()
    whole = contents(made.write(tmp_path / "whole.zarr"))
    path = made.write(tmp_path / "b.zarr", range(min(stop_after, made.spec.groups)), commit=False)
    with pytest.raises(IncompleteStoreError, match=f"{min(stop_after, 3)} of 3"):
        FeatureStore(path)
    with pytest.raises(Exception, match=r"zarr|group|Group|found"):
        xr.open_zarr(path)
    made.write(path)
    assert contents(path) == whole


def test_rows_of_nothing_but_zeros_are_written_like_any_other(small: Build, contents: Contents, tmp_path: Path) -> None:
    made = small()
    for values in made.arrays.values():
        values[:] = 0
    path = made.write(tmp_path / "b.zarr")
    assert {"mask/c.0.0.0", "mask/c.1.0.0", "mask/c.2.0.0", "pooled_mean/c.0.0"} <= set(contents(path))
    assert not FeatureStore(path).array("mask")[:].any()


def test_groups_may_be_written_in_any_order(small: Build, contents: Contents, tmp_path: Path) -> None:
    made = small()
    assert contents(made.write(tmp_path / "a.zarr", [2, 0, 1])) == contents(made.write(tmp_path / "b.zarr"))


def test_a_progress_record_torn_at_any_byte_is_continued(small: Build, contents: Contents, tmp_path: Path) -> None:
    made = small(rows=5, rows_per_group=4)
    whole = contents(made.write(tmp_path / "whole.zarr"))
    progress = made.write(tmp_path / "b.zarr", [0], commit=False) / "progress.jsonl"
    record = progress.read_bytes()
    for length in [*range(0, len(record), 97), len(record) - 1]:
        progress.write_bytes(record[:length])
        with FeatureWriter(progress.parent, made.spec) as writer:
            assert writer.missing  # the torn line does not count
            for group in writer.missing:
                writer.write_group(group, *made.group(group))
            writer.commit()
        assert contents(progress.parent) == whole
        (progress.parent / "zarr.json").unlink()  # back to an unfinished store


def test_temporary_files_of_a_killed_writer_are_removed(small: Build, contents: Contents, tmp_path: Path) -> None:
    made = small()
    path = made.write(tmp_path / "b.zarr", [0], commit=False)
    (path / "level_0" / "c.1.0.0.0.abc.partial").write_bytes(b"half")
    assert contents(made.write(path)) == contents(made.write(tmp_path / "whole.zarr"))


def test_another_fingerprint_is_refused_by_field_and_nothing_is_touched(
    small: Build, contents: Contents, tmp_path: Path
) -> None:
    for commit in (True, False):
        path = small().write(tmp_path / f"{commit}.zarr", [0, 1, 2], commit=commit)
        before = contents(path)
        other = small(preprocessing={"input_size": 256})
        with pytest.raises(FingerprintMismatchError, match=r"preprocessing is None, asked .*256") as caught:
            FeatureWriter(path, other.spec)
        assert caught.value.differences == [("preprocessing", None, {"input_size": 256})]
        after = contents(path)
        after.pop("writer.lock", None)
        before.pop("writer.lock", None)
        assert after == before


def test_a_committed_store_never_changes(small: Build, contents: Contents, tmp_path: Path) -> None:
    made = small()
    path = made.write(tmp_path / "b.zarr")
    before = contents(path)
    with pytest.raises(StoreError, match="complete and never changes"):
        FeatureWriter(path, made.spec)
    assert contents(path) == before
    assert not {"progress.jsonl", "writer.lock"} & set(before)


def test_commit_needs_every_group(small: Build, tmp_path: Path) -> None:
    made = small()
    with FeatureWriter(tmp_path / "b.zarr", made.spec) as writer:
        writer.write_group(0, *made.group(0))
        with pytest.raises(StoreError, match=r"\[1, 2\]"):
            writer.commit()


@pytest.mark.parametrize("wrong", ["shape", "dtype", "name"])
def test_wrong_arrays_are_refused(small: Build, tmp_path: Path, wrong: str) -> None:
    made = small()
    arrays, columns = made.group(0)
    if wrong == "shape":
        arrays["pooled_mean"] = arrays["pooled_mean"][:2]
    elif wrong == "dtype":
        arrays["pooled_mean"] = arrays["pooled_mean"].astype(np.float64)
    else:
        arrays.pop("mask")
    with FeatureWriter(tmp_path / "b.zarr", made.spec) as writer:
        with pytest.raises(ValueError, match=wrong if wrong != "name" else "expected arrays"):
            writer.write_group(0, arrays, columns)
        assert writer.done == frozenset()


def test_a_users_folder_is_neither_written_nor_removed(small: Build, tmp_path: Path) -> None:
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "thesis.txt").write_text("years of work")
    with pytest.raises(NotAStoreError, match="not a feature store"):
        FeatureWriter(tmp_path / "b.zarr", small().spec)
    with pytest.raises(NotAStoreError, match="not a feature store"):
        discard(tmp_path / "b.zarr")
    assert (tmp_path / "b.zarr" / "thesis.txt").read_text() == "years of work"


def test_a_second_writer_is_refused_by_name_until_the_first_is_dead(small: Build, tmp_path: Path) -> None:
    made = small()
    path = made.write(tmp_path / "b.zarr", [0], commit=False)
    script = (
        "import fcntl, sys, os, time\n"
        "f = open(sys.argv[1] + '/writer.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "f.write(f'process {os.getpid()} on here'); f.flush(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreLockedError, match=f"process {holder.pid}"):
        FeatureWriter(path, made.spec)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    made.write(path)
    assert FeatureStore(path).rows == 10


def test_two_of_our_writers_exclude_each_other(small: Build, tmp_path: Path) -> None:
    made = small()
    with (
        FeatureWriter(tmp_path / "b.zarr", made.spec),
        pytest.raises(StoreLockedError, match=f"process {os.getpid()}"),
    ):
        FeatureWriter(tmp_path / "b.zarr", made.spec)


def test_a_full_disk_is_said_and_what_was_durable_stays(small: Build, contents: Contents, tmp_path: Path) -> None:
    mount = tmp_path / "tiny"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("NO TMPFS MAY BE MOUNTED HERE: a really full disk was not tried")
    made = small(rows=6000, rows_per_group=512)
    try:
        path = mount / "b.zarr"
        with pytest.raises(StoreWriteError, match=r"the disk is full.*kept"):
            made.write(path)
        kept = peek_manifest(path)
        assert kept.state == "partial"
        assert 0 < kept.groups_done < made.spec.groups
        subprocess.run(["mount", "-o", "remount,size=8m", str(mount)], check=True)
        assert contents(made.write(path)) == contents(made.write(tmp_path / "whole.zarr"))
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_read_only_place_is_said(small: Build, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder is needed")
    with pytest.raises(StoreWriteError, match="could not write"):
        FeatureWriter(blocked / "b.zarr", small().spec)


def test_discard_removes_complete_and_partial_stores(small: Build, tmp_path: Path) -> None:
    for commit in (True, False):
        path = small().write(tmp_path / "b.zarr", [0, 1, 2], commit=commit)
        discard(path)
        assert not path.exists()


def test_largest_magnitudes_are_recorded(small: Build, tmp_path: Path) -> None:
    made = small()
    root = json.loads((made.write(tmp_path / "b.zarr") / "zarr.json").read_text())
    recorded = root["attributes"]["embedcache"]["max_abs"]["level_0"]
    assert recorded == float(np.abs(made.arrays["level_0"].astype(np.float32)).max())


def test_begun_with_other_row_groups_is_said(small: Build, tmp_path: Path) -> None:
    made = small()
    path = made.write(tmp_path / "b.zarr", [0], commit=False)
    with pytest.raises(StoreError, match=r"another layout.*--rebuild"):
        FeatureWriter(path, dataclasses.replace(made.spec, rows_per_group=8))
