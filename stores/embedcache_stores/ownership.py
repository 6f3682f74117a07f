"""Whose folder is it: the writer's lock, and never touching a folder that embedcache did not make."""

from __future__ import annotations

import datetime
import fcntl
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

from embedcache_stores.durable import explained_writes
from embedcache_stores.errors import NotAStoreError, StoreLockedError
from embedcache_stores.manifest import COMMIT_FILE, PROGRESS_FILE, is_header, peek_manifest, read_progress

LOCK_FILE = "writer.lock"
_OURS = re.compile(r"zarr\.json|c(\.\d+)+|(zarr|c)\..*\.partial")
"""What an array's folder may hold: metadata, chunks, and the temporary files of zarr's local store."""


def acquire(root: Path) -> Any:
    """Take the writer's lock; the kernel releases it when the process ends, however it ends."""
    lock = (root / LOCK_FILE).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise StoreLockedError(
            f"store {str(root)!r} is being written by {holder}. Wait for it, or stop it and run this command again."
        ) from error
    lock.truncate(0)
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
    lock.flush()
    return lock


def refuse_foreign(root: Path) -> None:
    """Raise where the folder holds anything but a store, or what a writer killed before its header leaves."""
    if (root / COMMIT_FILE).exists():
        return
    progress = root / PROGRESS_FILE
    if progress.exists() and is_header(read_progress(progress)[0]):
        return
    ours = b'{"schema_version"'
    start = progress.read_bytes()[: len(ours)] if progress.exists() else b""
    if not ours.startswith(start) or not all(_is_begun(p) for p in root.iterdir()):
        raise NotAStoreError(
            f"{str(root)!r} exists and is not a feature store; move it away or choose another --cache."
        )


def discard(path: str | os.PathLike[str]) -> None:
    """Remove a feature store, committed or not; refuses anything that is not one.

    Raises
    ------
    NotAStoreError, StoreNotFoundError
        If no feature store is there.
    StoreLockedError
        If a process is writing it.
    """
    root = Path(path)
    peek_manifest(root)
    with explained_writes(root):
        lock = acquire(root)
        try:
            (root / COMMIT_FILE).unlink(missing_ok=True)  # first, so that no reader meets a half-removed store
            shutil.rmtree(root)
        finally:
            lock.close()


def _is_begun(path: Path) -> bool:
    """Whether an entry of a folder is what a writer leaves that was killed before its header was whole."""
    if path.is_dir():
        return all(_OURS.fullmatch(p.name) for p in path.iterdir())
    return path.name in {PROGRESS_FILE, LOCK_FILE}
