"""Runs an extraction plan: decode, encode and write overlap; memory is bounded; a kill loses one row group at most."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.backbones._spec import FeatureExtractor
from embedcache.backbones._weights import load_backbone
from embedcache.encoding import Row, buffer_dtype, encode
from embedcache.errors import SampleError
from embedcache.extraction_plan import ExtractionPlan
from embedcache.preprocessing import resize_mask
from embedcache_stores.ownership import discard
from embedcache_stores.place import Place
from embedcache_stores.repair import reopen
from embedcache_stores.schema import CONTENT, SKIPPED, STRING, ArraySpec
from embedcache_stores.writer import FeatureWriter, KeptGroup

_BATCHES_AHEAD = 3
_GROUPS_IN_FLIGHT = 2


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an extraction is."""

    rows: int
    """Rows encoded or already durable."""
    total: int
    new_rows: int
    """Rows encoded in this run."""
    nbytes: int
    """Bytes of features encoded in this run."""
    seconds: float
    skipped: int


def extract(
    plan: ExtractionPlan,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    extractor: FeatureExtractor | None = None,
) -> Place:
    """Write the feature store that a plan describes, continuing where an earlier run stopped.

    Parameters
    ----------
    plan
        From :func:`embedcache.extraction_plan.plan_extraction`.
    on_progress
        Called after every batch.
    extractor
        A backbone already loaded for this plan; None loads it.

    Returns
    -------
    Place
        The committed store.

    Raises
    ------
    SampleError
        An image is unusable and ``skip_bad`` is off.
    FeatureError
        Features are not finite, or do not fit the stored dtype.
    AuditError
        The input audit found errors, and they were not accepted.
    StoreWriteError
        The disk refused. What was durable stays.
    """
    if plan.complete:
        plan.contents.save()
        return plan.place
    plan.refuse()
    if plan.replace:
        discard(plan.place)
    elif plan.stale:
        reopen(plan.place, redo=_by_group(plan))
    try:
        with FeatureWriter(plan.place, plan.spec) as writer:
            if writer.missing:
                _run(plan, extractor or _load(plan), writer, on_progress)
            writer.commit()
    finally:
        plan.contents.save()
    return plan.place


def _load(plan: ExtractionPlan) -> FeatureExtractor:
    return load_backbone(plan.backbone, plan.weights, plan.preprocessing.bands, plan.preprocessing.input_size)


def _by_group(plan: ExtractionPlan) -> dict[int, list[int]]:
    """Stale rows by row group, counted within it."""
    out: dict[int, list[int]] = {}
    for row in plan.stale:
        group, inside = divmod(row, plan.spec.rows_per_group)
        out.setdefault(group, []).append(inside)
    return out


def _run(
    plan: ExtractionPlan,
    model: FeatureExtractor,
    writer: FeatureWriter,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    model.module.to(plan.device)
    work = [_Work(plan, group, writer.kept(group)) for group in writer.missing]
    to_do = sum(len(rows) for one in work for rows in one.batches)
    encoded, skipped, start = 0, 0, time.perf_counter()
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "embedcache-write") as pool, _Reader(plan, work) as reader:
        for one in work:
            buffer = _GroupBuffer(plan, one)
            for rows in one.batches:
                read = next(reader)
                buffer.put(rows, read, encode(plan, model, [row for row, _ in read]))
                encoded += len(rows)
                skipped += sum(isinstance(row, SampleError) for row, _ in read)
                if on_progress is not None:
                    on_progress(
                        Progress(
                            rows=plan.spec.rows - to_do + encoded,
                            total=plan.spec.rows,
                            new_rows=encoded,
                            nbytes=encoded * plan.spec.row_bytes,
                            seconds=time.perf_counter() - start,
                            skipped=skipped,
                        )
                    )
            while len(writing) >= _GROUPS_IN_FLIGHT:
                writing.popleft().result()  # raises what the writing thread met
            writing.append(pool.submit(writer.write_group, one.group, buffer.arrays, buffer.columns))
        for future in writing:
            future.result()


