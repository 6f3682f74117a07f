"""Batches of stored features as torch tensors, at the speed of memory: resident where they fit, else streamed.

**Resident**: the chosen rows are read once, in order, into RAM or the GPU's memory; batches are picked there.
**Streaming**: threads copy the rows of the next batches from the page cache into a ring of reused buffers (pinned when
there is a GPU), while the current one is trained on. Memory is bounded by the ring. Rows of uncompressed local stores
are visited in a uniformly random order; compressed and remote ones, whose chunks are costly to open, in windows of
whole row groups (:func:`embedcache.shuffling.shuffled`), of which two are held at a time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from embedcache.batch_source import BatchSource, Block, Rows
from embedcache.ensemble import Ensemble
from embedcache.errors import SettingError
from embedcache.shuffling import ShuffleReport, mixing, shuffled, windows_of

if TYPE_CHECKING:
    import torch

Mode = Literal["auto", "resident", "streaming"]
_AHEAD = 2
_WINDOW_BYTES = 512 << 20


@dataclass(frozen=True)
class Batch:
    """Some rows. Tensors of a streamed batch on the CPU are valid until the next batch is asked for."""

    x: dict[str, torch.Tensor]
    """Each array ``(b, channel, ...)`` in the stored dtype (float32 for int8, or where members differ)."""
    y: torch.Tensor | None
    """Class indices ``(b,)``, 0/1 ``(b, class)``, or masks ``(b, y, x)``; None where the store has no targets."""
    rows: Rows
    """``(b,)`` rows of the store."""


class FeatureLoader:
    """Yields the chosen rows of a store or ensemble in batches, shuffled by seed and epoch."""

    def __init__(
        self,
        features: Ensemble,
        arrays: Sequence[str],
        rows: npt.NDArray[np.integer[Any]],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        device: str = "cpu",
        mode: Mode = "auto",
        budget_bytes: int | None = None,
        window_groups: int | None = None,
        threads: int = 2,
        native: bool = False,
    ) -> None:
        """Plan how to load; nothing is read but the targets.

        Parameters
        ----------
        features
            A store or ensemble.
        arrays
            Names such as ``pooled_mean`` or ``level_0``.
        rows
            Rows of the store, such as those of one split.
        batch_size
            Rows of a batch; the last one may be smaller.
        seed
            Decides every epoch's order, and nothing else does.
        shuffle
            False visits rows as given.
        device
            Torch device of the batches.
        mode, budget_bytes
            ``auto`` is resident where the rows fit into the budget: half of what is free on the device.
        window_groups
            Shuffle in windows of so many row groups; None decides: uniform for uncompressed local stores that fit into
            half of the machine's memory (so that they stay in the page cache), else windows of about 512 MB.
        threads
            Threads that read ahead while streaming.
        native
            Give each member's maps on its own grid, under ``<store>/<array>``, instead of resized and joined.

        Raises
        ------
        SettingError
            If a number makes no sense, or ``resident`` does not fit.
        StoreNotFoundError
            If a member has no such array.
        """
        if batch_size < 1 or threads < 1 or (window_groups is not None and window_groups < 1):
            raise SettingError("batch size, threads and window must be at least 1.")
        self.features, self.batch_size, self.seed, self.device = features, batch_size, seed, device
        self.rows = np.asarray(rows, dtype=np.int64)
        self._shuffle, self._threads = shuffle, threads
        self._sources = (
            [BatchSource(Ensemble([m]), name, f"{m.name}/{name}") for m in features.stores for name in arrays]
            if native
            else [BatchSource(features, name) for name in arrays]
        )
        self._mask = BatchSource(features, "mask") if features.task == "segmentation" else None
        self.nbytes = len(self.rows) * sum(s.row_bytes for s in self._all)
        budget = free_bytes(device) // 2 if budget_bytes is None else budget_bytes
        if mode == "resident" and self.nbytes > budget:
            raise SettingError(
                f"{self.nbytes >> 20} MiB of features do not fit into the {budget >> 20} MiB allowed on {device}; "
                "stream them, or take fewer levels."
            )
        fits = self.nbytes <= budget
        self.mode: Mode = ("resident" if fits else "streaming") if mode == "auto" else mode
        self.rows_per_group = max(s.manifest.rows_per_group for s in features.stores)
        self._costly = any(m.store.direct(s.name) is None for s in self._all for m in s.members)
        self.window_groups = None if self.mode == "resident" else self._window(window_groups)

    def __len__(self) -> int:
        return len(self.sizes(0))

    def order(self, epoch: int) -> Rows:
        """Rows of an epoch in the order of their visit."""
        if not self._shuffle:
            return self.rows
        return shuffled(
            self.rows, self.seed, epoch, rows_per_group=self.rows_per_group, window_groups=self.window_groups
        )

    def sizes(self, epoch: int) -> list[int]:
        """Rows of each batch of an epoch: every window ends with a batch that may be smaller."""
        parts = [len(self.rows)]
        if self._costly and self.mode == "streaming":
            parts = [len(w) for w in windows_of(self.order(epoch), self.rows_per_group, self.window_groups or 1)]
        return [min(self.batch_size, n - start) for n in parts for start in range(0, n, self.batch_size)]

    def mixing(self, epoch: int = 0) -> ShuffleReport:
        """How far an epoch's order is from a uniform shuffle."""
        return mixing(self.order(epoch), self.batch_size, self.rows_per_group)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        order = self.order(number)
        if self.mode == "resident":
            yield from self._resident_epoch(order)
        elif self._costly:
            yield from self._windowed_epoch(order)
        else:
            yield from self._streamed(order, self._ring(), None)

    @property
    def _all(self) -> list[BatchSource]:
        return [*self._sources, *([self._mask] if self._mask else [])]

    @cached_property
    def _labels(self) -> torch.Tensor | None:
        import torch

        if self._mask is not None or not self.features.stores[0].has("label"):
            return None
        label = self.features.label
        return torch.from_numpy(label.astype(np.float32 if label.ndim == 2 else np.int64))

    @cached_property
    def _resident(self) -> dict[str, torch.Tensor]:
        """All rows, sorted, on the device."""
        import torch

        rows = np.sort(self.rows)
        out = {}
        for source in self._all:
            whole = None
            step = max(1, (64 << 20) // max(1, source.row_bytes))
            buffers = source.buffers(min(step, max(1, len(rows))), pinned=False)
            for start in range(0, len(rows), step):
                some = rows[start : start + step]
                source.fill(some, buffers, None, None)
                part = source.values(some, [b[: len(some)].to(self.device) for b in buffers])
                if whole is None:
                    whole = torch.empty((len(rows), *part.shape[1:]), dtype=part.dtype, device=self.device)
                whole[start : start + len(some)] = part
            if whole is not None:
                out[source.key] = whole
        return out

    def _resident_epoch(self, order: Rows) -> Iterator[Batch]:
        import torch

        places = torch.from_numpy(np.searchsorted(np.sort(self.rows), order)).to(self.device)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            at = places[start : start + self.batch_size]
            yield self._batch({s.key: self._resident[s.key].index_select(0, at) for s in self._all}, rows)

    def _windowed_epoch(self, order: Rows) -> Iterator[Batch]:
        """Hold the window that is visited and read the next meanwhile; a batch never straddles two."""
        windows = windows_of(order, self.rows_per_group, self.window_groups or 1)
        ring = self._ring()
        with ThreadPoolExecutor(1, "embedcache-window") as pool:
            coming = deque([pool.submit(self._block, windows[0])] if windows else [])
            for number, window in enumerate(windows):
                block = coming.popleft().result()
                if number + 1 < len(windows):
                    coming.append(pool.submit(self._block, windows[number + 1]))
                yield from self._streamed(window, ring, block)

    def _ring(self) -> list[_Buffers]:
        """One buffer is with the caller, one stays valid until the next batch is there, the others are filled ahead."""
        pinned = self.device.startswith("cuda")
        count = _AHEAD + self._threads
        return [_Buffers([s.buffers(self.batch_size, pinned=pinned) for s in self._all]) for _ in range(count)]

    def _block(self, window: Rows) -> Block:
        rows = np.sort(window)
        out = {}
        for source in self._all:
            for member in source.members:
                block = np.empty((len(rows), *member.spec.shape), dtype=member.spec.dtype)
                member.store.read_stored_into(source.name, rows, block)
                out[member.store.name, source.name] = block
        return out

    def _streamed(self, order: Rows, ring: list[_Buffers], block: Block | None) -> Iterator[Batch]:
        cuda = self.device.startswith("cuda")
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        held = np.sort(order) if block is not None else None

        def fill(number: int) -> _Buffers:
            buffers, rows = ring[number % len(ring)], batches[number]
            buffers.wait()
            at = None if held is None else np.searchsorted(held, rows)
            for source, some in zip(self._all, buffers.tensors, strict=True):
                source.fill(rows, some, block, at)
            return buffers

        with ThreadPoolExecutor(self._threads, "embedcache-load") as pool:
            coming: deque[Future[_Buffers]] = deque()
            for number, rows in enumerate(batches):
                while len(coming) < len(ring) - 1 and number + len(coming) < len(batches):
                    coming.append(pool.submit(fill, number + len(coming)))
                buffers = coming.popleft().result()
                x = {}
                for source, some in zip(self._all, buffers.tensors, strict=True):
                    here = [t[: len(rows)].to(self.device, non_blocking=cuda) for t in some]
                    x[source.key] = source.values(rows, here)
                buffers.sent(self.device)
                yield self._batch(x, rows)

    def _batch(self, x: dict[str, torch.Tensor], rows: Rows) -> Batch:
        import torch

        y = x.pop("mask", None) if self._mask is not None else None
        if self._labels is not None:
            y = self._labels[torch.from_numpy(rows)].to(self.device)
        return Batch(x, y, rows)

    def _window(self, asked: int | None) -> int | None:
        if asked is not None:
            return asked
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if not self._costly and self.nbytes <= machine // 2:
            return None
        group = self.nbytes // max(
            1, len(np.unique(self.rows // self.rows_per_group))
        )  # of chosen rows: few, in a part
        return max(1, _WINDOW_BYTES // max(1, group))


class _Buffers:
    """One batch's buffers, which may still be on their way to a GPU."""

    def __init__(self, tensors: list[list[torch.Tensor]]) -> None:
        self.tensors = tensors
        self._event: Any = None

    def sent(self, device: str) -> None:
        """Take note that a copy to the device was queued."""
        import torch

        if device.startswith("cuda"):
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait for that copy before the buffers are filled again."""
        if self._event is not None:
            self._event.synchronize()


def free_bytes(device: str) -> int:
    """Bytes free on a device: GPU memory, or what the machine can give without swapping."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2
