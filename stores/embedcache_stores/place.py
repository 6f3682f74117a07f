"""Where a store lies, local folder or bucket, behind the dozen operations that its promise rests on."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

PARTIAL = ".partial"
LOCK_FILE = "writer.lock"
Location: TypeAlias = "str | os.PathLike[str] | Place"
"""A path, a URL (``s3://bucket/prefix``, ``gs://``, ``az://``, ``memory://name/prefix``), or a place already opened."""


class Lock(Protocol):
    """What :meth:`Place.lock` returns."""

    def close(self) -> None:
        """Let go."""
        ...


class Place(ABC):
    """A folder, or a prefix of an object store. Keys are relative and use ``/``.

    A file appears whole or not at all (:meth:`write`), locally and in a bucket. Locally its name survives a power cut
    only once its folder was passed to :meth:`sync`.
    """

    url: str
    """A path, or a URL."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def parent_name(self) -> str:
        """Last part but one of the path."""
        return self.url.rstrip("/").rpartition("/")[0].rpartition("/")[2]

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether files can be mapped into memory."""

    @abstractmethod
    def child(self, key: str) -> Place:
        """Return the place below this one."""

    @abstractmethod
    def found(self) -> bool:
        """Whether there is anything here: locally a folder, in a bucket a key."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return a file's bytes; FileNotFoundError where there is none."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Bytes of a file; None where there is none."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of folders directly in this place, sorted."""

    @abstractmethod
    def files(self, folder: str = "") -> list[str]:
        """Names of files directly in a folder, sorted; empty where there is none."""

    @abstractmethod
    def write(self, key: str, *parts: Any) -> None:
        """Write a file out of buffers one after the other; whole or not at all, its bytes durable."""

    @abstractmethod
    def sync(self, folder: str = "") -> None:
        """Make the names of a folder's files durable."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove a file; nothing happens where there is none."""

    @abstractmethod
    def remove_folder(self, folder: str = "") -> None:
        """Remove a folder with all that is in it, or this place itself."""

    @abstractmethod
    def append(self, log: str, number: int, line: bytes) -> None:
        """Append the line of that number to a log and make it durable."""

    @abstractmethod
    def lines(self, log: str) -> list[bytes] | None:
        """Lines of a log that are whole; None where there is no log."""

    @abstractmethod
    def replace_log(self, log: str, lines: Sequence[bytes]) -> None:
        """Make a log hold exactly these lines."""

    @abstractmethod
    def cut_log(self, log: str, count: int) -> None:
        """Keep the first lines of a log only, and nothing of a torn one."""

    @abstractmethod
    def remove_log(self, log: str) -> None:
        """Remove a log."""

    @abstractmethod
    def lock(self, owner: str) -> Lock:
        """Take the writer's lock.

        Raises
        ------
        StoreLockedError
            If a living process holds it.
        """

    @abstractmethod
    def is_locked(self) -> bool:
        """Whether a living process holds the writer's lock; nothing is changed by asking."""

    @abstractmethod
    def zarr_store(self) -> tuple[Any, str]:
        """Return what zarr needs to open this place for reading: a store, and a path in it."""

    def exists(self, key: str) -> bool:
        """Whether there is a file."""
        return self.size(key) is not None

    def __fspath__(self) -> str:
        if not self.is_local:
            raise TypeError(f"{self.url!r} is not a local path")
        return self.url

    def __str__(self) -> str:
        return self.url


def open_place(location: Location) -> Place:
    """Return the place that a path or URL names; nothing is read.

    Raises
    ------
    StoreError
        If the URL's kind is unknown, or its library is not installed.
    """
    if isinstance(location, Place):
        return location
    from embedcache_stores.local_place import LocalPlace

    text = os.fspath(location)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return LocalPlace(text)
    if scheme == "file":
        return LocalPlace(text.removeprefix("file://"))
    from embedcache_stores.object_place import ObjectPlace

    return ObjectPlace(text)
