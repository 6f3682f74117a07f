"""Stores in a local folder: temporary names, ``fsync``, rename; the kernel's lock."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedcache_stores.durable import fsync_path
from embedcache_stores.errors import StoreLockedError
from embedcache_stores.place import LOCK_FILE, PARTIAL, Lock, Place


class LocalPlace(Place):
    """A folder on a disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.url = str(self.path)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.name

    @property
    def parent_name(self) -> str:
        """Last part but one of the path."""
        return self.path.parent.name

    @property
    def is_local(self) -> bool:
        """Whether files can be mapped into memory."""
        return True

    def child(self, key: str) -> LocalPlace:
        """Return the place below this one."""
        return LocalPlace(self.path / key)

    def found(self) -> bool:
        """Whether the folder is there."""
        return self.path.is_dir()

    def read(self, key: str) -> bytes:
        """Return a file's bytes."""
        return (self.path / key).read_bytes()

    def size(self, key: str) -> int | None:
        """Bytes of a file; None where there is none."""
        try:
            return (self.path / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def folders(self) -> list[str]:
        """Names of folders directly in this place, sorted."""
        return sorted(e.name for e in os.scandir(self.path) if e.is_dir())

    def files(self, folder: str = "") -> list[str]:
        """Names of files directly in a folder, sorted."""
        try:
            return sorted(e.name for e in os.scandir(self.path / folder) if not e.is_dir())
        except FileNotFoundError:
            return []

    def write(self, key: str, *parts: Any) -> None:
        """Write a file under a temporary name, force it to the disk, and rename it."""
        target = self.path / key
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + PARTIAL)
        with temporary.open("wb", buffering=0) as file:
            for part in parts:
                view = memoryview(part).cast("B") if len(part) else memoryview(b"")
                while len(view):  # one call takes 2 GiB at most
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
        temporary.replace(target)

    def sync(self, folder: str = "") -> None:
        """Force a folder's entries to the disk."""
        fsync_path(self.path / folder)

    def remove(self, key: str) -> None:
        """Remove a file; nothing happens where there is none."""
        (self.path / key).unlink(missing_ok=True)

    def remove_folder(self, folder: str = "") -> None:
        """Remove a folder with all that is in it."""
        if (self.path / folder).exists():
            shutil.rmtree(self.path / folder)

    def append(self, log: str, number: int, line: bytes) -> None:
        """Append a line, in one write, and force it to the disk."""
        with (self.path / log).open("ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self, log: str) -> list[bytes] | None:
        """Lines that are whole: a kill may have torn the last."""
        try:
            raw = (self.path / log).read_bytes()
        except FileNotFoundError:
            return None
        return raw.split(b"\n")[:-1]

    def replace_log(self, log: str, lines: Sequence[bytes]) -> None:
        """Replace the log in one atomic step."""
        self.write(log, b"".join(line + b"\n" for line in lines))
        self.sync()

    def cut_log(self, log: str, count: int) -> None:
        """Truncate the file."""
        sound = sum(len(line) + 1 for line in (self.lines(log) or [])[:count])
        if sound != self.size(log):
            os.truncate(self.path / log, sound)

    def remove_log(self, log: str) -> None:
        """Remove a log."""
        self.remove(log)

    def lock(self, owner: str) -> Lock:
        """Take a kernel lock: it is released when the process ends, however it ends, whatever a clock says."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / LOCK_FILE).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise StoreLockedError(
                f"store {self.url!r} is being written by {holder}. Wait for it, or stop it and run this command again."
            ) from error
        file.truncate(0)
        file.write(owner)
        file.flush()
        return file

    def is_locked(self) -> bool:
        """Whether a process holds the kernel's lock."""
        try:
            with (self.path / LOCK_FILE).open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def zarr_store(self) -> tuple[Any, str]:
        """Return a local store rooted at the folder."""
        return str(self.path), ""
