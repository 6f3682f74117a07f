"""Writer, kill, fault, resume, reopen, repair and read in any order, against a plain model of what must be so."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from embedcache_stores import (
    ArraySpec,
    FeatureStore,
    FeatureWriter,
    FingerprintMismatchError,
    IncompleteStoreError,
    NotAStoreError,
    StoreChangedError,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
    StoreSpec,
    StoreWriteError,
    discard,
    open_place,
    peek_manifest,
)
from embedcache_stores.repair import reopen
from embedcache_stores.verify import verify_store

from .faults import FailingStore

ROWS, GROUP = 11, 4
GROUPS = 3
_names = itertools.count()


def spec_of(encoding: str) -> StoreSpec:
    dtype, how = {"float16": ("float16", None), "bfloat16": ("uint16", "bfloat16"), "int8": ("int8", "int8")}[encoding]
    extra: dict[str, Any] = {"encoding": how}
    return StoreSpec(
        sample_ids=tuple(f"s{i}" for i in range(ROWS)),
        arrays=(
            ArraySpec(name="pooled_mean", dims=("channel",), shape=(3,), dtype=dtype, **extra),
            ArraySpec(name="level_0", dims=("channel_0", "y_0", "x_0"), shape=(2, 2, 2), dtype=dtype, **extra),
        ),
        columns=(ArraySpec(name="split", dtype="string"), ArraySpec(name="lat", dtype="float64")),
        provenance={"encoding": encoding},
        rows_per_group=GROUP,
        attrs={"title": "model"},
    )


class StoreMachine(RuleBasedStateMachine):
    """The model: which row groups count as durable, with what version of their content, and whether it is committed."""

    where = "local"

    @initialize(encoding=st.sampled_from(["float16", "bfloat16", "int8"]))
    def begin(self, encoding: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        root = str(self.folder) if self.where == "local" else f"memory://machine{next(_names)}"
        self.place = open_place(f"{root}/m-x/a.zarr")
        self.spec = spec_of(encoding)
        self.writer: FeatureWriter | None = None
        self.durable: dict[int, int] = {}
        self.redo: dict[int, set[int]] = {}
        self.committed = False
        self.maybe: set[int] = set()
        self.open_reader: tuple[FeatureStore, dict[int, int]] | None = None

    def teardown(self) -> None:
        if getattr(self, "writer", None) is not None:
            assert self.writer is not None
            self.writer.close()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def content(self, group: int, version: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        rng = np.random.default_rng([group, version])
        rows = self.spec.group_rows(group)
        count = rows.stop - rows.start
        arrays = {a.name: rng.normal(size=(count, *a.shape)).astype(np.float32) for a in self.spec.arrays}
        split = np.array([f"{'train' if version == 0 else 'test'}"] * count, dtype=object)
        return arrays, {"split": split, "lat": rng.normal(size=count)}

    @precondition(lambda self: self.writer is None and not self.committed)
    @rule()
    def open_writer(self) -> None:
        self.writer = FeatureWriter(self.place, self.spec)
        assert set(self.writer.done) == set(self.durable)
        for group in self.redo:
            kept = self.writer.kept(group)
            assert kept is not None
            assert set(kept.redo) == self.redo[group]

    @precondition(lambda self: self.writer is not None)
    @rule(group=st.integers(0, GROUPS - 1), version=st.integers(0, 1))
    def write(self, group: int, version: int) -> None:
        assert self.writer is not None
        self.writer.write_group(group, *self.content(group, version))
        self.durable[group] = version
        self.redo.pop(group, None)

    @precondition(lambda self: self.writer is not None)
    @rule()
    def second_writer_is_refused(self) -> None:
        with pytest.raises(StoreLockedError):
            FeatureWriter(self.place, self.spec)
        with pytest.raises(StoreLockedError):
            discard(self.place)

    @precondition(lambda self: self.writer is not None)
    @rule()
    def leave(self) -> None:
        """An exception, an interrupt, or the process's death: the lock goes, and nothing else happens."""
        assert self.writer is not None
        self.writer.close()
        self.writer = None

    @precondition(lambda self: self.writer is None and not self.committed)
    @rule(k=st.integers(1, 60), after=st.booleans(), version=st.integers(0, 1))
    def a_run_that_fails_at_operation_k(self, k: int, after: bool, version: int) -> None:
        missing = [g for g in range(GROUPS) if g not in self.durable]
        durable_now = dict(self.durable)
        try:
            with FeatureWriter(FailingStore(self.place, k, after=after), self.spec) as writer:
                for group in missing:
                    durable_now[group] = version  # from here on it may or may not count
                    writer.write_group(group, *self.content(group, version))
                writer.commit()
        except StoreWriteError:
            pass
        self.place.remove("writer.lock")
        state = self.state()
        self.committed = state == "complete"
        if self.committed:
            self.durable, self.redo = durable_now, {}
            return
        done = self.groups_counted() if state == "partial" else set()
        assert set(self.durable) <= done <= set(durable_now), "a durable row group was lost, or one counts that is not"
        self.durable = {g: durable_now[g] for g in done}
        self.redo = {g: rows for g, rows in self.redo.items() if g not in done}

    def state(self) -> str:
        try:
            return peek_manifest(self.place).state
        except (NotAStoreError, StoreNotFoundError):
            return "none"

    def groups_counted(self) -> set[int]:
        with FeatureWriter(self.place, self.spec) as writer:
            return set(writer.done)

    @precondition(lambda self: self.writer is not None)
    @rule()
    def commit(self) -> None:
        assert self.writer is not None
        if len(self.durable) < GROUPS:
            with pytest.raises(StoreError, match="cannot be committed"):
                self.writer.commit()
            return
        self.writer.commit()
        self.writer.close()
        self.writer, self.committed = None, True

    @precondition(lambda self: self.committed)
    @rule(bad=st.sets(st.integers(0, GROUPS - 1), max_size=2), redo=st.dictionaries(st.integers(0, 2), st.just({0, 1})))
    def reopen_to_mend(self, bad: set[int], redo: dict[int, set[int]]) -> None:
        redo = {g: rows for g, rows in redo.items() if g not in bad}
        self.changed = True
        reopen(self.place, drop=bad, redo=redo)
        self.committed = False
        int8 = self.spec.arrays[0].encoding == "int8"
        self.durable = {g: v for g, v in self.durable.items() if g not in bad and g not in redo}
        self.redo = {} if int8 else dict(redo)

    @precondition(lambda self: self.committed)
    @rule()
    def a_committed_store_refuses_writers(self) -> None:
        with pytest.raises(StoreError, match="complete and never changes"):
            FeatureWriter(self.place, self.spec)

    @precondition(lambda self: self.writer is None and self.state() != "none")
    @rule()
    def another_recipe_is_refused(self) -> None:
        import dataclasses

        with pytest.raises(FingerprintMismatchError):
            FeatureWriter(self.place, dataclasses.replace(self.spec, provenance={"encoding": "other"}))

    @precondition(lambda self: self.writer is None and self.state() != "none")
    @rule()
    def remove(self) -> None:
        self.changed = True
        discard(self.place)
        self.durable, self.redo, self.committed = {}, {}, False
        assert self.state() == "none"

    @precondition(lambda self: self.committed)
    @rule()
    def verify_finds_nothing(self) -> None:
        assert verify_store(self.place).faults == []

    @precondition(lambda self: self.committed and self.where == "local")
    @rule()
    def open_a_reader(self) -> None:
        store = FeatureStore(self.place)
        store.read("level_0", np.arange(ROWS))  # mapped from here on, scales and all
        self.open_reader = store, dict(self.durable)
        self.changed = False

    @invariant()
    def an_open_reader_sees_what_it_saw(self) -> None:
        if getattr(self, "open_reader", None) is not None:
            assert self.open_reader is not None
            store, versions = self.open_reader
            self.compare(store, versions, ["level_0"])
            try:  # not mapped: what it was, or nothing, never a mixture
                self.compare(store, versions, ["pooled_mean"])
            except StoreChangedError:
                assert self.changed, "the store is the one that was opened"

    @invariant()
    def readers_see_the_whole_store_or_none(self) -> None:
        if not hasattr(self, "place"):
            return
        if not self.committed:
            with pytest.raises((IncompleteStoreError, NotAStoreError, StoreNotFoundError)):
                FeatureStore(self.place)
            return
        store = FeatureStore(self.place)
        self.compare(store, self.durable, ["pooled_mean", "level_0"])
        expected = [s for g in range(GROUPS) for s in self.content(g, self.durable[g])[1]["split"]]
        assert store.split.tolist() == expected

    def compare(self, store: FeatureStore, versions: dict[int, int], names: list[str]) -> None:
        bound = {"float16": 2**-11, "bfloat16": 2**-8, "int8": 0}[self.spec.provenance["encoding"]]
        for group, version in versions.items():
            for name in names:
                expected = self.content(group, version)[0][name]
                rows = np.arange(ROWS)[self.spec.group_rows(group)]
                slack = np.abs(expected).max() / 127 if bound == 0 else 1e-6
                np.testing.assert_allclose(store.read(name, rows), expected, rtol=bound, atol=slack)


class BucketMachine(StoreMachine):
    """The same in an object store."""

    where = "memory"


TestOnADisk = StoreMachine.TestCase
TestOnADisk.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestInABucket = BucketMachine.TestCase
TestInABucket.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
