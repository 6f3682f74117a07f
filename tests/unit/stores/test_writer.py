"""All or nothing: what the writer leaves behind, whatever happens to it."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
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
    ArraySpec,
    DamagedStoreError,
    FeatureStore,
    FeatureWriter,
    FingerprintMismatchError,
    IncompleteStoreError,
    NotAStoreError,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
    StoreSpec,
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


@st.composite
def stores(draw: st.DrawFn) -> tuple[StoreSpec, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draw a store of any shape and dtype with its content: NaN, infinities, fill values, any text as ids."""
    rows = draw(st.integers(1, 11))
    names = st.sampled_from(["a", "b", "c", "d"])
    kinds = st.sampled_from(["float16", "float32", "float64", "uint8", "int16", "int64"])
    shapes = st.sampled_from([(), (1,), (5,), (2, 3), (2, 1, 4)])
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    arrays = tuple(
        ArraySpec(name=f"array_{n}", dims=tuple(f"{n}{i}" for i in range(len(shape))), shape=shape, dtype=dtype)
        for n, shape, dtype in draw(st.lists(st.tuples(names, shapes, kinds), max_size=3, unique_by=lambda a: a[0]))
    )
    label = draw(st.sampled_from([(), (1,), (4,)]))
    columns = (
        ArraySpec(name="split", dtype="string"),
        ArraySpec(
            name="label", dims=tuple("k" for _ in label), shape=label, dtype=draw(st.sampled_from(["uint8", "int64"]))
        ),
        ArraySpec(name="lat", dtype=draw(st.sampled_from(["float32", "float64"]))),
    )
    spec = StoreSpec(
        sample_ids=tuple(draw(st.lists(text, min_size=rows, max_size=rows, unique=True))),
        arrays=arrays,
        columns=columns,
        provenance={"n": 1},
        rows_per_group=draw(st.sampled_from([1, 2, 4, 16])),
    )
    numbers = {a.name: draw(raw_values(a.dtype, (rows, *a.shape))) for a in (*arrays, *columns[1:])}
    split = np.array(draw(st.lists(text, min_size=rows, max_size=rows)), dtype=object)
    return spec, {a.name: numbers.pop(a.name) for a in arrays}, {"split": split, **numbers}


