"""Result records: one JSON file per run, enough to rerun it, found again by what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embedcache.errors import EmbedcacheError
from embedcache_stores.durable import replace_atomically
from embedcache_stores.schema import canonical_json

RECORD_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""1 knew neither trials, intervals, failed runs nor heads on maps."""


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
    cache: str = "cache"
    """Where the stores were found."""
    grids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """For heads on maps: channels, height and width of each ``<store>/<level>``."""
    per_class: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Test metrics class by class; None where a class is absent."""
    interval: Sequence[float] | None = None
    """95 % bootstrap interval of the primary metric over test samples."""
    failed: str | None = None
    """Why the run was given up; None where it was not."""
    trials: Mapping[str, Any] | None = None
    """How the hyperparameters were chosen; None where they were given."""
    stacked_with: int = 1
    """Runs trained in the same pass."""
    stack_seeds: Sequence[int] = ()
    """Their seeds in order: trained together again, they give the same bits; empty where a run does so alone."""
    split: Mapping[str, Any] | None = None
    """Name, digest and making of the named split; None where the stores' own was used."""
    peak_memory_bytes: int | None = None
    """Largest memory of the process so far, on the GPU where one was used."""

    @property
    def setting(self) -> str:
        """Dataset and, where it is not the stores' own, split: scores of different settings are not to be compared."""
        return self.dataset if self.split is None else f"{self.dataset}, {split_label(self.split)}"

    @property
    def score(self) -> float:
        """The primary metric on test; NaN for a run that was given up."""
        return float(self.test.get(self.metric, float("nan")))


def run_folder(
    root: str | os.PathLike[str],
    dataset: str,
    features: str,
    fingerprints: Mapping[str, str],
    config: Mapping[str, Any],
    split: Mapping[str, Any] | None = None,
) -> Path:
    """Return the folder of all seeds of one configuration.

    Its name ends with a hash of features, configuration and, where one is used, named split.
    """
    parts: list[Any] = [dict(fingerprints), dict(config)] + ([split["digest"]] if split else [])
    identity = hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:8]
    return Path(root) / dataset / features / f"{config['head']}-{identity}"


def split_label(split: Mapping[str, Any]) -> str:
    """Name a split so that another one of the same name is told apart: ``split NAME#3fa2b1``."""
    return f"split {split['name']}#{str(split['digest'])[:6]}"


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
        if data["version"] not in READABLE_VERSIONS:
            raise RecordError(
                f"{str(path)!r} is a result record of version {data['version']}; this embedcache reads "
                f"{READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]}."
            )
        return RunRecord(**data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, RecordError):
            raise
        what = "Remove it, and train again" if _is_record(path) else "Records are the seed-K.json of a results folder"
        raise RecordError(f"{str(path)!r} is not a result record ({error}). {what}.") from error


def save_runs_table(root: str | os.PathLike[str]) -> Path:
    """Write every record under a folder into ``runs.parquet``, one row a run, for notebooks and spreadsheets.

    Columns: ``dataset``, ``features``, ``head``, ``seed``, ``split``, ``split_digest``, ``metric``, ``score``,
    ``interval_low``, ``interval_high``, ``failed``, ``best_epoch``, ``seconds``, ``created``, ``random_weights``,
    ``fingerprints`` (JSON), and ``config.*``, ``val.*``, ``test.*``, ``samples.*`` and ``environment.*``.
    """
    import pandas as pd

    rows = []
    for r in find_records(root):
        low, high = r.interval or (None, None)
        rows.append(
            {
                "dataset": r.dataset,
                "features": r.features,
                "head": r.config["head"],
                "seed": r.seed,
                "split": r.split["name"] if r.split else None,
                "split_digest": r.split["digest"] if r.split else None,
                "metric": r.metric,
                "score": None if r.failed else r.score,
                "interval_low": low,
                "interval_high": high,
                "failed": r.failed,
                "best_epoch": r.best_epoch,
                "seconds": r.seconds,
                "created": r.created,
                "random_weights": "+".join(r.random_weights),
                "fingerprints": canonical_json(dict(r.fingerprints)),
                **{f"config.{k}": str(v) if isinstance(v, list) else v for k, v in r.config.items()},
                **{f"val.{k}": v for k, v in r.val.items()},
                **{f"test.{k}": v for k, v in r.test.items()},
                **{f"samples.{k}": v for k, v in r.samples.items()},
                **{f"environment.{k}": v for k, v in r.environment.items()},
            }
        )
    path = Path(root) / "runs.parquet"
    temporary = path.with_suffix(f".{os.getpid()}.partial")  # several commands may share a folder of results
    pd.DataFrame(rows).to_parquet(temporary)
    temporary.replace(path)
    return path


def _is_record(path: Path) -> bool:
    """Whether a path is a record's by its name; a copy beside it is none."""
    return path.is_file() and re.fullmatch(r"seed-\d+\.json", path.name) is not None


def find_records(root: str | os.PathLike[str]) -> Iterator[RunRecord]:
    """Yield every record under a folder, by dataset, features, configuration and seed.

    Raises
    ------
    RecordError
        If the folder does not exist or holds none.
    """
    folder = Path(root)
    there = (p for p in folder.glob("*/*/*/seed-*.json") if _is_record(p))
    paths = sorted(there, key=lambda p: (*p.parts[:-1], int(p.stem.removeprefix("seed-"))))
    if not paths:
        found = "holds no result record" if folder.is_dir() else "does not exist"
        raise RecordError(f"results folder {str(folder)!r} {found}; 'embedcache train-head --out {folder}' makes them.")
    for path in paths:
        yield load_record(path)
