"""Content hashes of samples' files, and which stored rows were made from other content.

Hashing reads every byte, so hashes are kept in a small index beside the stores of a dataset, under the files' path,
size, times of change and inode. A file that shows the same four is not read again, unless it changed so shortly before
it was hashed that a second change might not show (git's index does the same). A clock that goes backwards can only
make the index less trusting.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedcache.datasets._spec import SampleSource
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.manifest import StoreManifest, read_progress
from embedcache_stores.place import Place
from embedcache_stores.schema import CONTENT, ids_digest

INDEX_FILE = "contents.json"
_SETTLED_NS = 2_000_000_000
"""Coarsest clock of a file system in use (FAT): changes closer together may carry one time."""


class ContentIndex:
    """Hashes samples' files, remembering what did not change. Safe to use from several threads."""

    def __init__(self, dataset: Place) -> None:
        """Open the index of a dataset's folder in a cache; caches in buckets keep none."""
        self._place = dataset if dataset.is_local else None
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        if self._place is not None:
            try:
                known = json.loads(self._place.read(INDEX_FILE))
                self._known = known if isinstance(known, dict) else {}
            except (FileNotFoundError, NotADirectoryError, ValueError):
                self._known = {}  # derived: whatever is wrong with it, it is made again

    def hash_of(self, files: Sequence[Path]) -> str:
        """BLAKE2b-128 (hex) of a sample's files in order; empty where one cannot be read."""
        try:
            each = [self._hash(path) for path in files]
        except OSError:
            return ""
        return each[0] if len(each) == 1 else hashlib.blake2b("".join(each).encode(), digest_size=16).hexdigest()

    def save(self) -> None:
        """Write the index, if there is a cache to write it to; failing is no error, it is only a shortcut."""
        if self._place is None or not self._changed or not self._place.found():
            return
        try:
            self._place.write(INDEX_FILE, json.dumps(self._known, separators=(",", ":")).encode())
        except OSError:
            return

    def _hash(self, path: Path) -> str:
        status = path.stat()
        key = str(path.absolute())
        seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self._known.get(key)
        if isinstance(known, list) and known[:4] == seen and len(known) == 5:
            return str(known[4])
        now = time.time_ns()
        with path.open("rb") as file:
            value = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        if max(status.st_mtime_ns, status.st_ctime_ns) < now - _SETTLED_NS:
            self._known[key] = [*seen, value]
            self._changed = True
        return value


def recorded_contents(found: StoreManifest) -> dict[int, str]:
    """Content hash of each row that a store holds, complete or not; empty for stores that recorded none."""
    if not any(c.name == CONTENT for c in found.columns):
        return {}
    if found.state == "complete":
        return dict(enumerate(FeatureStore(found.place).column(CONTENT).tolist()))
    _, records, _ = read_progress(found.place)
    out: dict[int, str] = {}
    for group, record in records.items():
        if record.get("columns") is not None:
            out |= dict(enumerate(record["columns"][CONTENT], found.group_rows(group).start))
    return out


def stale_rows(
    recorded: Mapping[int, str], source: SampleSource, indices: Sequence[int], index: ContentIndex
) -> tuple[int, ...]:
    """Rows whose files are not those that the features were made from, in order."""
    return tuple(row for row, was in sorted(recorded.items()) if index.hash_of(source.files(indices[row])) != was)


@dataclass(frozen=True)
class StaleRow:
    """One stored row that is not what the dataset holds now."""

    row: int
    sample_id: str
    reason: str


@dataclass(frozen=True)
class StoreStatus:
    """One store against its dataset."""

    name: str
    state: str
    rows: int
    rows_done: int
    stale: tuple[StaleRow, ...]
    notes: tuple[str, ...]
    """What concerns the store as a whole."""

    @property
    def summary(self) -> str:
        """One line for people."""
        done = f"{self.rows} rows" if self.state == "complete" else f"{self.rows_done} of {self.rows} rows"
        stale = f"{len(self.stale)} stale" if self.stale else "none stale" if not self.notes else "out of date"
        return f"{self.state}, {done}, {stale}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "stale": [asdict(row) for row in self.stale], "notes": list(self.notes)}


def status_of(found: StoreManifest, source: SampleSource, index: ContentIndex) -> StoreStatus:
    """Compare one store with the dataset as it is now."""
    recorded = recorded_contents(found)
    notes = []
    if not recorded and found.groups_done:
        notes.append("it records no content hashes (an older embedcache wrote it): changed images cannot be noticed")
    at = {sample_id: i for i, sample_id in enumerate(source.sample_ids)}
    ids = _ids_of(found, source)
    if ids is None:
        notes.append("the dataset's samples are not those that it was begun with")
        ids = []
    stale = []
    for row, was in sorted(recorded.items()):
        if row >= len(ids):
            break
        if ids[row] not in at:
            stale.append(StaleRow(row, ids[row], "the sample is not in the dataset any more"))
            continue
        files = source.files(at[ids[row]])
        if index.hash_of(files) != was:
            gone = [f.name for f in files if not f.exists()]
            stale.append(StaleRow(row, ids[row], f"{gone[0]} is gone" if gone else "the image changed"))
    here = [at[i] for i in ids if i in at]
    if len(here) == len(ids) > 0:
        now, then = source.revision(here), found.provenance.get("dataset", {})
        notes += [f"the dataset's {k} changed; extract again with --rebuild" for k in now if now[k] != then.get(k)]
    new = len(at) - len(here)
    if new and found.rows + new == len(at) and ids:
        notes.append(f"the dataset has {new} samples that it lacks (new, or left out with --limit)")
    done = found.rows if found.state == "complete" else len(recorded)
    return StoreStatus(found.name, found.state, found.rows, done, tuple(stale), tuple(notes))


def _ids_of(found: StoreManifest, source: SampleSource) -> list[str] | None:
    """Sample ids of a store's rows; a partial store records their digest only, so they are worked out and compared."""
    if found.state == "complete":
        return [str(i) for i in FeatureStore(found.place).sample_ids]
    if found.rows > len(source.sample_ids):
        return None
    ids = [source.sample_ids[i * len(source.sample_ids) // found.rows] for i in range(found.rows)]
    return ids if ids_digest(ids) == found.ids_digest else None
