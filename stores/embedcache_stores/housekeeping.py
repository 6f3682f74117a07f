"""What dead writers and interrupted removals leave in a cache, and sweeping it up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from embedcache_stores.durable import explained_writes
from embedcache_stores.errors import NotAStoreError, StoreNotFoundError
from embedcache_stores.manifest import PROGRESS_LOG, SUFFIX, peek_manifest, store_places
from embedcache_stores.ownership import TRASH, acquire, discard, refuse_foreign
from embedcache_stores.place import LOCK_FILE, PARTIAL, Place, open_place

_TEMPORARY = re.compile(r"(zarr|c)\..*\.partial|.*\.jsonl\.partial")


@dataclass(frozen=True)
class Leftover:
    """Something that no store needs."""

    place: Place
    """The store, or the folder itself where ``keys`` is empty."""
    keys: tuple[str, ...]
    what: str
    nbytes: int


def leftovers(cache: str, *, partial: bool = False) -> Iterator[Leftover]:
    """Find what may be removed from a cache; stores that are being written are left out.

    Parameters
    ----------
    cache
        Path or URL.
    partial
        Count stores that were never completed too; ``extract`` could still continue them.
    """
    root = open_place(cache)
    for place in store_places(root):
        if place.is_locked():
            continue
        try:
            manifest = peek_manifest(place)
        except StoreNotFoundError:
            continue
        except NotAStoreError:
            if _is_begun_only(place):
                yield Leftover(place, (), "begun, nothing written", _bytes(place))
            continue
        if manifest.state == "partial" and partial:
            done = f"{manifest.groups_done} of {manifest.groups} row groups"
            yield Leftover(place, (), f"never completed, {done}", _bytes(place))
            continue
        keys = [f"{f}/{k}" for f in place.folders() for k in place.files(f) if _TEMPORARY.fullmatch(k)]
        if manifest.state == "complete":
            keys += [k for k in place.files() if k in {PROGRESS_LOG, LOCK_FILE} or k.endswith(PARTIAL)]
            keys += [f"{PROGRESS_LOG}/{k}" for k in place.files(PROGRESS_LOG)] if not place.is_local else []
        if keys:
            yield Leftover(place, tuple(keys), "of a killed writer", sum(place.size(k) or 0 for k in keys))
    for dataset in root.folders():
        below = root.child(dataset)
        for name in below.folders():
            if name.endswith(f"{SUFFIX}{TRASH}"):
                trash = below.child(name)
                yield Leftover(trash, (), "of an interrupted removal", _bytes(trash))


def sweep(leftover: Leftover) -> None:
    """Remove it.

    Raises
    ------
    StoreLockedError
        If a process has begun to write there meanwhile.
    """
    place = leftover.place
    with explained_writes(place.url):
        if leftover.keys:
            for key in leftover.keys:
                place.remove(key)
        elif leftover.what.startswith("never completed"):
            discard(place)
        elif place.name.endswith(TRASH):
            place.remove_folder()
        else:
            lock = acquire(place)
            try:
                refuse_foreign(place)
                place.remove_folder()
            finally:
                lock.close()


def locks(cache: str) -> Iterator[tuple[Place, str]]:
    """Yield stores in a bucket that have a lock, with what it says; a dead process on another host leaves one."""
    for place in store_places(cache):
        if not place.is_local and place.exists(LOCK_FILE):
            yield place, place.read(LOCK_FILE).decode(errors="replace")


def _is_begun_only(place: Place) -> bool:
    try:
        refuse_foreign(place)
    except NotAStoreError:
        return False
    return place.exists(LOCK_FILE) or any(place.files(f) for f in place.folders())


def _bytes(place: Place) -> int:
    own = sum(place.size(k) or 0 for k in place.files())
    return own + sum(_bytes(place.child(f)) for f in place.folders())
