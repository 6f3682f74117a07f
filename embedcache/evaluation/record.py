"""Result records: one JSON file per run, enough to rerun it, found again by what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import EmbedcacheError
from embedcache_stores.durable import replace_atomically
from embedcache_stores.schema import canonical_json

RECORD_VERSION = 1


class RecordError(EmbedcacheError, ValueError):
    """A result record cannot be read, or there is none."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One head, one seed, one configuration, and what came of it."""

    version: int
    dataset: str
    features: str
    """Names of the stores joined by ``+``."""
    fingerprints: Mapping[str, str]
    """Fingerprint of each store by name."""
    random_weights: Sequence[str]
    """Stores whose backbone was never trained."""
    channels: Mapping[str, Sequence[int]]
    """First and one past the last channel of each store."""
    task: str
    class_names: Sequence[str]
    config: Mapping[str, Any]
    seed: int
    samples: Mapping[str, int]
    metric: str
    best_epoch: int
    val: Mapping[str, float]
    test: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]
    seconds: float
    created: str
    environment: Mapping[str, str]
    notes: Sequence[str] = ()

    @property
    def score(self) -> float:
        """The primary metric on test."""
        return float(self.test[self.metric])


def run_folder(
    root: str | os.PathLike[str],
    dataset: str,
    features: str,
    fingerprints: Mapping[str, str],
    config: Mapping[str, Any],
) -> Path:
    """Return the folder of all seeds of one configuration: its name ends with a hash of features and configuration."""
    identity = hashlib.sha256(canonical_json([dict(fingerprints), dict(config)]).encode()).hexdigest()[:8]
    return Path(root) / dataset / features / f"{config['head']}-{identity}"


def save_record(path: Path, record: RunRecord) -> None:
    """Write a record in one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, json.dumps(asdict(record), indent=1) + "\n")


def load_record(path: Path) -> RunRecord:
    """Read a record.

    Raises
    ------
    RecordError
        If the file is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != RECORD_VERSION:
            raise RecordError(f"{str(path)!r} is a result record of version {data['version']}, not {RECORD_VERSION}.")
        return RunRecord(**data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{str(path)!r} is not a result record ({error}). Remove it, and train again.") from error


def find_records(root: str | os.PathLike[str]) -> Iterator[RunRecord]:
    """Yield every record under a folder, by dataset, features, configuration and seed.

    Raises
    ------
    RecordError
        If the folder does not exist or holds none.
    """
    folder = Path(root)
    paths = sorted(folder.glob("*/*/*/seed-*.json"), key=lambda p: (*p.parts[:-1], int(p.stem.removeprefix("seed-"))))
    if not paths:
        found = "holds no result record" if folder.is_dir() else "does not exist"
        raise RecordError(f"results folder {str(folder)!r} {found}; 'embedcache train-head --out {folder}' makes them.")
    for path in paths:
        yield load_record(path)
