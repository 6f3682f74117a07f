"""Rows of uncompressed local chunks, copied from the page cache straight into the caller's buffer.

An uncompressed chunk is raw rows at a known offset, so it can be mapped into memory and its rows copied without zarr's
codec pipeline, which is 10 to 100 times slower for random rows (``docs/benchmarks/reading.md``). A chunk's checksum is
compared once, when it is first touched; later reads go at the speed of memory.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache_stores.chunks import CRC_BYTES, chunk_key, crc32c
from embedcache_stores.errors import DamagedStoreError
from embedcache_stores.schema import ArraySpec

_MAPS_AT_ONCE = 8192
_SMALL_ROW = 32768
"""Bytes of a row below which one numpy call a chunk beats one a row."""


class DirectReader:
    """Reads one array of one store. Safe to use from several threads; holds maps, not copies."""

    def __init__(
        self,
        folder: Path,
        spec: ArraySpec,
        rows: int,
        rows_per_group: int,
        *,
        check: bool = True,
        still: Callable[[], None] = lambda: None,
    ) -> None:
        """Describe an array; no file is opened.

        Parameters
        ----------
        folder
            Of the array, holding its chunks.
        spec
            Its shape and dtype on disk.
        rows, rows_per_group
            Of the store.
        check
            Compare each chunk's checksum when it is first touched, which reads all of it.
        still
            Called after a chunk was opened; raises where the store is not the one that was opened any more.
        """
        self._check, self._still = check, still
        self.folder, self.spec, self.rows, self.rows_per_group = folder, spec, rows, rows_per_group
        self.dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._maps: OrderedDict[int, npt.NDArray[Any]] = OrderedDict()

    def chunk(self, group: int) -> npt.NDArray[Any]:
        """Map one row group, read-only, ``(rows_per_group * views, *shape)``: a row's views follow each other.

        Rows beyond the store's last are zeros.

        Raises
        ------
        DamagedStoreError
            If the file is missing, has not the size that its shape needs, or not the bytes that were written.
        """
        found = self._maps.get(group)
        if found is None:
            found = self._maps[group] = self._map(group)
            while len(self._maps) > _MAPS_AT_ONCE:  # the kernel allows a process 65530 maps
                self._maps.popitem(last=False)
        return found

    def read_into(
        self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any], views: npt.NDArray[np.int64] | None = None
    ) -> None:
        """Copy rows, in the order asked, into ``out``.

        Parameters
        ----------
        rows
            ``(n,)`` int64, each in ``0..rows-1`` (the caller has checked); may repeat.
        out
            ``(n, *shape)`` in the dtype on disk; a slice of channels of a wider buffer will do.
        views
            ``(n,)`` place of the view to copy of each row; None is the first of all. No other view is touched.
        """
        if not len(rows):
            return
        places = rows * self.spec.views + (0 if views is None else views)
        per_group = self.rows_per_group * self.spec.views
        groups, inside = np.divmod(places, per_group)
        if self._contiguous(places):
            at = 0
            for group in range(int(groups[0]), int(groups[-1]) + 1):
                first = int(inside[at])
                count = min(per_group - first, len(rows) - at)
                np.copyto(out[at : at + count], self.chunk(group)[first : first + count])
                at += count
        elif self.spec.row_bytes // self.spec.views < _SMALL_ROW:
            for group in np.unique(groups):
                here = np.flatnonzero(groups == group)
                out[here] = self.chunk(int(group))[inside[here]]
        else:
            for position, (group, row) in enumerate(zip(groups.tolist(), inside.tolist(), strict=True)):
                np.copyto(out[position], self.chunk(group)[row])

    @staticmethod
    def _contiguous(rows: npt.NDArray[np.int64]) -> bool:
        return int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all())

    def _map(self, group: int) -> npt.NDArray[Any]:
        path = self.folder / chunk_key(group, self.spec)
        first = group * self.rows_per_group
        rows = f"rows {first}..{min(first + self.rows_per_group, self.rows) - 1} of {self.spec.name!r}"
        need = self.rows_per_group * self.spec.row_bytes
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            self._still()
            raise DamagedStoreError(str(path), rows, "is lost") from error
        try:
            self._still()
            size = os.fstat(descriptor).st_size
            if size != need + CRC_BYTES:
                raise DamagedStoreError(str(path), rows, f"has {size} bytes instead of {need + CRC_BYTES}")
            shape = (self.rows_per_group * self.spec.views, *self.spec.shape)
            if need == 0:
                return np.empty(shape, self.dtype)
            mapped = mmap.mmap(descriptor, size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        finally:
            os.close(descriptor)
        raw = np.frombuffer(mapped, dtype=np.uint8)
        if self._check and crc32c(raw[:need]) != raw[need:].tobytes():
            raise DamagedStoreError(str(path), rows, "is not what was written: its checksum is wrong")
        return raw[:need].view(self.dtype).reshape(shape)
