"""Runs an extraction plan: decode, encode and write overlap; memory is bounded; a kill loses one row group at most."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.backbones._spec import FeatureExtractor
from embedcache.backbones._weights import load_backbone
from embedcache.encoding import Row, encode
from embedcache.errors import SampleError
from embedcache.extraction_plan import ExtractionPlan
from embedcache.preprocessing import resize_mask
from embedcache_stores.ownership import discard
from embedcache_stores.schema import STRING, ArraySpec
from embedcache_stores.writer import FeatureWriter

SKIPPED = "skipped"
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
) -> Path:
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
    Path
        The committed store.

    Raises
    ------
    SampleError
        An image is unusable and ``skip_bad`` is off.
    FeatureError
        Features are not finite, or do not fit the stored dtype.
    StoreWriteError
        The disk refused. What was durable stays.
    """
    if plan.complete:
        return plan.path
    model = extractor or load_backbone(
        plan.backbone, plan.weights, plan.preprocessing.bands, plan.preprocessing.input_size
    )
    model.module.to(plan.device)
    if plan.replace and plan.path.exists():
        discard(plan.path)
    with FeatureWriter(plan.path, plan.spec) as writer:
        _run(plan, model, writer, on_progress)
        writer.commit()
    return plan.path


def _run(
    plan: ExtractionPlan,
    model: FeatureExtractor,
    writer: FeatureWriter,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    missing = writer.missing
    done = plan.spec.rows - sum(_length(plan.spec.group_rows(g)) for g in missing)
    encoded, skipped, start = 0, 0, time.perf_counter()
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "embedcache-write") as pool, _Reader(plan, missing) as reader:
        for group in missing:
            buffer = _GroupBuffer(plan, plan.spec.group_rows(group))
            while not buffer.full:
                rows = next(reader)
                buffer.add(rows, encode(plan, model, rows))
                encoded += len(rows)
                skipped += sum(isinstance(r, SampleError) for r in rows)
                if on_progress is not None:
                    on_progress(
                        Progress(
                            rows=done + encoded,
                            total=plan.spec.rows,
                            new_rows=encoded,
                            nbytes=encoded * plan.spec.row_bytes,
                            seconds=time.perf_counter() - start,
                            skipped=skipped,
                        )
                    )
            while len(writing) >= _GROUPS_IN_FLIGHT:
                writing.popleft().result()  # raises what the writing thread met
            writing.append(pool.submit(writer.write_group, group, buffer.arrays, buffer.columns))
        for future in writing:
            future.result()


class _Reader(AbstractContextManager["_Reader"]):
    """Decodes samples in threads, a few batches ahead, and yields them batch by batch in row order.

    Batches never straddle row groups, so that a row is computed in the same company whether or not the run was
    interrupted: only then are resumed stores bit-identical.
    """

    def __init__(self, plan: ExtractionPlan, groups: list[int]) -> None:
        self._plan = plan
        self._todo = self._batches(groups)
        self._pool = ThreadPoolExecutor(plan.workers, "embedcache-read")
        self._ahead: deque[list[Future[Row]]] = deque()
        for _ in range(_BATCHES_AHEAD):
            self._submit()

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> list[Row]:
        batch = [future.result() for future in self._ahead.popleft()]
        self._submit()
        return batch

    def _submit(self) -> None:
        rows = next(self._todo, None)
        if rows is not None:
            self._ahead.append([self._pool.submit(self._read, row) for row in rows])

    def _batches(self, groups: list[int]) -> Iterator[range]:
        for group in groups:
            rows = self._plan.spec.group_rows(group)
            for start in range(rows.start, rows.stop, self._plan.batch_size):
                yield range(start, min(start + self._plan.batch_size, rows.stop))

    def _read(self, row: int) -> Row:
        plan = self._plan
        try:
            sample = plan.source.read(plan.indices[row], plan.preprocessing.source_bands)
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
    """Collects the batches of one row group, with the small columns beside."""

    def __init__(self, plan: ExtractionPlan, group: slice) -> None:
        self._plan = plan
        self._first = group.start
        self._filled = 0
        self._rows = rows = _length(group)
        self.arrays = {a.name: np.empty((rows, *a.shape), a.dtype) for a in plan.spec.arrays}
        self.columns = {c.name: _blank(c, rows) for c in plan.spec.columns}

    @property
    def full(self) -> bool:
        """Whether every row is in."""
        return self._filled == self._rows

    def add(self, rows: list[Row], features: Mapping[str, npt.NDArray[Any]]) -> None:
        """Append one batch."""
        here = slice(self._filled, self._filled + len(rows))
        for name, values in features.items():
            self.arrays[name][here] = values
        for offset, row in enumerate(rows):
            self._add_row(self._filled + offset, row)
        self._filled += len(rows)

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
