"""Repeats a training over seeds, keeps one record per run, and never does a run twice."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from embedcache.ensemble import Ensemble
from embedcache.evaluation.metrics import PRIMARY
from embedcache.evaluation.record import RECORD_VERSION, RunRecord, load_record, run_folder, save_record
from embedcache.loading import PooledData, load_pooled
from embedcache.training import TrainConfig, TrainResult, train_head


def run_seeds(
    features: Ensemble,
    config: TrainConfig,
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    *,
    device: str = "cpu",
    force: bool = False,
    on_run: Callable[[RunRecord, bool], None] | None = None,
) -> list[RunRecord]:
    """Train a head once per seed and write a record and the weights of each run.

    Parameters
    ----------
    features
        A store or ensemble.
    config
        Head and hyperparameters.
    seeds
        Each is one run.
    out
        Folder of results; a run goes to ``OUT/<dataset>/<features>/<head>-<hash>/seed-<k>.json`` and ``.safetensors``.
    device
        Torch device to train on.
    force
        Train again what has a record.
    on_run
        Called after each run with its record, and whether it was trained now.

    Returns
    -------
    list of RunRecord
        In the order of ``seeds``.
    """
    folder = run_folder(out, features.dataset, features.name, features.fingerprints, config.to_json())
    data: PooledData | None = None
    records = []
    for seed in seeds:
        path = folder / f"seed-{seed}.json"
        trained = force or not path.exists()
        if trained:
            data = data or load_pooled(features, config.pooled, device)
            result = train_head(data, config, seed)
            record = _record(features, config, seed, data, result, device)
            _save_weights(path.with_suffix(".safetensors"), result, record)
            save_record(path, record)  # after the weights: a record promises that they are there
        else:
            record = load_record(path)
        records.append(record)
        if on_run is not None:
            on_run(record, trained)
    return records


def _record(
    features: Ensemble, config: TrainConfig, seed: int, data: PooledData, result: TrainResult, device: str
) -> RunRecord:
    channels = features.channels(f"pooled_{config.pooled}")
    return RunRecord(
        version=RECORD_VERSION,
        dataset=features.dataset,
        features=features.name,
        fingerprints=features.fingerprints,
        random_weights=list(features.random_members),
        channels={name: [here.start, here.stop] for name, here in channels.items()},
        task=features.task,
        class_names=list(features.class_names),
        config=config.to_json(),
        seed=seed,
        samples={"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        metric=PRIMARY[features.task],
        best_epoch=result.best_epoch,
        val=result.val,
        test=result.test,
        curve=result.curve,
        seconds=round(result.seconds, 3),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment={
            "device": device,
            **{name: importlib.metadata.version(name) for name in ("embedcache", "torch", "numpy")},
        },
        notes=list(data.notes),
    )


def _save_weights(path: Path, result: TrainResult, record: RunRecord) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    metadata = {
        "head": str(record.config["head"]),
        "features": record.features,
        "classes": "|".join(record.class_names),
    }
    save_file({k: v.contiguous() for k, v in result.state.items()}, temporary, metadata=metadata)
    temporary.replace(path)
