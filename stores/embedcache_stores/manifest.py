"""What can be known of a store from one small JSON file, without zarr: state, provenance, contents.

A store directory is in one of three states. ``complete``: the root ``zarr.json`` exists; it is written last, in one
atomic step, and is the commit record. ``partial``: there is none, but a progress record (``progress.jsonl``) is.
Anything else is not a feature store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedcache_stores.errors import IncompleteStoreError, NotAStoreError, StoreNotFoundError
from embedcache_stores.schema import SCHEMA_VERSION, ArraySpec, Json, LevelSpec

COMMIT_FILE = "zarr.json"
PROGRESS_FILE = "progress.jsonl"
ATTRIBUTE = "embedcache"
SUFFIX = ".zarr"


@dataclass(frozen=True, kw_only=True)
class StoreManifest:
    """The recorded facts of one store, committed or not."""

    path: Path
    state: Literal["complete", "partial"]
    schema_version: int
    fingerprint: str
    provenance: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: int
    rows_per_group: int
    groups_done: int
    ids_digest: str
    arrays: tuple[ArraySpec, ...]
    columns: tuple[ArraySpec, ...]
    attrs: Mapping[str, Any]
    created: str | None = None

    @property
    def name(self) -> str:
        """The store's name on the command line: its folder without ``.zarr``."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def dataset(self) -> str:
        """Name of the dataset, the folder above."""
        return self.path.parent.name

    @property
    def groups(self) -> int:
        """Number of row groups when complete."""
        return -(-self.rows // self.rows_per_group)

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


def read_manifest(path: str | os.PathLike[str]) -> StoreManifest:
    """Read a committed store's manifest.

    Raises
    ------
    StoreNotFoundError, NotAStoreError, IncompleteStoreError
        With what was found and what to do.
    """
    manifest = peek_manifest(path)
    if manifest.state == "partial":
        raise IncompleteStoreError(
            f"store {str(path)!r} is not complete ({manifest.groups_done} of {manifest.groups} row groups are "
            "written). Run the same 'embedcache extract' again to finish it."
        )
    return manifest


def peek_manifest(path: str | os.PathLike[str]) -> StoreManifest:
    """Read a store's manifest in whatever state it is; raises like :func:`read_manifest` otherwise."""
    root = Path(path)
    if not root.is_dir():
        raise StoreNotFoundError(f"no feature store at {str(root)!r}. 'embedcache ls' shows what a cache holds.")
    commit = root / COMMIT_FILE
    if commit.exists():
        attributes = _load_json(commit).get("attributes", {})
        recorded = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
        if not isinstance(recorded, dict):
            raise NotAStoreError(f"{str(root)!r} is a Zarr group, but embedcache did not write it.")
        groups = -(-recorded["rows"] // recorded["rows_per_group"])
        return _manifest(root, "complete", recorded, groups)
    progress = root / PROGRESS_FILE
    if progress.exists():
        header, records, _ = read_progress(progress)
        if header is not None and is_header(header):
            return _manifest(root, "partial", header, len({r["group"] for r in records}))
    raise NotAStoreError(
        f"{str(root)!r} is not a feature store: it has neither a commit record ({COMMIT_FILE}) nor a progress "
        f"record ({PROGRESS_FILE})."
    )


def read_progress(path: Path) -> tuple[Json | None, list[Json], int]:
    """Read a progress record: header, one record per durable row group, and the length of its sound part in bytes.

    The last line may be torn by a kill; it is then ignored, and the row group it named is written again.
    """
    lines: list[Json] = []
    sound = 0
    with path.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                break
            try:
                line = json.loads(raw)
            except ValueError:
                break
            lines.append(line)
            sound += len(raw)
    if not lines:
        return None, [], 0
    return lines[0], lines[1:], sound


def is_header(line: object) -> bool:
    """Whether the first line of a progress record is one that our writer wrote."""
    return isinstance(line, dict) and "schema_version" in line


def find_stores(cache: str | os.PathLike[str]) -> Iterator[StoreManifest]:
    """Yield every store of a cache, ``CACHE/<dataset>/<name>.zarr``, by dataset and name.

    Raises
    ------
    StoreNotFoundError
        If the directory does not exist.
    NotAStoreError
        If it is not a directory.
    """
    root = Path(cache)
    if not root.exists():
        raise StoreNotFoundError(f"no cache at {str(root)!r}. 'embedcache extract --cache {root}' makes one.")
    if not root.is_dir():
        raise NotAStoreError(f"cache {str(root)!r} is a file; a cache is a directory of feature stores.")
    for path in sorted(root.glob(f"*/*{SUFFIX}")):
        try:
            yield peek_manifest(path)
        except (NotAStoreError, StoreNotFoundError):
            continue


def _load_json(path: Path) -> Json:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise NotAStoreError(f"{str(path)!r} is not readable as JSON ({error}); the store is damaged.") from error
    if not isinstance(data, dict):
        raise NotAStoreError(f"{str(path)!r} does not hold a JSON object; the store is damaged.")
    return data


def _manifest(root: Path, state: Literal["complete", "partial"], recorded: Json, groups_done: int) -> StoreManifest:
    version = recorded.get("schema_version")
    if version != SCHEMA_VERSION:
        raise NotAStoreError(
            f"store {str(root)!r} has schema version {version!r}; this embedcache reads version {SCHEMA_VERSION}. "
            "Use the embedcache that wrote it, or extract again."
        )
    return StoreManifest(
        path=root,
        state=state,
        schema_version=version,
        fingerprint=recorded["fingerprint"],
        provenance=recorded["provenance"],
        environment=recorded["environment"],
        rows=recorded["rows"],
        rows_per_group=recorded["rows_per_group"],
        groups_done=groups_done,
        ids_digest=recorded["ids_digest"],
        arrays=tuple(ArraySpec.from_json(a) for a in recorded["arrays"]),
        columns=tuple(ArraySpec.from_json(a) for a in recorded["columns"]),
        attrs=recorded["attrs"],
        created=recorded.get("created"),
    )