class _Work:
    """What is left to do of one row group: all of its batches, or those with rows whose files changed.

    Whole batches are encoded again, never single rows, so that a row is computed in the same company as ever: only
    then does a store that was mended have the bytes of one that was made anew.
    """

    def __init__(self, plan: ExtractionPlan, group: int, kept: KeptGroup | None) -> None:
        self.group, self.kept = group, kept
        self.rows = rows = plan.spec.group_rows(group)
        starts = range(rows.start, rows.stop, plan.batch_rows)
        batches = [range(start, min(start + plan.batch_rows, rows.stop)) for start in starts]
        redo = None if kept is None else {rows.start + row for row in kept.redo}
        self.batches = [b for b in batches if redo is None or redo & set(b)]


class _Reader(AbstractContextManager["_Reader"]):
    """Decodes samples in threads, a few batches ahead, and yields them batch by batch in row order.

    Batches never straddle row groups, so that a row is computed in the same company whether or not the run was
    interrupted: only then are resumed stores bit-identical.
    """

    def __init__(self, plan: ExtractionPlan, work: Sequence[_Work]) -> None:
        self._plan = plan
        self._todo = (rows for one in work for rows in one.batches)
        self._pool = ThreadPoolExecutor(plan.workers, "embedcache-read")
        self._ahead: deque[list[Future[tuple[Row, str]]]] = deque()
        for _ in range(_BATCHES_AHEAD):
            self._submit()

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> list[tuple[Row, str]]:
        batch = [future.result() for future in self._ahead.popleft()]
        self._submit()
        return batch

    def _submit(self) -> None:
        rows = next(self._todo, None)
        if rows is not None:
            self._ahead.append([self._pool.submit(self._read, row) for row in rows])

    def _read(self, row: int) -> tuple[Row, str]:
        index = self._plan.indices[row]
        content = self._plan.contents.hash_of(self._plan.source.files(index))  # first, so that no change goes unseen
        return self._decode(index), content

    def _decode(self, index: int) -> Row:
        plan = self._plan
        try:
            sample = plan.source.read(index, plan.preprocessing.source_bands)
            if plan.use_time and sample.time is None:
                raise SampleError(sample.sample_id, "it has no acquisition time, unlike the others (see --no-coords)")
            if plan.use_location and sample.lat is None:
                raise SampleError(sample.sample_id, "it has no location, unlike the others (see --no-coords)")
        except SampleError as error:
            if plan.skip_bad:
                return error
            raise
        return sample


class _GroupBuffer:
    """Collects the batches of one row group, with the small columns beside; what was kept is there from the start."""

    def __init__(self, plan: ExtractionPlan, work: _Work) -> None:
        self._plan = plan
        self._first = work.rows.start
        if work.kept is not None:
            self.arrays, self.columns = work.kept.arrays, work.kept.columns
            return
        rows = _length(work.rows)
        self.arrays = {a.name: np.empty((rows, *a.stored_shape), buffer_dtype(plan, a)) for a in plan.spec.arrays}
        self.columns = {c.name: _blank(c, rows) for c in plan.spec.columns}

    def put(self, rows: range, read: Sequence[tuple[Row, str]], features: Mapping[str, npt.NDArray[Any]]) -> None:
        """Put one batch in its place."""
        start = rows.start - self._first
        for name, values in features.items():
            self.arrays[name][start : start + len(rows)] = values
        for at, (row, content) in enumerate(read, start):
            for spec in self._plan.spec.columns:
                self.columns[spec.name][at] = _blank(spec, 1)[0]
            self.columns[CONTENT][at] = content
            self._add_row(at, row)

    def _add_row(self, at: int, row: Row) -> None:
        mask = self.arrays.get("mask")
        if isinstance(row, SampleError):
            self.columns["split"][at] = SKIPPED
            self.columns["problem"][at] = row.reason
            if mask is not None:
                mask[at] = -1
            return
        self.columns["split"][at] = self._plan.source.splits[self._plan.indices[self._first + at]]
        if mask is not None:
            mask[at] = resize_mask(np.asarray(row.target), mask.shape[1])
        elif row.target is not None:
            self.columns["label"][at] = row.target
        for name, value in (("time", row.time), ("lat", row.lat), ("lon", row.lon)):
            if name in self.columns and value is not None:
                self.columns[name][at] = value


def _blank(spec: ArraySpec, rows: int) -> npt.NDArray[Any]:
    if spec.dtype == STRING:
        return np.full(rows, "", dtype=object)
    fill = np.nan if np.dtype(spec.dtype).kind == "f" else -1 if spec.dtype == "int64" else 0
    return np.full((rows, *spec.shape), fill, dtype=spec.dtype)


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)
