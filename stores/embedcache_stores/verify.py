"""Reads every byte of a store and says what is wrong with it, by file and rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache_stores.chunks import CRC_BYTES, METADATA, chunk_key, crc32c
from embedcache_stores.encodings import FLOAT16_MOST, decode, max_abs
from embedcache_stores.errors import DamagedStoreError, NotAStoreError, StoreError
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.manifest import COMMIT_FILE, GROUPS_FILE, read_groups
from embedcache_stores.place import Location, Place, open_place
from embedcache_stores.schema import CONTENT, SKIPPED, VIEW_DIM, ArraySpec, fingerprint, ids_digest


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    file: str
    """Relative to the store."""
    problem: str
    array: str | None = None
    rows: tuple[int, int] | None = None
    """First and last row that it concerns."""
    group: int | None = None
    """Row group that must be made again."""

    def __str__(self) -> str:
        rows = f" (rows {self.rows[0]}..{self.rows[1]} of {self.array})" if self.rows else ""
        return f"{self.file}{rows}: {self.problem}"


@dataclass
class Values:
    """What the values of one array are like; rows of skipped images are left out."""

    count: int = 0
    nan: int = 0
    infinite: int = 0
    saturated: int = 0
    """At the largest number that float16 holds: they were cut to it."""
    max_abs: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return dict(vars(self))


@dataclass
class Verification:
    """What was found in one store."""

    location: str
    rows: int = 0
    files: int = 0
    nbytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    values: dict[str, Values] = field(default_factory=dict)

    @property
    def bad_groups(self) -> list[int]:
        """Row groups with a fault in their arrays."""
        return sorted({f.group for f in self.faults if f.group is not None})


def verify_store(location: Location, on_rows: Callable[[int, int], None] | None = None) -> Verification:
    """Check a committed store: every checksum, size and shape, the columns, the identity, and the values.

    Parameters
    ----------
    location
        Of the store.
    on_rows
        Called with the rows done and the rows in all.

    Raises
    ------
    IncompleteStoreError, StoreNotFoundError, NotAStoreError
        If there is no committed store. One whose commit record is damaged is reported, not raised.
    """
    place = open_place(location)
    found = Verification(place.url)
    try:
        store = FeatureStore(place)
    except NotAStoreError as error:
        if not (place.exists(COMMIT_FILE) and place.exists(GROUPS_FILE)):
            raise
        found.faults.append(Fault(COMMIT_FILE, str(error)))
        return found
    found.rows = store.rows
    found.faults += _faults_of_metadata(store)
    columns = _columns(store, found)
    found.faults += _faults_of_identity(store, columns)
    checksums = _recorded_checksums(store)
    skipped = columns.get("split", np.empty(0, dtype=object)) == SKIPPED
    for group in range(store.manifest.groups):
        rows = store.manifest.group_rows(group)
        here = skipped[rows] if len(skipped) == store.rows else np.zeros(rows.stop - rows.start, dtype=bool)
        for spec in store.manifest.arrays:
            found.faults += _check_group(store, spec, group, here, checksums, found)
        if on_rows is not None:
            on_rows(rows.stop, store.rows)
    found.faults += _faults_of_maxima(store, found)
    return found


def _faults_of_metadata(store: FeatureStore) -> Iterator[Fault]:
    manifest = store.manifest
    root = json.loads(store.place.read(COMMIT_FILE))
    consolidated = root.get("consolidated_metadata", {}).get("metadata", {})
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        a.stored_name: ((manifest.rows, *a.stored_shape), a.dtype) for a in (*manifest.arrays, *manifest.columns)
    }
    for name, (shape, dtype) in expected.items():
        key = f"{name}/{METADATA}"
        try:
            own = json.loads(store.place.read(key))
        except (FileNotFoundError, ValueError) as error:
            yield Fault(key, f"the array's metadata is lost or unreadable ({error})", name)
            continue
        if own != consolidated.get(name):
            yield Fault(key, f"it is not what {COMMIT_FILE} says of it", name)
        elif tuple(own["shape"]) != shape or own["data_type"] != dtype:
            yield Fault(key, f"it says {own['data_type']} {own['shape']}, the store {dtype} {list(shape)}", name)


def _columns(store: FeatureStore, found: Verification) -> dict[str, npt.NDArray[Any]]:
    out = {}
    views = (VIEW_DIM,) if len(store.views) > 1 else ()
    for name in ("sample_id", *views, *(c.name for c in store.manifest.columns)):
        try:
            out[name] = store.column(name)
        except (DamagedStoreError, KeyError) as error:
            found.faults.append(Fault(name, f"the column cannot be read: {error}", name))
            continue
        if not _every_chunk_is_there(store, name):
            found.faults.append(Fault(name, "a chunk of the column is lost", name))
    return out


def _every_chunk_is_there(store: FeatureStore, name: str) -> bool:
    array = store.array(name)
    chunks = -(-array.shape[0] // array.chunks[0])
    names = set(store.place.files(name))
    return all(chunk_key(i, store.spec(name)) in names for i in range(chunks))


def _faults_of_identity(store: FeatureStore, columns: Mapping[str, npt.NDArray[Any]]) -> Iterator[Fault]:
    manifest = store.manifest
    if "sample_id" in columns and ids_digest(columns["sample_id"].tolist()) != manifest.ids_digest:
        yield Fault("sample_id", "the sample ids are not those that the store was made of", "sample_id")
    if VIEW_DIM in columns and tuple(columns[VIEW_DIM].tolist()) != manifest.views:
        yield Fault(VIEW_DIM, f"the names of the views are not those recorded, {', '.join(manifest.views)}", VIEW_DIM)
    if fingerprint(manifest.provenance) != manifest.recipe:
        yield Fault(COMMIT_FILE, "the provenance was changed: it does not give the recorded hash")
    content = columns.get(CONTENT)
    if content is not None and fingerprint(manifest.provenance, content.tolist()) != manifest.fingerprint:
        yield Fault(CONTENT, "provenance and content hashes do not give the recorded fingerprint", CONTENT)
    if manifest.schema_version < 2:
        return
    try:
        records = read_groups(store.place)[1]
    except NotAStoreError as error:
        yield Fault(GROUPS_FILE, f"{error} Repair goes by it, and makes it again")
        return
    if sorted(records) != list(range(manifest.groups)):
        yield Fault(GROUPS_FILE, "it does not list every row group")


def _check_group(
    store: FeatureStore,
    spec: ArraySpec,
    group: int,
    skipped: npt.NDArray[np.bool_],
    checksums: Mapping[int, Mapping[str, str]],
    found: Verification,
) -> Iterator[Fault]:
    rows = store.manifest.group_rows(group)
    shown = (rows.start, rows.stop - 1)
    key = f"{spec.stored_name}/{chunk_key(group, spec)}"
    found.files += 1
    found.nbytes += store.place.size(key) or 0
    try:
        raw = store.read_whole(spec.name, rows)
        scale = None if spec.encoding != "int8" else store.scales(spec.name)[group]
    except (StoreError, KeyError) as error:
        yield Fault(key, getattr(error, "problem", str(error)), spec.name, shown, group)
        return
    written = checksums.get(group, {}).get(spec.name)
    if written is not None and written != file_checksum(store.place, key, plain=store.manifest.plain):
        yield Fault(
            key, "it is whole, but not the file that was written: its checksum is another", spec.name, shown, group
        )
        return
    values = decode(raw, spec, scale)[~skipped]
    seen = found.values.setdefault(spec.name, Values())
    seen.count += values.size
    if values.dtype.kind != "f":
        return
    seen.max_abs = max(seen.max_abs, max_abs(values))
    if bool(np.isfinite(values).all()):
        if spec.dtype == "float16" and seen.max_abs >= FLOAT16_MOST:
            seen.saturated += int((np.abs(values) >= FLOAT16_MOST).sum())
        return
    nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    seen.nan, seen.infinite = seen.nan + nan, seen.infinite + infinite
    bad = np.flatnonzero((~np.isfinite(decode(raw, spec, scale))).reshape(len(raw), -1).any(axis=1) & ~skipped)
    named = ", ".join(str(rows.start + int(r)) for r in bad[:5]) + (" ..." if len(bad) > 5 else "")
    yield Fault(key, f"{nan} NaN and {infinite} infinite values, in rows {named}", spec.name, shown, group)


def _recorded_checksums(store: FeatureStore) -> dict[int, Mapping[str, str]]:
    """Checksums of each row group's files, where they were recorded: two files that changed places are whole."""
    try:
        records = read_groups(store.place)[1]
    except NotAStoreError:
        return {}
    return {group: record.get("crc32c", {}) for group, record in records.items()}


def file_checksum(place: Place, key: str, *, plain: bool) -> str:
    """CRC-32C (hex) of a chunk's rows, as a plain file ends with it, or of a whole file of another kind."""
    if plain and not place.is_local:
        return place.read(key)[-CRC_BYTES:].hex()
    if plain:
        with (Path(place) / key).open("rb") as file:
            file.seek(-CRC_BYTES, 2)
            return file.read().hex()
    return crc32c(place.read(key)).hex()


def _faults_of_maxima(store: FeatureStore, found: Verification) -> Iterator[Fault]:
    faulty = {f.array for f in found.faults}
    for name, most in store.manifest.max_abs.items():
        seen = found.values.get(name)
        if seen is None or name in faulty or seen.count == 0 or store.spec(name).dtype == "int16":
            continue
        if seen.max_abs != most and not (seen.max_abs == 0 and most == 0):
            yield Fault(COMMIT_FILE, f"the largest magnitude of {name} is {seen.max_abs}, recorded was {most}", name)
