"""The only thing in embedcache that writes feature stores."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from embedcache_stores.chunks import METADATA, chunk_key, column_files
from embedcache_stores.commit_record import (
    SAMPLE_ID,
    VIEW,
    check_fingerprint,
    header_of,
    layout_found,
    layout_of,
    root_metadata,
    scale_spec,
    short,
)
from embedcache_stores.durable import explained_writes
from embedcache_stores.encodings import Encoded
from embedcache_stores.errors import StoreError
from embedcache_stores.group_writer import GroupWriter, from_json
from embedcache_stores.manifest import (
    COMMIT_FILE,
    GROUPS_FILE,
    PROGRESS_LOG,
    is_done,
    is_header,
    peek_manifest,
    read_progress,
)
from embedcache_stores.ownership import acquire, refuse_foreign
from embedcache_stores.place import LOCK_FILE, PARTIAL, Location, Place, open_place
from embedcache_stores.schema import CONTENT, VIEW_DIM, ArraySpec, Json, StoreSpec, ids_digest


@dataclass(frozen=True)
class KeptGroup:
    """A row group that is right but for some rows."""

    redo: tuple[int, ...]
    """The rows that are not, counted within the group."""
    arrays: dict[str, npt.NDArray[Any]]
    """Every large array as on disk, ``(rows of the group, *stored_shape)``; writable copies."""
    columns: dict[str, npt.NDArray[Any]]


class FeatureWriter:
    """Writes one feature store row group by row group, and continues one that was interrupted.

    Order of events, which is the whole promise: a row group's chunks are written and forced to the disk, then its
    line is appended to the progress record and forced to the disk; when every row group is recorded, the columns are
    written, and the root ``zarr.json`` last. Readers trust nothing but that file. Killed anywhere, the next writer
    continues after the recorded row groups and ends with the same bytes.

    Use as a context manager; leaving it releases the lock and never commits by itself.
    """

    def __init__(self, location: Location, spec: StoreSpec) -> None:
        """Begin or continue the store at a place.

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
        self.place: Place = open_place(location)
        self.spec = spec
        self._digest = ids_digest(spec.sample_ids)
        self._records: dict[int, Json] = {}
        self._lines = 0
        self._committed = False
        self._groups = GroupWriter(self.place, spec)
        with explained_writes(self.place.url):
            if self.place.exists(COMMIT_FILE):
                self._matches_existing()  # raises: a committed store is never touched, not even by a lock file
            refuse_foreign(self.place)  # before the lock file, so that a user's folder is left as it is
            self._lock = acquire(self.place)
        try:
            self._begin()
        except BaseException:
            self._lock.close()
            raise

    @property
    def done(self) -> frozenset[int]:
        """Row groups that are durable."""
        return frozenset(g for g, record in self._records.items() if is_done(record))

    @property
    def missing(self) -> list[int]:
        """Row groups still to write, in order."""
        done = self.done
        return [g for g in range(self.spec.groups) if g not in done]

    def kept(self, group: int) -> KeptGroup | None:
        """Return what is on disk of a missing row group that is right but for a few rows; None where nothing is.

        :func:`embedcache_stores.repair.reopen` leaves such groups.
        """
        record = self._records.get(group)
        if record is None or is_done(record) or record.get("columns") is None:
            return None
        rows = self.spec.group_rows(group)
        store, path = self.place.zarr_store()
        arrays = {}
        for a in self.spec.arrays:
            array: Any = zarr.open_array(store, path=posixpath.join(path, a.stored_name), mode="r")
            arrays[a.name] = np.asarray(array[rows])
        columns = {c.name: from_json(record["columns"][c.name], c) for c in self.spec.columns}
        return KeptGroup(tuple(record["redo"]), arrays, columns)

    def write_group(
        self,
        group: int,
        arrays: Mapping[str, npt.NDArray[Any] | Encoded],
        columns: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Write one whole row group; when this returns it is durable. Parameters as :meth:`GroupWriter.write`'s."""
        self._refuse_committed()
        self.record(self._groups.write(group, arrays, columns))

    def record(self, record: Mapping[str, Any]) -> None:
        """Count a row group that a :class:`GroupWriter` has written, here or elsewhere; it is durable afterwards.

        Raises
        ------
        StoreError
            If one of its files is not there.
        """
        self._refuse_committed()
        group = int(record["group"])
        with explained_writes(self.place.url):
            for a in self.spec.arrays:
                key = f"{a.stored_name}/{chunk_key(group, a)}"
                if not self.place.exists(key):
                    raise StoreError(f"row group {group} cannot be recorded: {self.place.child(key).url!r} is missing.")
            self._append(record)
        self._records[group] = dict(record)

    def commit(self) -> None:
        """Write the columns and then the commit record; from here on the store exists for readers, and never changes.

        Raises
        ------
        StoreError
            If row groups are missing.
        """
        if self.missing:
            raise StoreError(
                f"store {self.place.url!r} cannot be committed: row groups {self.missing[:5]} are not written."
            )
        columns = {c.name: self._column(c) for c in self.spec.columns}
        small = {"sample_id": column_files(SAMPLE_ID, np.array(self.spec.sample_ids, dtype=object))}
        small |= {c.name: column_files(c, columns[c.name]) for c in self.spec.columns}
        if self.spec.views:
            small[VIEW.name] = column_files(VIEW, np.array(self.spec.views, dtype=object), VIEW_DIM)
        for a in self.spec.arrays:
            if a.encoding == "int8":
                scales = [self._records[g]["scales"][a.name] for g in range(self.spec.groups)]
                spec = scale_spec(a)
                small[spec.name] = column_files(spec, np.array(scales, dtype=np.float32), "row_group")
        with explained_writes(self.place.url):
            for name, files in small.items():
                for key in self.place.files(name):
                    if key not in files:
                        self.place.remove(f"{name}/{key}")
                for key, raw in files.items():
                    self.place.write(f"{name}/{key}", raw)
                self.place.sync(name)
            metadata = self._groups.metadata() | {name: files[METADATA] for name, files in small.items()}
            header = header_of(self.spec, self._digest)
            lines = [header, *(self._records[g] for g in range(self.spec.groups))]
            self.place.write(GROUPS_FILE, b"".join(_line(x) + b"\n" for x in lines))
            records = self._records.values()
            root = root_metadata(self.spec, header, records, metadata, columns.get(CONTENT), self.place.name)
            self.place.sync()  # the names of new folders, before the name that stands for all of them
            self.place.write(COMMIT_FILE, json.dumps(root, indent=1).encode())
            self.place.sync()
            self._committed = True
            self.place.remove_log(PROGRESS_LOG)
            if self.place.is_local:
                self.place.remove(LOCK_FILE)

    def close(self) -> None:
        """Release the lock. Rows written so far stay."""
        with explained_writes(self.place.url):
            self._lock.close()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        with explained_writes(self.place.url):
            if self._matches_existing():
                self._continue()
                return
            refuse_foreign(self.place)
            for name, raw in self._groups.metadata().items():
                self.place.remove_folder(name)
                self.place.write(f"{name}/{METADATA}", raw)
                self.place.sync(name)
            # The header comes after the arrays: a store without it has nothing to continue and is begun again.
            self.place.replace_log(PROGRESS_LOG, [_line(header_of(self.spec, self._digest))])
            self._lines = 1
            self.place.sync()

    def _matches_existing(self) -> bool:
        """Whether a usable progress record is there; raises where another store is in the way."""
        if not self.place.exists(COMMIT_FILE) and not is_header(read_progress(self.place)[0]):
            return False  # killed while the header was written: nothing of value yet
        found = peek_manifest(self.place)
        check_fingerprint(self.place.url, found.provenance, self.spec.provenance)
        if found.state == "complete":
            raise StoreError(f"store {self.place.url!r} is complete and never changes; nothing is left to write.")
        now = layout_of(self.spec, self._digest)
        begun = layout_found(found)
        if changed := [k for k in now if now[k] != begun[k]]:
            k = changed[0]
            raise StoreError(
                f"store {self.place.url!r} was begun with another layout ({k.replace('_', ' ')} {short(begun[k])}, "
                f"now {short(now[k])}). Run with --rebuild to begin it again."
            )
        return True

    def _continue(self) -> None:
        _, self._records, self._lines = read_progress(self.place)
        for name, raw in self._groups.metadata().items():
            if not self._holds(f"{name}/{METADATA}", raw):  # lost, and the store was reopened to be repaired
                self.place.write(f"{name}/{METADATA}", raw)
                self.place.sync(name)
        self.place.cut_log(PROGRESS_LOG, self._lines)  # a torn line, so that the next is not joined to it
        for a in self.spec.arrays:
            for name in self.place.files(a.stored_name):
                if name.endswith(PARTIAL):  # temporary files of a killed writer
                    self.place.remove(f"{a.stored_name}/{name}")

    def _holds(self, key: str, raw: bytes) -> bool:
        try:
            return self.place.read(key) == raw
        except FileNotFoundError:
            return False

    def _append(self, record: Mapping[str, Any]) -> None:
        self.place.append(PROGRESS_LOG, self._lines, _line(record))
        self._lines += 1

    def _refuse_committed(self) -> None:
        if self._committed:
            raise StoreError(f"store {self.place.url!r} is complete and never changes.")

    def _column(self, spec: ArraySpec) -> npt.NDArray[Any]:
        values = [v for g in range(self.spec.groups) for v in self._records[g]["columns"][spec.name]]
        return from_json(values, spec)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()
