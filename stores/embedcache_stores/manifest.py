"""What can be known of a store from one small JSON file, without zarr: state, provenance, contents.

A store is in one of three states. ``complete``: the root ``zarr.json`` exists; it is written last, in one atomic step,
and is the commit record. ``partial``: there is none, but a progress record (``progress.jsonl``) is. Anything else is
not a feature store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedcache_stores.errors import IncompleteStoreError, NotAStoreError, StoreNotFoundError
from embedcache_stores.place import Location, Place, open_place
from embedcache_stores.schema import (
    IDENTITY,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    ArraySpec,
    Compression,
    Json,
    LevelSpec,
)

COMMIT_FILE = "zarr.json"
PROGRESS_LOG = "progress.jsonl"
"""While a store is written: a header, and a line for each durable row group."""
GROUPS_FILE = "groups.jsonl"
"""The progress record of a committed store, its row groups in order: what repair goes by; readers never look at it."""
ATTRIBUTE = "embedcache"
SUFFIX = ".zarr"


@dataclass(frozen=True, kw_only=True)
class StoreManifest:
    """The recorded facts of one store, committed or not."""

    place: Place
    state: Literal["complete", "partial"]
    schema_version: int
    fingerprint: str
    """Identity: what was asked and the content of the samples; of a partial store: what was asked."""
    recipe: str
    """Hash of what was asked: the provenance."""
    provenance: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: int
    rows_per_group: int
    rows_per_chunk: int
    compression: Compression
    groups_done: int
    ids_digest: str
    arrays: tuple[ArraySpec, ...]
    columns: tuple[ArraySpec, ...]
    views: tuple[str, ...]
    """Names of the augmented views in the order of their axis; ``("identity",)`` where there is no such axis."""
    attrs: Mapping[str, Any]
    max_abs: Mapping[str, float]
    """Largest magnitude of each array; empty while partial."""
    saturated: Mapping[str, int]
    """How many values of each array were cut to what its dtype holds; empty while partial."""
    created: str | None = None

    @property
    def path(self) -> Path:
        """Folder of a store on a local disk.

        Raises
        ------
        TypeError
            If the store lies elsewhere.
        """
        return Path(self.place)

    @property
    def name(self) -> str:
        """The store's name on the command line: its folder without ``.zarr``."""
        return self.place.name.removesuffix(SUFFIX)

    @property
    def dataset(self) -> str:
        """Name of the dataset, the folder above."""
        return self.place.parent_name

    @property
    def groups(self) -> int:
        """Number of row groups when complete."""
        return -(-self.rows // self.rows_per_group)

    def group_rows(self, group: int) -> slice:
        """Rows of one row group."""
        start = group * self.rows_per_group
        return slice(start, min(start + self.rows_per_group, self.rows))

    @property
    def plain(self) -> bool:
        """Whether a chunk is raw rows at a known offset: neither compressed nor sharded."""
        return self.compression == "none" and self.rows_per_chunk == self.rows_per_group

    @property
    def nbytes(self) -> int:
        """Bytes of the rows present, uncompressed."""
        rows = self.rows if self.state == "complete" else min(self.rows, self.groups_done * self.rows_per_group)
        return rows * sum(a.row_bytes for a in (*self.arrays, *self.columns))

    @property
    def levels(self) -> tuple[LevelSpec, ...]:
        """Feature maps in the store, finest first."""
        return tuple(LevelSpec.from_json(level) for level in self.attrs.get("levels", ()))

    @property
    def pooled(self) -> tuple[str, ...]:
        """Kinds of pooled vectors in the store, e.g. ``("cls", "mean")``."""
        return tuple(a.name.removeprefix("pooled_") for a in self.arrays if a.name.startswith("pooled_"))

    @property
    def random_weights(self) -> bool:
        """Whether the backbone was never trained; every table made from such a store must say so."""
        return bool(self.provenance.get("backbone", {}).get("weights", {}).get("kind") == "random")


def read_manifest(location: Location) -> StoreManifest:
    """Read a committed store's manifest.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, IncompleteStoreError
        With what was found and what to do.
    """
    manifest = peek_manifest(location)
    if manifest.state == "partial":
        raise IncompleteStoreError(
            f"store {str(location)!r} is not complete ({manifest.groups_done} of {manifest.groups} row groups are "
            "written). Run the same 'embedcache extract' again to finish it."
        )
    return manifest


def peek_manifest(location: Location) -> StoreManifest:
    """Read a store's manifest in whatever state it is; raises like :func:`read_manifest` otherwise."""
    place = open_place(location)
    try:
        raw = place.read(COMMIT_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raw = None
    if raw is not None:
        attributes = _parse(place, COMMIT_FILE, raw).get("attributes", {})
        recorded = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
        if not isinstance(recorded, dict):
            raise NotAStoreError(f"{place.url!r} is a Zarr group, but embedcache did not write it.")
        return _manifest(place, "complete", recorded, None)
    if not place.found():
        raise StoreNotFoundError(f"no feature store at {place.url!r}. 'embedcache ls' shows what a cache holds.")
    header, records, _ = read_progress(place)
    if header is not None and is_header(header):
        return _manifest(place, "partial", header, sum(1 for r in records.values() if is_done(r)))
    raise NotAStoreError(
        f"{place.url!r} is not a feature store: it has neither a commit record ({COMMIT_FILE}) nor a progress "
        f"record ({PROGRESS_LOG})."
    )


def read_progress(location: Location) -> tuple[Json | None, dict[int, Json], int]:
    """Read a progress record: header, the newest record of each row group, and how many of its lines are sound.

    A line that a kill or a power cut tore ends what is sound; row groups that it and later lines name are written anew.
    """
    lines: list[Any] = []
    for raw in open_place(location).lines(PROGRESS_LOG) or ():
        try:
            lines.append(json.loads(raw))
        except ValueError:
            break
        if len(lines) > 1 and not (isinstance(lines[-1], dict) and isinstance(lines[-1].get("group"), int)):
            lines.pop()
            break
    if not lines:
        return None, {}, 0
    return lines[0], {record["group"]: record for record in lines[1:]}, len(lines)


def read_groups(location: Location) -> tuple[Json, dict[int, Json]]:
    """Read the record of a committed store's row groups: header, and a record for each.

    Raises
    ------
    NotAStoreError
        If it is lost or unreadable.
    """
    place = open_place(location)
    try:
        lines = [json.loads(line) for line in place.read(GROUPS_FILE).splitlines()]
        if not is_header(lines[0]):
            raise NotAStoreError(f"{place.child(GROUPS_FILE).url!r} has no header.")
        return lines[0], {int(record["group"]): record for record in lines[1:]}
    except (FileNotFoundError, ValueError, IndexError, KeyError, TypeError) as error:
        raise NotAStoreError(f"{place.child(GROUPS_FILE).url!r} is lost or unreadable ({error}).") from error


def is_header(line: object) -> bool:
    """Whether the first line of a progress record is one that our writer wrote."""
    return isinstance(line, dict) and "schema_version" in line


def is_done(record: Mapping[str, Any]) -> bool:
    """Whether a row group's record says that nothing of it is left to do."""
    return not record.get("redo") and record.get("columns") is not None


def find_stores(cache: Location) -> Iterator[StoreManifest]:
    """Yield every store of a cache, ``CACHE/<dataset>/<name>.zarr``, by dataset and name.

    Raises
    ------
    StoreNotFoundError
        If the directory does not exist.
    NotAStoreError
        If it is not a directory.
    """
    for place in store_places(cache):
        try:
            yield peek_manifest(place)
        except (NotAStoreError, StoreNotFoundError):
            continue


def store_places(cache: Location) -> Iterator[Place]:
    """Yield every place of a cache that is named like a store; raises like :func:`find_stores`."""
    root = open_place(cache)
    if not root.found():
        if root.is_local and Path(root).exists():
            raise NotAStoreError(f"cache {root.url!r} is a file; a cache is a directory of feature stores.")
        raise StoreNotFoundError(f"no cache at {root.url!r}. 'embedcache extract --cache {root}' makes one.")
    for dataset in root.folders():
        below = root.child(dataset)
        for name in below.folders():
            if name.endswith(SUFFIX):
                yield below.child(name)


def _parse(place: Place, key: str, raw: bytes) -> Json:
    where = place.child(key).url
    try:
        data = json.loads(raw)
    except (ValueError, UnicodeDecodeError) as error:
        raise NotAStoreError(f"{where!r} is not readable as JSON ({error}); the store is damaged.") from error
    if not isinstance(data, dict):
        raise NotAStoreError(f"{where!r} does not hold a JSON object; the store is damaged.")
    return data


def _manifest(
    place: Place, state: Literal["complete", "partial"], recorded: Json, groups_done: int | None
) -> StoreManifest:
    version = recorded.get("schema_version")
    if version not in READABLE_VERSIONS:
        raise NotAStoreError(
            f"store {place.url!r} has schema version {version!r}; this embedcache reads versions 1 to "
            f"{SCHEMA_VERSION}. Use the embedcache that wrote it, or extract again."
        )
    try:
        groups = -(-recorded["rows"] // recorded["rows_per_group"])
        return StoreManifest(
            place=place,
            state=state,
            schema_version=version,
            fingerprint=recorded["fingerprint"],
            recipe=str(recorded.get("recipe") or recorded["fingerprint"]),
            provenance=recorded["provenance"],
            environment=recorded["environment"],
            rows=recorded["rows"],
            rows_per_group=recorded["rows_per_group"],
            rows_per_chunk=int(recorded.get("rows_per_chunk") or recorded["rows_per_group"]),
            compression=recorded.get("compression", "none"),
            groups_done=groups if groups_done is None else groups_done,
            ids_digest=recorded["ids_digest"],
            arrays=tuple(ArraySpec.from_json(a) for a in recorded["arrays"]),
            columns=tuple(ArraySpec.from_json(a) for a in recorded["columns"]),
            views=tuple(recorded.get("views") or (IDENTITY,)),
            attrs=recorded["attrs"],
            max_abs=recorded.get("max_abs", {}),
            saturated=recorded.get("saturated", {}),
            created=recorded.get("created"),
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise NotAStoreError(
            f"the record of store {place.url!r} lacks {error} or holds something else there; it is damaged. Extract "
            "the store again with --rebuild."
        ) from error
