"""Takes a committed store back to being written, keeping every row group that is right."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping

from embedcache_stores.chunks import chunk_key
from embedcache_stores.durable import explained_writes
from embedcache_stores.encodings import decode, max_abs
from embedcache_stores.errors import NotAStoreError, StoreError
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.group_writer import to_json
from embedcache_stores.manifest import (
    ATTRIBUTE,
    COMMIT_FILE,
    GROUPS_FILE,
    PROGRESS_LOG,
    is_header,
    read_groups,
    read_progress,
)
from embedcache_stores.ownership import acquire
from embedcache_stores.place import Location, Place, open_place
from embedcache_stores.schema import Json
from embedcache_stores.verify import file_checksum


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
    StoreError
        If the record of its row groups is lost, and so are the columns that it could be made from.
    """
    place = open_place(location)
    with explained_writes(place.url):
        lock = acquire(place)
        try:
            header, records = _recorded(place, set(drop))
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


def _recorded(place: Place, without: set[int]) -> tuple[Json, dict[int, Json]]:
    """Return the header and the newest record of each row group, of a store in either state."""
    if not place.exists(COMMIT_FILE):
        header, records, _ = read_progress(place)
        if header is not None and is_header(header):
            return header, records
    with contextlib.suppress(NotAStoreError):  # lost: it can be made from the store itself
        return read_groups(place)
    try:
        return _rebuilt(FeatureStore(place), without)
    except (StoreError, NotAStoreError, KeyError) as error:
        raise StoreError(
            f"store {place.url!r} cannot be repaired, too much of it is lost: its {GROUPS_FILE}, and {error} Extract "
            "it again with --rebuild."
        ) from error


def _rebuilt(store: FeatureStore, without: set[int]) -> tuple[Json, dict[int, Json]]:
    """Make the records of row groups from what is stored; groups that will be dropped are not read."""
    root = json.loads(store.place.read(COMMIT_FILE))
    header = dict(root["attributes"][ATTRIBUTE])
    columns = {c.name: store.column(c.name) for c in store.manifest.columns}
    records: dict[int, Json] = {}
    for group in set(range(store.manifest.groups)) - without:
        rows = store.manifest.group_rows(group)
        record: Json = {
            "group": group,
            "columns": {name: to_json(values[rows]) for name, values in columns.items()},
            "max_abs": {},
            "crc32c": {},
        }
        for spec in store.manifest.arrays:
            raw = store.read_whole(spec.name, rows)
            key = f"{spec.stored_name}/{chunk_key(group, spec)}"
            record["crc32c"][spec.name] = file_checksum(store.place, key, plain=store.manifest.plain)
            scale = store.scales(spec.name)[group] if spec.encoding == "int8" else None
            record["max_abs"][spec.name] = max_abs(decode(raw, spec, scale))
            if scale is not None:
                record.setdefault("scales", {})[spec.name] = scale.tolist()
        records[group] = record
    return header, records


def _line(record: Json) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()
