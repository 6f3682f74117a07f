"""Whose folder it is: never touching one that embedcache did not make, and removing stores so that no half is left."""

from __future__ import annotations

import datetime
import os
import re
import socket
from pathlib import Path

from embedcache_stores.durable import explained_writes
from embedcache_stores.errors import NotAStoreError
from embedcache_stores.manifest import COMMIT_FILE, PROGRESS_LOG, is_header, peek_manifest, read_progress
from embedcache_stores.place import LOCK_FILE, Location, Lock, Place, open_place

TRASH = ".trash"
"""Suffix of a store that is being removed."""
_OURS = re.compile(r"zarr\.json|c(\.\d+)+|(zarr|c)\..*\.partial")
"""What an array's folder may hold: metadata, chunks, and the temporary files of a killed writer."""
_ROOT = {PROGRESS_LOG, f"{PROGRESS_LOG}.partial", LOCK_FILE, f"{COMMIT_FILE}.partial"}


def acquire(place: Place) -> Lock:
    """Take the writer's lock, saying who holds it."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return place.lock(f"process {os.getpid()} on {socket.gethostname()} since {since}")


def refuse_foreign(place: Place) -> None:
    """Raise where the folder holds anything but a store, or what a writer killed before its header leaves."""
    if place.exists(COMMIT_FILE) or is_header(read_progress(place)[0]):
        return
    ours = b'{"schema_version"'
    start = place.read(PROGRESS_LOG)[: len(ours)] if place.is_local and place.exists(PROGRESS_LOG) else b""
    if not ours.startswith(start) or not _is_begun(place):
        raise NotAStoreError(
            f"{place.url!r} exists and is not a feature store; move it away or choose another --cache."
        )


def _is_begun(place: Place) -> bool:
    """Whether a folder holds only what a writer leaves that was killed before its header was whole."""
    if not place.found():
        return True
    if not set(place.files()) <= _ROOT:
        return False
    for folder in place.folders():
        if folder == PROGRESS_LOG:
            continue
        below = place.child(folder)
        if below.folders() or not all(_OURS.fullmatch(name) for name in below.files()):
            return False
    return True


def discard(location: Location) -> None:
    """Remove a feature store, committed or not; refuses anything that is not one.

    A local store is first renamed to ``NAME.zarr.trash``, so that a kill halfway leaves no half of a store under its
    name; ``embedcache gc`` sweeps what is left.

    Raises
    ------
    NotAStoreError, StoreNotFoundError
        If no feature store is there.
    StoreLockedError
        If a process is writing it.
    """
    place = open_place(location)
    peek_manifest(place)
    with explained_writes(place.url):
        lock = acquire(place)
        try:
            if place.is_local:
                trash = f"{place.url}{TRASH}"
                open_place(trash).remove_folder()
                Path(place).rename(trash)
                open_place(trash).remove_folder()
            else:
                place.remove(COMMIT_FILE)  # first, so that no reader meets a half-removed store
                place.remove_folder()
        finally:
            lock.close()
