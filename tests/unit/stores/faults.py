"""A place that fails on purpose: for every k, the k-th operation."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

from embedcache_stores.place import Lock, Place


class FailingStore(Place):
    """Wraps a place; the operation of that number raises, before or after it took effect, and so do all later ones."""

    def __init__(self, inner: Place, fail_at: int | None = None, *, after: bool = False, code: int = errno.EIO) -> None:
        self.inner, self.url = inner, inner.url
        self._fail_at, self._after, self._code = fail_at, after, code
        self.count = 0

    def _do(self, work: Callable[[], Any]) -> Any:
        self.count += 1
        failing = self._fail_at is not None and self.count >= self._fail_at
        if failing and self._after and self.count == self._fail_at:
            work()
        if failing:
            raise OSError(self._code, "made to fail")
        return work()

    @property
    def is_local(self) -> bool:
        return self.inner.is_local

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def parent_name(self) -> str:
        return self.inner.parent_name

    def child(self, key: str) -> Place:
        return self.inner.child(key)

    def found(self) -> bool:
        return bool(self._do(self.inner.found))

    def read(self, key: str) -> bytes:
        return bytes(self._do(lambda: self.inner.read(key)))

    def size(self, key: str) -> int | None:
        size: int | None = self._do(lambda: self.inner.size(key))
        return size

    def folders(self) -> list[str]:
        return list(self._do(self.inner.folders))

    def files(self, folder: str = "") -> list[str]:
        return list(self._do(lambda: self.inner.files(folder)))

    def write(self, key: str, *parts: Any) -> None:
        self._do(lambda: self.inner.write(key, *parts))

    def sync(self, folder: str = "") -> None:
        self._do(lambda: self.inner.sync(folder))

    def remove(self, key: str) -> None:
        self._do(lambda: self.inner.remove(key))

    def remove_folder(self, folder: str = "") -> None:
        self._do(lambda: self.inner.remove_folder(folder))

    def append(self, log: str, number: int, line: bytes) -> None:
        self._do(lambda: self.inner.append(log, number, line))

    def lines(self, log: str) -> list[bytes] | None:
        lines: list[bytes] | None = self._do(lambda: self.inner.lines(log))
        return lines

    def replace_log(self, log: str, lines: Sequence[bytes]) -> None:
        self._do(lambda: self.inner.replace_log(log, lines))

    def cut_log(self, log: str, count: int) -> None:
        self._do(lambda: self.inner.cut_log(log, count))

    def remove_log(self, log: str) -> None:
        self._do(lambda: self.inner.remove_log(log))

    def lock(self, owner: str) -> Lock:
        lock: Lock = self._do(lambda: self.inner.lock(owner))
        return lock

    def is_locked(self) -> bool:
        return self.inner.is_locked()

    def zarr_store(self) -> tuple[Any, str]:
        return self.inner.zarr_store()
