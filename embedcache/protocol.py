"""The paper's protocol: trials choose hyperparameters, seeds repeat the training, one record a run, none done twice."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import resource
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedcache.dense_data import DenseData
from embedcache.ensemble import Ensemble
from embedcache.errors import SettingError
from embedcache.evaluation.metrics import PRIMARY
from embedcache.evaluation.record import RECORD_VERSION, RunRecord, load_record, run_folder, save_record
from embedcache.heads._registry import get_head
from embedcache.train_config import Run, TrainConfig, default_batch_size
from embedcache.training import Data, Progress, TrainResult, head_for, load_data, train
from embedcache.trials import Choice, TrialOptions, choose
from embedcache_stores.schema import canonical_json


@dataclass(frozen=True)
class ProtocolResult:
    """What a protocol left."""

    records: list[RunRecord]
    """One a seed."""
    choice: Choice | None
    """How the hyperparameters were chosen; None where they were given."""
    trained: int
    """Seeds that were trained now; the others were found."""


def run_protocol(
    features: Ensemble,
    config: TrainConfig,
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    *,
    trials: TrialOptions | None = None,
    device: str = "cpu",
    force: bool = False,
    budget_bytes: int | None = None,
    on_epoch: Progress | None = None,
    on_choice: Callable[[Choice], None] | None = None,
) -> ProtocolResult:
    """Choose hyperparameters if asked to, then train a head once per seed; write a record and the weights of each run.

    Parameters
    ----------
    features
        A store or ensemble.
    config
        Head and hyperparameters; those that trials choose say nothing then.
    seeds
        Each is one run. A head that is computed has no chance in it: it is run once, with the first seed.
    out
        Folder of results. A run goes to ``OUT/<dataset>/<features>/<head>-<hash>/seed-<k>.json`` and ``.safetensors``,
        a study to ``.../<head>-trials-<hash>/``.
    trials
        None takes the hyperparameters of ``config``.
    device
        Torch device to train on.
    force
        Train again what has a record.
    budget_bytes
        Memory for features held at once; None is half of what is free.
    on_epoch, on_choice
        Told of progress, and of what the trials chose.

    Raises
    ------
    EmbedcacheError
        If the head cannot learn from these features, or results cannot be written, before anything is trained.
    """
    spec = head_for(features, config)
    config = settled(features, config)
    loaded: list[Data] = []

    def data() -> Data:
        if not loaded:
            loaded.append(load_data(features, config, device, budget_bytes=budget_bytes))
            _make_folder(Path(out) / features.dataset / features.name)  # before hours of training, not after
        return loaded[0]

    choice = None
    if trials is not None:
        folder = study_folder(out, features, config, trials)
        if force and folder.exists():
            for file in folder.iterdir():
                file.unlink()
        choice = choose(data, config, trials, folder, on_epoch)
        config = config.with_(**choice.chosen)
        if on_choice is not None:
            on_choice(choice)
    wanted = list(seeds)[:1] if spec.fit is not None else list(seeds)
    named = features.assigned.identity if features.assigned else None
    folder = run_folder(out, features.dataset, features.name, features.fingerprints, config.to_json(), named)
    missing = [s for s in wanted if force or not (folder / f"seed-{s}.json").exists()]
    if missing:
        results = train(data(), [Run(config, s) for s in missing], on_epoch=on_epoch)
        for at, (seed, result) in enumerate(zip(missing, results, strict=True)):
            record = _record(features, config, seed, data(), result, device, choice)
            if spec.stack is not None:
                record = replace(record, stack_seeds=_stack_of(missing, results, at))
            path = folder / f"seed-{seed}.json"
            _save_weights(path.with_suffix(".safetensors"), result, record)
            save_record(path, record)  # after the weights: a record promises that they are there
    records = [load_record(folder / f"seed-{s}.json") for s in wanted]
    return ProtocolResult(records, choice, len(missing))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SettingError(
            f"results cannot be written to {str(path)!r}: {error.strerror or error}. Choose another --out."
        ) from error


def settled(features: Ensemble, config: TrainConfig) -> TrainConfig:
    """Fill in what is left to the size of the dataset, so that a record says it and a later version keeps to it."""
    spec = get_head(config.head)
    if config.batch_size is not None or spec.fit is not None:
        return config
    train_rows = int((features.split == "train").sum())
    return config.with_(batch_size=default_batch_size(train_rows, maps=spec.decode is not None))


def _stack_of(seeds: Sequence[int], results: Sequence[TrainResult], at: int) -> list[int]:
    """Return the seeds of the pass that trained one of the results."""
    start = 0
    while start + results[start].stacked_with <= at:
        start += results[start].stacked_with
    return list(seeds[start : start + results[start].stacked_with])


def study_folder(out: str | os.PathLike[str], features: Ensemble, config: TrainConfig, trials: TrialOptions) -> Path:
    """Return the folder of a study; its name ends with a hash of all that decides what is chosen."""
    spec = get_head(config.head)
    searched = [spec.grid[0]] if spec.grid is not None else ["learning_rate", "weight_decay"]
    base = {k: v for k, v in config.to_json().items() if k not in searched}
    identity = [features.fingerprints, base, trials.to_json(), [spec.learning_rates, spec.weight_decays, spec.grid]]
    if features.assigned:
        identity.append(features.assigned.digest)
    digest = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:8]
    return Path(out) / features.dataset / features.name / f"{config.head}-trials-{digest}"


def _record(
    features: Ensemble,
    config: TrainConfig,
    seed: int,
    data: Data,
    result: TrainResult,
    device: str,
    choice: Choice | None,
) -> RunRecord:
    return RunRecord(
        version=RECORD_VERSION,
        dataset=features.dataset,
        features=features.name,
        fingerprints=features.fingerprints,
        random_weights=list(features.random_members),
        **_inputs(features, config, data),
        task=features.task,
        class_names=list(features.class_names),
        config=config.to_json(),
        seed=seed,
        metric=PRIMARY[features.task],
        best_epoch=result.best_epoch,
        val=result.val,
        test=result.test,
        curve=result.curve,
        seconds=round(result.seconds, 3),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment={
            "device": device,
            **{name: importlib.metadata.version(name) for name in ("embedcache", "torch", "numpy", "optuna")},
        },
        notes=list(data.notes),
        cache=features.cache,
        split=features.assigned.identity if features.assigned else None,
        per_class=result.per_class,
        interval=list(result.interval) if result.interval else None,
        failed=result.failed,
        trials=choice.to_json() if choice else None,
        stacked_with=result.stacked_with,
        peak_memory_bytes=_peak_memory(device),
    )


def _inputs(features: Ensemble, config: TrainConfig, data: Data) -> dict[str, Any]:
    """Tell what the head read: channels of each member, or the grids of its maps; and how many samples."""
    if isinstance(data, DenseData):
        grids = {
            f"{store.name}/{level.name}": [level.channels, level.height, level.width]
            for store, levels in zip(features.stores, data.members, strict=True)
            for level in levels
        }
        return {"channels": {}, "grids": grids, "samples": {k: len(v) for k, v in data.rows.items()}}
    channels = features.channels(f"pooled_{config.pooled}")
    return {
        "channels": {name: [here.start, here.stop] for name, here in channels.items()},
        "samples": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
    }


def _peak_memory(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _save_weights(path: Path, result: TrainResult, record: RunRecord) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    if not result.state:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.partial")  # several commands may train the same at once
    metadata = {
        "head": str(record.config["head"]),
        "features": record.features,
        "classes": "|".join(record.class_names),
    }
    save_file({k: v.contiguous() for k, v in result.state.items()}, temporary, metadata=metadata)
    temporary.replace(path)
