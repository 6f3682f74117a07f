"""Every single operation fails once, before or after it took effect: nothing lost, nothing torn, a rerun ends right."""

from __future__ import annotations

import datetime
import errno
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache_stores import (
    FeatureStore,
    FeatureWriter,
    GroupWriter,
    IncompleteStoreError,
    NotAStoreError,
    Place,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
    StoreWriteError,
    open_place,
    peek_manifest,
)
from embedcache_stores.repair import reopen

from .faults import FailingStore

Build = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]


def write_all(place: Place, made: Any) -> None:
    with FeatureWriter(place, made.spec) as writer:
        for group in writer.missing:
            writer.write_group(group, *made.group(group))
        writer.commit()


def whole_or_none(place: Place, made: Any) -> bool:
    """Check that readers see the complete store or none; return whether they see it."""
    try:
        store = FeatureStore(place)
    except (IncompleteStoreError, NotAStoreError, StoreNotFoundError):
        return False
    for name, values in made.arrays.items():
        np.testing.assert_array_equal(store.read(name, np.arange(store.rows)), values)
    assert store.sample_ids.tolist() == list(made.spec.sample_ids)
    return True


@pytest.fixture(params=["local", "memory"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Yield fresh places, on a disk and in an object store."""
    root = str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"
    return (open_place(f"{root}/m-x/{i}.zarr") for i in itertools.count())


@pytest.mark.parametrize("after", [False, True])
def test_the_kth_operation_fails_for_every_k(small: Build, places: Iterator[Place], after: bool) -> None:
    made = small(rows=6, rows_per_group=4)
    whole = next(places)
    counting = FailingStore(whole)
    write_all(counting, made)
    assert counting.count > 30
    refused, done_before = 0, 0
    for k in range(1, counting.count + 1):
        inner = next(places)
        try:
            write_all(FailingStore(inner, k, after=after), made)
        except StoreWriteError:  # and nothing else
            refused += 1
        seen = whole_or_none(inner, made)
        if not seen:
            try:
                done = peek_manifest(inner).groups_done
            except (NotAStoreError, StoreNotFoundError):
                done = 0
            assert done >= done_before, "a row group that was durable is not any more"
            done_before = done
            inner.remove("writer.lock")  # in a bucket the lock of a failed writer stays where it cannot be removed
            write_all(inner, made)
        assert whole_or_none(inner, made)
        assert stored(inner) == stored(whole), f"after failing at {k}"
    assert refused > 0.8 * counting.count


@pytest.mark.parametrize("after", [False, True])
def test_reopening_for_repair_fails_at_every_k(small: Build, places: Iterator[Place], after: bool) -> None:
    made = small(rows=10, rows_per_group=4)
    whole = next(places)
    write_all(whole, made)
    expected = stored(whole)
    for k in range(1, 40):
        inner = next(places)
        write_all(inner, made)
        failing = FailingStore(inner, k, after=after)
        try:
            reopen(failing, drop=[1])
            ended = True
        except StoreError:
            ended = False
        inner.remove("writer.lock")
        if not whole_or_none(inner, made):
            assert peek_manifest(inner).groups_done == 2
            write_all(inner, made)
        assert whole_or_none(inner, made)
        left = stored(inner)
        left.pop("progress.jsonl", None)  # of a reopening that never came to it; gc sweeps it up
        assert {k: v for k, v in left.items() if not k.startswith("progress.jsonl/")} == expected
        if ended:
            return
    pytest.fail("reopening never came to its end")


def stored(place: Place) -> dict[str, bytes]:
    """Every file of a committed store; the time of creation and leftovers of its writer taken out."""
    import json

    out = {}
    todo = [place]
    while todo:
        here = todo.pop()
        todo += [here.child(f) for f in here.folders()]
        for name in here.files():
            key = f"{here.url}/{name}".removeprefix(place.url + "/")
            out[key] = here.read(name)
    root = json.loads(out["zarr.json"])
    root["attributes"]["embedcache"].pop("created")
    out["zarr.json"] = json.dumps(root).encode()
    return {k: v for k, v in out.items() if k != "writer.lock" and not k.startswith("progress.jsonl")}


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission was denied"),
    ],
)
def test_the_reason_of_a_refusal_is_said(small: Build, places: Iterator[Place], code: int, sentence: str) -> None:
    with pytest.raises(StoreWriteError, match=rf"{sentence}\. The row groups written so far are kept"):
        write_all(FailingStore(next(places), 20, code=code), small())


def test_workers_write_disjoint_row_groups_and_the_owner_counts_them(
    small: Build, places: Iterator[Place], tmp_path: Path
) -> None:
    made = small(rows=30, rows_per_group=4)
    alone, shared = next(places), next(places)
    write_all(alone, made)
    with FeatureWriter(shared, made.spec) as owner:
        workers = [GroupWriter(shared.url, made.spec) for _ in range(3)]
        records = [workers[group % 3].write(group, *made.group(group)) for group in reversed(owner.missing)]
        assert owner.missing == list(range(8)), "what workers wrote does not count before the owner says so"
        for record in records:
            owner.record(record)
        owner.commit()
    assert stored(shared) == stored(alone)


def test_a_row_group_that_is_not_there_cannot_be_counted(small: Build, places: Iterator[Place]) -> None:
    made = small()
    place = next(places)
    with FeatureWriter(place, made.spec) as owner:
        record = GroupWriter(place, made.spec).write(1, *made.group(1))
        place.remove("level_0/c.1.0.0.0")
        with pytest.raises(StoreError, match=r"row group 1 cannot be recorded: .*c\.1\.0\.0\.0' is missing"):
            owner.record(record)
        assert owner.missing == [0, 1, 2]


def test_a_clock_that_goes_backwards_changes_nothing(
    small: Build, places: Iterator[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small()
    steady, mad = next(places), next(places)
    write_all(steady, made)
    ticks = itertools.count()

    class Backwards(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime(2026, 1, 1, tzinfo=tz) - datetime.timedelta(days=next(ticks))

    monkeypatch.setattr("datetime.datetime", Backwards)
    for stop in (1, 2, 3):
        with FeatureWriter(mad, made.spec) as writer:
            for group in writer.missing[: stop if stop < 3 else None]:
                writer.write_group(group, *made.group(group))
            if not writer.missing:
                writer.commit()
                break
            with pytest.raises(StoreLockedError):  # a lock from the future, or of long ago, is a lock
                FeatureWriter(mad, made.spec)
    assert stored(mad) == stored(steady)
