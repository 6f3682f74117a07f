"""The only thing in embedcache that writes feature stores."""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from embedcache_stores.durable import explained_writes, fsync_path, replace_atomically
from embedcache_stores.errors import FingerprintMismatchError, StoreError
from embedcache_stores.manifest import (
    ATTRIBUTE,
    COMMIT_FILE,
    PROGRESS_FILE,
    is_header,
    peek_manifest,
    read_progress,
)
from embedcache_stores.ownership import LOCK_FILE, acquire, refuse_foreign
from embedcache_stores.schema import (
    COORDINATES,
    SAMPLE_DIM,
    SCHEMA_VERSION,
    STRING,
    ArraySpec,
    Json,
    StoreSpec,
    differences,
    ids_digest,
)

_COLUMN_CHUNK = 65536
_ZARR: Any = {"write_empty_chunks": True}
"""zarr leaves out chunks that hold the fill value only (a mask of background, say); we want every chunk on disk, so
that one that is missing is known to be lost."""


class FeatureWriter:
    """Writes one feature store row group by row group, and continues one that was interrupted.

    Order of events, which is the whole promise: a row group's chunks are written and forced to the disk, then its
    line is appended to the progress record and forced to the disk; when every row group is recorded, the columns are
    written, and the root ``zarr.json`` last. Readers trust nothing but that file. Killed anywhere, the next writer
    continues after the recorded row groups and ends with the same bytes.

    Use as a context manager; leaving it releases the lock and never commits by itself.
    """

    def __init__(self, path: str | os.PathLike[str], spec: StoreSpec) -> None:
        """Begin or continue the store at ``path``.

        Raises
        ------
        FingerprintMismatchError
            If a store made from other inputs is there, complete or not.
        StoreError
            If the store is already complete.
        NotAStoreError
            If something else is there.
        StoreLockedError
            If another process is writing it.
        StoreWriteError
            If the file system refuses.
        """
        self.path = Path(path)
        self.spec = spec
        self._digest = ids_digest(spec.sample_ids)
        self._columns: dict[int, Json] = {}
        if (self.path / COMMIT_FILE).exists():
            self._matches_existing()  # raises: a committed store is never touched, not even by a lock file
        self._committed = False
        with explained_writes(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            refuse_foreign(self.path)  # before the lock file, so that a user's folder is left as it is
            self._lock = acquire(self.path)
        try:
            self._begin()
        except BaseException:
            self._lock.close()
            raise
        self._arrays = {
            a.name: zarr.open_array(str(self.path / a.name), mode="r+").with_config(_ZARR) for a in spec.arrays
        }

    @property
    def done(self) -> frozenset[int]:
        """Row groups that are durable."""
        return frozenset(self._columns)

    @property
    def missing(self) -> list[int]:
        """Row groups still to write, in order."""
        return [g for g in range(self.spec.groups) if g not in self._columns]

    def write_group(
        self, group: int, arrays: Mapping[str, npt.NDArray[Any]], columns: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        """Write one whole row group; when this returns it is durable.

        Parameters
        ----------
        group
            Index of the row group.
        arrays
            Every large array by name, each ``(rows of the group, *shape)`` in the dtype that the spec states.
        columns
            Every column by name, each ``(rows of the group, *shape)``.
        """
        if self._committed:
            raise StoreError(f"store {str(self.path)!r} is complete and never changes.")
        if not 0 <= group < self.spec.groups:
            raise ValueError(f"group must be in 0..{self.spec.groups - 1}, got {group}")
        rows = self.spec.group_rows(group)
        self._check(arrays, self.spec.arrays, rows)
        self._check(columns, self.spec.columns, rows)
        record = {
            "group": group,
            "columns": {c.name: _to_json(columns[c.name]) for c in self.spec.columns},
            "max_abs": {name: _max_abs(values) for name, values in arrays.items()},
        }
        with explained_writes(self.path):
            for spec in self.spec.arrays:
                self._arrays[spec.name][rows] = arrays[spec.name]
                fsync_path(self.path / spec.name / _chunk_key(group, spec))
                fsync_path(self.path / spec.name)
            self._append(record)
        self._columns[group] = record

    def commit(self) -> None:
        """Write the columns and then the commit record; from here on the store exists for readers, and never changes.

        Raises
        ------
        StoreError
            If row groups are missing.
        """
        if self.missing:
            raise StoreError(
                f"store {str(self.path)!r} cannot be committed: row groups {self.missing[:5]} are not written."
            )
        with explained_writes(self.path):
            self._write_column(ArraySpec(name="sample_id", dtype=STRING), list(self.spec.sample_ids))
            for spec in self.spec.columns:
                values = [v for g in range(self.spec.groups) for v in self._columns[g]["columns"][spec.name]]
                self._write_column(spec, values)
            replace_atomically(self.path / COMMIT_FILE, json.dumps(self._root_metadata(), indent=1))
            self._committed = True
            (self.path / PROGRESS_FILE).unlink(missing_ok=True)
            (self.path / LOCK_FILE).unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock. Rows written so far stay."""
        self._lock.close()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        with explained_writes(self.path):
            known = (self.path / COMMIT_FILE).exists() or (self.path / PROGRESS_FILE).exists()
            if known and self._matches_existing():
                self._continue()
                return
            refuse_foreign(self.path)
            for spec in self.spec.arrays:
                shutil.rmtree(self.path / spec.name, ignore_errors=True)
                self._create(spec, chunk_rows=self.spec.rows_per_group)
            # The header comes after the arrays: a store without it has nothing to continue and is begun again.
            (self.path / PROGRESS_FILE).write_bytes(b"")
            self._append(self._header())
            fsync_path(self.path)

    def _matches_existing(self) -> bool:
        """Whether a usable progress record is there; raises where another store is in the way."""
        if not (self.path / COMMIT_FILE).exists() and not is_header(read_progress(self.path / PROGRESS_FILE)[0]):
            return False  # killed while the header was written: nothing of value yet
        found = peek_manifest(self.path)
        check_fingerprint(self.path, found.provenance, self.spec.provenance)
        if found.state == "complete":
            raise StoreError(f"store {str(self.path)!r} is complete and never changes; nothing is left to write.")
        if found.rows_per_group != self.spec.rows_per_group or found.ids_digest != self._digest:
            raise StoreError(
                f"store {str(self.path)!r} was begun with another layout ({found.rows_per_group} rows per group, "
                f"now {self.spec.rows_per_group}). Run with --rebuild to begin it again."
            )
        return True

    def _continue(self) -> None:
        _, records, sound = read_progress(self.path / PROGRESS_FILE)
        os.truncate(self.path / PROGRESS_FILE, sound)
        for leftover in self.path.glob("*/*.partial"):  # temporary files of a killed zarr writer
            leftover.unlink()
        self._columns = {record["group"]: record for record in records}

    def _append(self, record: Mapping[str, Any]) -> None:
        with (self.path / PROGRESS_FILE).open("ab") as file:
            file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _create(self, spec: ArraySpec, *, chunk_rows: int) -> zarr.Array[Any]:
        string = spec.dtype == STRING
        return zarr.create_array(
            store=str(self.path / spec.name),  # with `name=` zarr would write a root zarr.json, our commit record
            shape=(self.spec.rows, *spec.shape),
            chunks=(max(1, min(chunk_rows, self.spec.rows) if string else chunk_rows), *spec.shape),
            dtype=spec.dtype,
            serializer="auto" if string else BytesCodec(endian="little"),
            compressors=Crc32cCodec(),
            chunk_key_encoding={"name": "default", "separator": "."},  # one flat folder per array
            dimension_names=(SAMPLE_DIM, *spec.dims),
            attributes=dict(spec.attrs),
            fill_value="" if string else 0,
            overwrite=True,
            config=_ZARR,
        )

    def _write_column(self, spec: ArraySpec, values: list[Any]) -> None:
        chunk_rows = min(self.spec.rows, _COLUMN_CHUNK)
        array = self._create(spec, chunk_rows=chunk_rows)
        array[:] = _from_json(values, spec)
        for file in (self.path / spec.name).iterdir():
            fsync_path(file)
        fsync_path(self.path / spec.name)

    def _check(self, given: Mapping[str, npt.NDArray[Any]], specs: Iterable[ArraySpec], rows: slice) -> None:
        expected = {s.name: s for s in specs}
        if set(given) != set(expected):
            raise ValueError(f"expected arrays {sorted(expected)}, got {sorted(given)}")
        for name, values in given.items():
            spec = expected[name]
            shape = (rows.stop - rows.start, *spec.shape)
            if values.shape != shape:
                raise ValueError(f"array {name!r} must have shape {shape}, got {values.shape}")
            if spec.dtype != STRING and values.dtype != np.dtype(spec.dtype):
                raise ValueError(f"array {name!r} must have dtype {spec.dtype}, got {values.dtype}")

    def _header(self) -> Json:
        return {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self.spec.fingerprint,
            "provenance": dict(self.spec.provenance),
            "environment": dict(self.spec.environment),
            "rows": self.spec.rows,
            "rows_per_group": self.spec.rows_per_group,
            "ids_digest": self._digest,
            "arrays": [a.to_json() for a in self.spec.arrays],
            "columns": [c.to_json() for c in self.spec.columns],
            "attrs": dict(self.spec.attrs),
        }

    def _root_metadata(self) -> Json:
        """Return the root ``zarr.json``, with consolidated metadata so that opening a store reads one file."""
        names = ["sample_id", *(c.name for c in self.spec.columns), *(a.name for a in self.spec.arrays)]
        recorded = self._header()
        recorded["max_abs"] = {
            a.name: max((self._columns[g]["max_abs"][a.name] for g in self._columns), default=0.0)
            for a in self.spec.arrays
        }
        # When, and on what: kept out of the fingerprint, so equal inputs stay equal.
        recorded["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {
                "Conventions": "CF-1.11",
                "title": self.spec.attrs.get("title", self.path.name),
                "coordinates": " ".join(n for n in COORDINATES if n in names),
                ATTRIBUTE: recorded,
            },
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": {n: json.loads((self.path / n / "zarr.json").read_text()) for n in sorted(names)},
            },
        }


def check_fingerprint(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise :class:`FingerprintMismatchError`, naming each differing field, unless two provenances are equal."""
    found = differences(stored, asked)
    if not found:
        return
    found.sort(key=lambda field: field[0].startswith("arrays"))  # shapes follow from the rest: causes first
    shown = "; ".join(f"{name} is {_short(left)}, asked {_short(right)}" for name, left, right in found[:4])
    more = f" (and {len(found) - 4} more)" if len(found) > 4 else ""
    raise FingerprintMismatchError(
        f"another store is in the way at {str(path)!r}: {shown}{more}. "
        "Give the new one a name with --tag, or replace the old one with --rebuild.",
        found,
    )


def _chunk_key(group: int, spec: ArraySpec) -> str:
    return ".".join(["c", str(group), *("0" for _ in spec.shape)])


def _max_abs(values: npt.NDArray[Any]) -> float:
    """Largest magnitude, NaN of skipped rows left out (JSON knows none)."""
    wide = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64, copy=False)
    return float(np.fmax.reduce(np.abs(wide), axis=None, initial=0.0))


def _to_json(values: npt.NDArray[Any]) -> list[Any]:
    if values.dtype.kind == "f":  # NaN has no JSON form
        return [None if math.isnan(v) else v for v in values.tolist()]
    out: list[Any] = values.tolist()
    return out


def _from_json(values: list[Any], spec: ArraySpec) -> npt.NDArray[Any]:
    if spec.dtype == STRING:
        return np.array(values, dtype=object)
    if np.dtype(spec.dtype).kind == "f":
        values = [math.nan if v is None else v for v in values]
    return np.array(values, dtype=spec.dtype).reshape(len(values), *spec.shape)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