def raw_values(dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """Values from raw bits, so that every value of the dtype may come: NaN with any payload, infinities, -0."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    some = st.binary(min_size=size, max_size=size).map(lambda raw: np.frombuffer(raw, dtype=dtype).reshape(shape))
    if np.dtype(dtype).kind != "f":
        return some
    return some | st.just(np.full(shape, np.nan, dtype=dtype)) | st.just(np.full(shape, -np.inf, dtype=dtype))


@settings(max_examples=40, deadline=None)
@given(store=stores(), stop_after=st.integers(0, 3))
def test_any_content_is_read_as_it_was_written_even_when_resumed(
    tmp_path_factory: pytest.TempPathFactory,
    store: tuple[StoreSpec, dict[str, np.ndarray], dict[str, np.ndarray]],
    stop_after: int,
) -> None:
    spec, arrays, columns = store
    path = tmp_path_factory.mktemp("any") / "b.zarr"
    for last in (stop_after, spec.groups):
        with FeatureWriter(path, spec) as writer:
            for group in [g for g in writer.missing if g < last]:
                rows = spec.group_rows(group)
                writer.write_group(
                    group, {k: v[rows] for k, v in arrays.items()}, {k: v[rows] for k, v in columns.items()}
                )
    with FeatureWriter(path, spec) as writer:
        writer.commit()
    read = FeatureStore(path)
    assert read.sample_ids.tolist() == list(spec.sample_ids)
    for name, values in arrays.items():
        assert read.read(name, np.arange(spec.rows)).tobytes() == values.tobytes(), name
    for name, values in columns.items():
        got = read.column(name)
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(got, values)


def test_masks_are_read_as_the_bytes_they_were(tmp_path: Path) -> None:
    masks = np.arange(7 * 16 * 16, dtype=np.uint8).reshape(7, 16, 16)
    spec = StoreSpec(
        sample_ids=tuple("abcdefg"),
        arrays=(ArraySpec(name="mask", dims=("y", "x"), shape=(16, 16), dtype="uint8"),),
        columns=(),
        provenance={},
        rows_per_group=4,
    )
    with FeatureWriter(tmp_path / "b.zarr", spec) as writer:
        for group in writer.missing:
            writer.write_group(group, {"mask": masks[spec.group_rows(group)]}, {})
        writer.commit()
    got = FeatureStore(tmp_path / "b.zarr").array("mask")[:]
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, masks)


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


def test_a_progress_record_torn_at_any_byte_is_continued(contents: Contents, tmp_path: Path) -> None:
    arrays = (ArraySpec(name="a", dims=("c",), shape=(1,), dtype="uint8"),)
    spec = StoreSpec(
        sample_ids=("é", "b"), arrays=arrays, columns=(), provenance={}, rows_per_group=1, attrs={"title": "t"}
    )

    def fill(path: Path, *, stop: int = 2) -> list[int]:
        with FeatureWriter(path, spec) as writer:
            missing = writer.missing
            for group in missing[:stop]:
                writer.write_group(group, {"a": np.array([[7 + group]], dtype=np.uint8)}, {})
            if not writer.missing:
                writer.commit()
        return missing

    whole, begun, path = (tmp_path / name for name in ("whole.zarr", "begun.zarr", "b.zarr"))
    fill(whole)
    fill(begun, stop=1)
    expected = contents(whole)
    record = (begun / "progress.jsonl").read_bytes()
    for length in range(len(record) + 1):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(begun, path)
        (path / "progress.jsonl").write_bytes(record[:length])
        with pytest.raises((IncompleteStoreError, NotAStoreError)):
            FeatureStore(path)
        assert fill(path) == ([1] if length == len(record) else [0, 1])  # a torn line does not count
        assert contents(path) == expected, f"torn after {length} bytes"


@pytest.mark.parametrize(
    "torn", [b'{"group":1,"colu', b"\x00" * 40 + b"\n", b"\xff\xfe\n"], ids=["cut", "zeros", "bytes"]
)
def test_a_damaged_last_line_is_ignored_and_its_row_group_written_again(
    small: Build, contents: Contents, tmp_path: Path, torn: bytes
) -> None:
    made = small()
    path = made.write(tmp_path / "b.zarr", [0], commit=False)
    with (path / "progress.jsonl").open("ab") as file:
        file.write(torn)
    assert peek_manifest(path).groups_done == 1
    with FeatureWriter(path, made.spec) as writer:
        assert writer.missing == [1, 2]
        writer.write_group(1, *made.group(1))
    assert peek_manifest(path).groups_done == 2  # what came after the torn line was not joined to it
    assert contents(made.write(path)) == contents(made.write(tmp_path / "whole.zarr"))


class Interrupted(Exception):  # noqa: N818
    """Stands for anything that a backbone may raise halfway."""


def test_an_exception_halfway_keeps_what_was_durable_and_resume_rewrites_none_of_it(
    small: Build, contents: Contents, tmp_path: Path
) -> None:
    made = small(rows=21)
    path = tmp_path / "b.zarr"

    def interrupted_after_three() -> None:
        with FeatureWriter(path, made.spec) as writer:
            for group in (0, 1, 2):
                writer.write_group(group, *made.group(group))
            raise Interrupted

    with pytest.raises(Interrupted):
        interrupted_after_three()
    chunks = sorted(p for p in path.glob("*/c.*"))
    assert len(chunks) == 3 * len(made.spec.arrays)
    before = [(p.stat().st_ino, p.stat().st_mtime_ns) for p in chunks]
    with FeatureWriter(path, made.spec) as writer:  # the lock was released with the exception
        assert writer.done == {0, 1, 2}
        assert writer.missing == [3, 4, 5]
    made.write(path)
    assert [(p.stat().st_ino, p.stat().st_mtime_ns) for p in chunks] == before
    assert contents(path) == contents(made.write(tmp_path / "whole.zarr"))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)))
def test_row_groups_in_any_order_end_with_the_same_bytes(
    small: Build, contents: Contents, tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("order")
    made = small(rows=9, rows_per_group=2)
    assert contents(made.write(folder / "a.zarr", order)) == contents(made.write(folder / "b.zarr"))


def test_temporary_files_of_a_killed_writer_are_removed(small: Build, contents: Contents, tmp_path: Path) -> None:
    made = small()
    path = made.write(tmp_path / "b.zarr", [0], commit=False)
    (path / "level_0" / "c.1.0.0.0.partial").write_bytes(b"half")
    assert contents(made.write(path)) == contents(made.write(tmp_path / "whole.zarr"))


def test_another_fingerprint_is_refused_by_field_and_nothing_is_touched(
    small: Build, contents: Contents, tmp_path: Path
) -> None:
    for commit in (True, False):
        path = small().write(tmp_path / f"{commit}.zarr", [0, 1, 2], commit=commit)
        before = contents(path)
        other = small(preprocessing={"input_size": 256})
        with pytest.raises(FingerprintMismatchError, match=r"preprocessing is .\(absent\)., asked .*256") as caught:
            FeatureWriter(path, other.spec)
        assert caught.value.differences == [("preprocessing", "(absent)", {"input_size": 256})]
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
    assert not (tmp_path / "b.zarr" / "zarr.json").exists()
    assert peek_manifest(tmp_path / "b.zarr").groups_done == 1


@pytest.mark.parametrize("wrong", ["column shape", "column dtype", "column missing", "column unknown", "array unknown"])
def test_wrong_columns_and_unknown_names_are_refused_and_nothing_is_recorded(
    small: Build, tmp_path: Path, wrong: str
) -> None:
    made = small()
    arrays, columns = made.group(0)
    if wrong == "column shape":
        columns["label"] = columns["label"][:, :2]
    elif wrong == "column dtype":
        columns["lat"] = columns["lat"].astype(np.float32)
    elif wrong == "column missing":
        del columns["split"]
    elif wrong == "column unknown":
        columns["colour"] = columns["lat"]
    else:
        arrays["colour"] = arrays["mask"]
    sentence = {
        "column shape": r"array 'label' must have shape \(4, 3\), got \(4, 2\)",
        "column dtype": "array 'lat' must have dtype float64, got float32",
        "column missing": r"expected arrays \['label', 'lat', 'split'\], got \['label', 'lat'\]",
        "column unknown": "got .*'colour'",
        "array unknown": "got .*'colour'",
    }[wrong]
    path = tmp_path / "b.zarr"
    with FeatureWriter(path, made.spec) as writer:
        with pytest.raises(ValueError, match=sentence):
            writer.write_group(0, arrays, columns)
        assert writer.done == frozenset()
    assert peek_manifest(path).groups_done == 0
    assert not list(path.glob("*/c.*"))


def test_a_row_group_beyond_the_last_is_refused(small: Build, tmp_path: Path) -> None:
    made = small()
    with FeatureWriter(tmp_path / "b.zarr", made.spec) as writer, pytest.raises(ValueError, match="group must be in"):
        writer.write_group(3, *made.group(2))
    assert peek_manifest(tmp_path / "b.zarr").groups_done == 0


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


@pytest.mark.parametrize("content", ["file", "folder", "empty folder", "other zarr", "own log"])
def test_foreign_folders_keep_every_file_of_their_owner(small: Build, tmp_path: Path, content: str) -> None:
    path = tmp_path / "b.zarr"
    (path / "mask").mkdir(parents=True)
    if content == "file":
        (path / "mask.tif").write_bytes(b"pixels")
    elif content == "folder":
        (path / "mask" / "1.tif").write_bytes(b"pixels")
    elif content == "other zarr":
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    elif content == "own log":
        (path / "progress.jsonl").write_text('{"epoch": 1}\n')
    if content != "empty folder":  # the writer may use a folder in which there is no file
        before = theirs(path)
        with pytest.raises(NotAStoreError):
            FeatureWriter(path, small().spec)
        assert {k: v for k, v in theirs(path).items() if k != "writer.lock"} == before
    before = theirs(path)
    with pytest.raises(NotAStoreError):
        discard(path)
    assert theirs(path) == before


def theirs(path: Path) -> dict[str, bytes | None]:
    """Every file and folder below a path, with the bytes of files."""
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


def test_discard_of_nothing_says_so_and_of_a_file_leaves_it(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no feature store at"):
        discard(tmp_path / "absent.zarr")
    (tmp_path / "file.zarr").write_text("mine")
    with pytest.raises(StoreNotFoundError, match="no feature store at"):
        discard(tmp_path / "file.zarr")
    assert (tmp_path / "file.zarr").read_text() == "mine"


def test_discard_refuses_a_store_that_is_being_written(small: Build, contents: Contents, tmp_path: Path) -> None:
    made = small()
    path = tmp_path / "b.zarr"
    with FeatureWriter(path, made.spec) as writer:
        writer.write_group(0, *made.group(0))
        before = contents(path)
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()}"):
            discard(path)
        assert contents(path) == before
        for group in writer.missing:
            writer.write_group(group, *made.group(group))
        writer.commit()
    assert FeatureStore(path).rows == 10


def test_a_refused_writer_leaves_the_store_free_for_the_right_one(small: Build, tmp_path: Path) -> None:
    path = small().write(tmp_path / "b.zarr", [0], commit=False)
    with pytest.raises(FingerprintMismatchError):
        FeatureWriter(path, small(other=True).spec)
    assert FeatureStore(small().write(path)).rows == 10


@pytest.fixture
def pickled(small: Build, tmp_path: Path) -> tuple[Any, Path]:
    """Return a store's content and the file that hands it to another process: its spec and its row groups."""
    made = small()
    file = tmp_path / "made.pickle"
    file.write_bytes(pickle.dumps((made.spec, [made.group(g) for g in range(made.spec.groups)])))
    return made, file


WRITER_ELSEWHERE = """
import pickle, resource, sys
from embedcache_stores import FeatureWriter, StoreWriteError
spec, groups = pickle.load(open(sys.argv[1], "rb"))
with FeatureWriter(sys.argv[2], spec) as writer:
    writer.write_group(0, *groups[0])
    print("first group is durable", flush=True)
    if sys.argv[3] == "wait":
        sys.stdin.read()
    resource.setrlimit(resource.RLIMIT_FSIZE, (32, resource.RLIM_INFINITY))
    try:
        writer.write_group(1, *groups[1])
    except StoreWriteError as error:
        print(error)
"""


def test_two_processes_cannot_write_one_store_until_the_first_is_killed(
    pickled: tuple[Any, Path], contents: Contents, tmp_path: Path
) -> None:
    made, file = pickled
    path = tmp_path / "b.zarr"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WRITER_ELSEWHERE, file, path, "wait"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "first group is durable\n"
            before = contents(path)
            with pytest.raises(
                StoreLockedError, match=rf"written by process {first.pid} on \S+ since \d{{4}}-\d\d-\d\dT"
            ):
                FeatureWriter(path, made.spec)
            assert contents(path) == before
        finally:
            first.send_signal(signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    with FeatureWriter(path, made.spec) as writer:
        assert writer.done == {0}
    assert contents(made.write(path)) == contents(made.write(tmp_path / "whole.zarr"))


def test_a_file_size_limit_is_said_and_what_was_durable_stays(
    pickled: tuple[Any, Path], contents: Contents, tmp_path: Path
) -> None:
    made, file = pickled
    path = tmp_path / "b.zarr"
    command = [sys.executable, "-c", WRITER_ELSEWHERE, file, path, "go on"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, sentence = done.stdout.splitlines()
    assert first == "first group is durable"
    assert sentence.startswith(
        f"could not write {str(path)!r}: the file size limit was reached. The row groups written"
    )
    assert sentence.endswith("run the same command again to continue.")
    assert peek_manifest(path).groups_done == 1
    assert contents(made.write(path)) == contents(made.write(tmp_path / "whole.zarr"))


COMMIT_ELSEWHERE = """
import pickle, resource, sys
from embedcache_stores import FeatureWriter, StoreWriteError
spec, groups = pickle.load(open(sys.argv[1], "rb"))
with FeatureWriter(sys.argv[2], spec) as writer:
    for group in writer.missing:
        writer.write_group(group, *groups[group])
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    try:
        writer.commit()
    except StoreWriteError as error:
        print(error)
"""


def test_a_commit_record_cut_short_is_no_commit(pickled: tuple[Any, Path], contents: Contents, tmp_path: Path) -> None:
    made, file = pickled
    path, whole = tmp_path / "b.zarr", made.write(tmp_path / "whole.zarr")
    metadata = [p.stat().st_size for p in whole.glob("*/zarr.json")]
    assert max(metadata) < 2000 < (whole / "zarr.json").stat().st_size  # so it is the commit record that is cut
    command = [sys.executable, "-c", COMMIT_ELSEWHERE, file, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the file size limit was reached" in done.stdout
    with pytest.raises(IncompleteStoreError, match="3 of 3"):
        FeatureStore(path)
    assert contents(made.write(path)) == contents(whole)


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


@pytest.mark.parametrize("log", ["epoch 1\n", "", '{"loss": 1}\n'])
def test_a_users_folder_with_a_log_of_our_name_is_left_as_it_is(small: Build, tmp_path: Path, log: str) -> None:
    folder = tmp_path / "b.zarr"
    (folder / "mask").mkdir(parents=True)
    (folder / "mask" / "photo.png").write_bytes(b"a photograph")
    (folder / "progress.jsonl").write_text(log)
    with pytest.raises(NotAStoreError, match="not a feature store"):
        FeatureWriter(folder, small().spec)
    left = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert left == ["mask/photo.png", "progress.jsonl"]
    assert (folder / "progress.jsonl").read_text() == log


def test_nothing_is_written_after_the_commit(small: Build, contents: Contents, tmp_path: Path) -> None:
    made = small()
    with FeatureWriter(tmp_path / "b.zarr", made.spec) as writer:
        for group in writer.missing:
            writer.write_group(group, *made.group(group))
        writer.commit()
        before = contents(tmp_path / "b.zarr")
        with pytest.raises(StoreError, match="complete and never changes"):
            writer.write_group(0, *made.group(0))
    assert contents(tmp_path / "b.zarr") == before


def test_a_lost_chunk_is_noticed_when_it_is_read(small: Build, tmp_path: Path) -> None:
    store = FeatureStore(small().write(tmp_path / "b.zarr"))
    (store.path / "level_0" / "c.1.0.0.0").unlink()
    store.read("level_0", np.arange(4))
    with pytest.raises(DamagedStoreError, match=r"c\.1\.0\.0\.0' \(rows 4..7 of 'level_0'\) is lost"):
        store.read("level_0", np.arange(8))
