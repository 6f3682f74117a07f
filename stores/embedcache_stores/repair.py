"""Takes a committed store back to being written, keeping every row group that is right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from embedcache_stores.durable import explained_writes
from embedcache_stores.errors import DamagedStoreError, StoreError
from embedcache_stores.manifest import COMMIT_FILE, GROUPS_FILE, PROGRESS_LOG, is_header, read_progress
from embedcache_stores.ownership import acquire
from embedcache_stores.place import Location, Place, open_place
from embedcache_stores.schema import Json


def reopen(location: Location, *, drop: Iterable[int] = (), redo: Mapping[int, Iterable[int]] | None = None) -> None:
    """Turn a store, committed or not, into a partial one that lacks some row groups; ``extract`` then refills it.

    Readers that have the store open keep what they mapped; others see an incomplete store until it is committed again.
    Killed halfway, the store is still the committed one, or already the partial one.

    Parameters
    ----------
    location
        Of the store.
    drop
        Row groups to forget entirely.
    redo
        Row groups of which only some rows are wrong, with those rows counted within the group. Their arrays are kept.
        In a store with int8 arrays they are dropped: one scale spans the group.

    Raises
    ------
    StoreLockedError
        If a process is writing the store.
    DamagedStoreError
        If the record of its row groups is lost too.
    """
    place = open_place(location)
    with explained_writes(place.url):
        lock = acquire(place)
        try:
            header, records = _recorded(place)
            if any(a.get("encoding") == "int8" for a in header["arrays"]):
                drop = {*drop, *(redo or {})}
            gone = set(drop)
            for group, rows in (redo or {}).items():
                if group in records:
                    rows_before = records[group].get("redo", [])
                    records[group]["redo"] = sorted({*rows_before, *(int(r) for r in rows)})
            kept = [records[g] for g in sorted(records) if g not in gone]
            place.replace_log(PROGRESS_LOG, [_line(header), *map(_line, kept)])
            place.remove(COMMIT_FILE)
            place.sync()
            place.remove(GROUPS_FILE)
        finally:
            lock.close()


def _recorded(place: Place) -> tuple[Json, dict[int, Json]]:
    """Return the header and the newest record of each row group, of a store in either state."""
    if place.exists(COMMIT_FILE) or not is_header(read_progress(place)[0]):
        try:
            lines = [json.loads(line) for line in place.read(GROUPS_FILE).splitlines()]
        except (FileNotFoundError, ValueError) as error:
            raise DamagedStoreError(
                f"store {place.url!r} cannot be repaired: its {GROUPS_FILE} is lost or unreadable ({error}), or an "
                "older embedcache wrote it. Extract it again with --rebuild."
            ) from error
        if not lines or not is_header(lines[0]):
            raise DamagedStoreError(f"store {place.url!r} cannot be repaired: its {GROUPS_FILE} has no header.")
        return lines[0], {record["group"]: record for record in lines[1:]}
    header, records, _ = read_progress(place)
    if header is None:
        raise StoreError(f"store {place.url!r} has no progress record.")
    return header, records


def _line(record: Json) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()
