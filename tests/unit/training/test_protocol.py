"""The protocol: a record and weights for every run, nothing trained twice, everything repeatable from the record."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from embedcache import protocol as module
from embedcache.ensemble import Ensemble
from embedcache.errors import SettingError
from embedcache.evaluation.metrics import evaluate
from embedcache.evaluation.record import RunRecord, find_records, load_record, save_record, save_runs_table
from embedcache.heads._registry import get_head
from embedcache.heads.knn import KnnHead
from embedcache.heads.logistic import LogisticHead
from embedcache.loading import load_pooled
from embedcache.protocol import run_protocol
from embedcache.rerun import rerun
from embedcache.train_config import TrainConfig
from embedcache.training import train
from embedcache.trials import TrialOptions
from embedcache_stores import FeatureStore

Make = Callable[..., FeatureStore]
QUICK = TrainConfig(epochs=3, batch_size=32, learning_rate=1e-2)
TRIALS = TrialOptions(count=4, batch=2)


@pytest.fixture
def view(make: Make, blobs: Callable[..., Any]) -> Ensemble:
    x, label, split = blobs()
    return Ensemble([make("a", x, label, split), make("b", blobs(channels=5, seed=2)[0], label, split)])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return the seeds of every training of the protocol's second part, as they come."""
    calls: list[list[int]] = []

    def counted(data: Any, runs: Any, **options: Any) -> Any:
        calls.append([r.seed for r in runs])
        return train(data, runs, **options)

    monkeypatch.setattr(module, "train", counted)
    return calls


def built(record: RunRecord, state: dict[str, torch.Tensor], channels: int) -> torch.nn.Module:
    """Build a head from its record and weights, as somebody without this library's training would."""
    config = TrainConfig.from_json(record.config)
    state = {k: v for k, v in state.items() if not k.startswith("scale.")}
    if config.head == "logistic":
        return LogisticHead(state["weight"], state["bias"])
    if config.head == "knn":
        return KnnHead(state["x"], state["y"], config.k)
    stack = get_head(config.head).stack
    assert stack is not None
    head = stack(channels, len(record.class_names), [torch.Generator()], config)
    head.load_state_dict({k: v[None] for k, v in state.items()})
    return head.eval()


def test_a_record_holds_all_that_is_known_of_a_run(view: Ensemble, tmp_path: Path) -> None:
    chosen: list[Any] = []
    result = run_protocol(view, QUICK, [0, 3], tmp_path / "r", trials=TRIALS, on_choice=chosen.append)
    assert chosen == [result.choice]
    assert result.choice is not None
    assert result.trained == 2
    for record, seed in zip(result.records, (0, 3), strict=True):
        assert record == load_record(next((tmp_path / "r").rglob(f"seed-{seed}.json")))
        assert (record.version, record.dataset, record.features, record.seed) == (2, "m-x", "a+b", seed)
        assert record.fingerprints == view.fingerprints
        assert record.channels == {"a": [0, 12], "b": [12, 17]}
        assert record.class_names == ["class 0", "class 1", "class 2"]
        assert record.samples == {"train": 120, "val": 60, "test": 60}
        assert record.config == QUICK.with_(**result.choice.chosen).to_json()
        assert record.trials == result.choice.to_json()
        assert (record.task, record.metric, record.failed) == ("classification", "accuracy", None)
        assert [p["epoch"] for p in record.curve] == [1, 2, 3]
        assert record.val["accuracy"] == record.curve[record.best_epoch - 1]["val_accuracy"]
        assert record.interval is not None
        assert record.interval[0] <= record.score <= record.interval[1]
        assert set(record.per_class) == {"accuracy", "f1", "average_precision", "auroc"}
        assert all(len(v) == 3 for v in record.per_class.values())
        assert record.environment["device"] == "cpu"
        assert record.environment["torch"] == importlib.metadata.version("torch")
        assert (record.stacked_with, record.stack_seeds) == (2, [0, 3])
        assert record.peak_memory_bytes is not None
        assert record.peak_memory_bytes > 10**7
        assert Path(record.cache).name == "cache"
    assert list((tmp_path / "r").rglob("*.partial")) == []


@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("head", ["linear", "mlp", "logistic", "knn"])
@pytest.mark.parametrize("standardise", [True, False])
def test_saved_weights_give_the_recorded_scores(
    make: Make, blobs: Callable[..., Any], tmp_path: Path, head: str, task: str, standardise: bool
) -> None:
    x, label, split = blobs()
    if task == "multilabel":
        label = np.stack([label == 0, label != 1, x[:, 0] > 0], axis=1)
    view = Ensemble([make("a", x, label, split, task=task)])
    config = QUICK.with_(head=head, batch_norm=head == "mlp", hidden=9, standardise=standardise, k=5)
    for record in run_protocol(view, config, [0, 1], tmp_path / "r").records:
        path = next((tmp_path / "r").rglob(f"seed-{record.seed}.safetensors"))
        state = load_file(path)
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"head": head, "features": "a", "classes": "class 0|class 1|class 2"}
        assert ("scale.mean" in state) == standardise
        vectors = load_pooled(view).test.x
        if standardise:
            vectors = (vectors - state["scale.mean"]) / state["scale.std"]
        with torch.no_grad():
            logits = built(record, state, 12)(vectors)
        logits = (logits[0] if logits.ndim == 3 else logits).numpy()
        at = np.array(split) == "test"
        assert evaluate(task, logits, label[at].astype(np.int64)) == pytest.approx(record.test, abs=1e-6)


def test_nothing_is_trained_twice_unless_forced(view: Ensemble, tmp_path: Path, trained: list[list[int]]) -> None:
    first = run_protocol(view, QUICK, [0, 1], tmp_path)
    again = run_protocol(view, QUICK, [0, 1, 2], tmp_path)
    assert trained == [[0, 1], [2]]
    assert (first.trained, again.trained) == (2, 1)
    assert again.records[:2] == first.records
    forced = run_protocol(view, QUICK, [1, 0], tmp_path, force=True)
    assert trained[2:] == [[1, 0]]
    assert [r.test["accuracy"] for r in forced.records] == [r.test["accuracy"] for r in first.records[::-1]]
    other = run_protocol(view, QUICK.with_(epochs=2), [0], tmp_path)
    assert len(list(tmp_path.glob("m-x/a+b/linear-*"))) == 2
    assert other.records[0].config["epochs"] == 2


def test_a_finished_protocol_reads_no_features(view: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_protocol(view, QUICK, [0, 1], tmp_path, trials=TRIALS)

    def nothing(*_: Any, **__: Any) -> Any:
        raise AssertionError("features were loaded")

    monkeypatch.setattr(module, "load_data", nothing)
    again = run_protocol(view, QUICK, [0, 1], tmp_path, trials=TRIALS)
    assert (again.records, again.choice, again.trained) == (first.records, first.choice, 0)


def test_force_chooses_anew_too(view: Ensemble, tmp_path: Path) -> None:
    first = run_protocol(view, QUICK, [0], tmp_path, trials=TRIALS)
    study = next(tmp_path.glob("m-x/a+b/linear-trials-*"))
    before = (study / "choice.json").stat().st_mtime_ns
    again = run_protocol(view, QUICK, [0], tmp_path, trials=TRIALS, force=True)
    assert (study / "choice.json").stat().st_mtime_ns > before
    assert again.choice == first.choice
    assert again.trained == 1


def test_seeds_interrupted_between_records_go_on_where_they_were(
    view: Ensemble, tmp_path: Path, trained: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_protocol(view, QUICK, range(4), tmp_path / "whole").records

    def stop(path: Path, record: RunRecord) -> None:
        if record.seed == 2:
            raise KeyboardInterrupt
        save_record(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_record", stop)
        with pytest.raises(KeyboardInterrupt):
            run_protocol(view, QUICK, range(4), tmp_path / "stopped")
    resumed = run_protocol(view, QUICK, range(4), tmp_path / "stopped")
    assert trained == [[0, 1, 2, 3], [0, 1, 2, 3], [2, 3]]
    for one, other in zip(whole, resumed.records, strict=True):
        assert one.test["accuracy"] == other.test["accuracy"]
        assert one.test == pytest.approx(other.test, abs=1e-5)
        assert one.best_epoch == other.best_epoch


def test_every_seed_of_several_is_that_seed_alone(view: Ensemble, tmp_path: Path) -> None:
    several = run_protocol(view, QUICK, range(4), tmp_path / "all").records
    for seed in (0, 3):
        (alone,) = run_protocol(view, QUICK, [seed], tmp_path / "one").records
        assert alone.test["accuracy"] == several[seed].test["accuracy"]
        assert alone.test == pytest.approx(several[seed].test, abs=1e-5)


@pytest.mark.parametrize("head", ["logistic", "knn"])
def test_heads_without_chance_run_once(view: Ensemble, tmp_path: Path, head: str) -> None:
    result = run_protocol(view, QUICK.with_(head=head), range(10), tmp_path, trials=TRIALS)
    assert [r.seed for r in result.records] == [0]
    record = result.records[0]
    assert (record.best_epoch, record.curve, record.stacked_with, record.stack_seeds) == (0, [], 1, [])
    assert result.choice is not None
    assert record.trials is not None
    assert record.trials["chosen"] == result.choice.chosen


def test_a_failed_run_leaves_a_record_and_no_weights(view: Ensemble, tmp_path: Path, trained: list[list[int]]) -> None:
    config = QUICK.with_(learning_rate=1e38)
    failed = run_protocol(view, config, [0, 1], tmp_path)
    for record in failed.records:
        assert record.failed is not None
        assert f"seed {record.seed} became" in record.failed
        assert "--learning-rate (1e+38)" in record.failed
        assert (record.test, record.val, record.interval, record.best_epoch) == ({}, {}, None, 0)
        assert np.isnan(record.score)
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert run_protocol(view, config, [0, 1], tmp_path).trained == 0  # it would fail again
    assert list(find_records(tmp_path)) == failed.records


def test_weights_of_an_earlier_run_do_not_outlive_a_failure(view: Ensemble, tmp_path: Path) -> None:
    run_protocol(view, QUICK, [0], tmp_path)
    weights = next(tmp_path.rglob("seed-0.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        real = train
        patch.setattr(
            module, "train", lambda d, runs, **o: [replace(r, state={}, failed="it did") for r in real(d, runs, **o)]
        )
        run_protocol(view, QUICK, [0], tmp_path, force=True)
    assert not weights.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": "mlp", "dropout": 0.3, "batch_norm": True},
        {"order": "shared"},
        {"head": "logistic"},
        {"head": "knn"},
    ],
    ids=str,
)
def test_a_record_runs_again_to_the_last_bit(view: Ensemble, tmp_path: Path, changes: dict[str, Any]) -> None:
    records = run_protocol(view, QUICK.with_(**changes), range(5), tmp_path / "r").records
    for record in records[::2]:
        again = rerun(record, tmp_path / "cache")
        assert again.test == record.test  # every metric, exactly
        assert again.failed is None
        streamed = rerun(record, tmp_path / "cache", budget_bytes=0) if "head" not in changes else again
        assert streamed.test == record.test


def test_a_record_made_in_smaller_stacks_runs_again_to_the_last_bit(
    view: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.stacked_training.most_runs", lambda *a: 2 if a[-1] is None else 10**9)
    records = run_protocol(view, QUICK, [4, 1, 7, 2, 5], tmp_path / "r").records
    assert [r.stack_seeds for r in records] == [[4, 1], [4, 1], [7, 2], [7, 2], [5]]
    for record in records:
        assert rerun(record, tmp_path / "cache").test == record.test


def test_a_failed_record_fails_again(view: Ensemble, tmp_path: Path) -> None:
    (record,) = run_protocol(view, QUICK.with_(learning_rate=1e38), [0], tmp_path / "r").records
    again = rerun(record, tmp_path / "cache")
    assert (again.failed, again.test) == (record.failed, {})


def test_a_record_of_other_features_is_refused(
    view: Ensemble, make: Make, blobs: Callable[..., Any], tmp_path: Path
) -> None:
    (record,) = run_protocol(view, QUICK, [0], tmp_path / "r").records
    shutil.rmtree(tmp_path / "cache/m-x/b.zarr")
    x, label, split = blobs(channels=5, seed=3)
    make("b", x, label, split)
    with pytest.raises(
        SettingError, match=r"store 'b' of 'm-x' is not the one of the record: its fingerprint is \w{12}"
    ):
        rerun(record, tmp_path / "cache")


def test_the_table_of_all_runs_has_a_row_a_run(view: Ensemble, tmp_path: Path) -> None:
    records = [
        *run_protocol(view, QUICK, [0, 1], tmp_path, trials=TRIALS).records,
        *run_protocol(view, QUICK.with_(head="knn", k=3), [0], tmp_path).records,
        *run_protocol(view, QUICK.with_(learning_rate=1e38), [0], tmp_path).records,
    ]
    path = save_runs_table(tmp_path)
    assert path == tmp_path / "runs.parquet"
    table = pd.read_parquet(path)
    assert len(table) == 4
    for record in records:
        (row,) = table[
            (table["config.learning_rate"] == record.config["learning_rate"])
            & (table["head"] == record.config["head"])
            & (table["seed"] == record.seed)
        ].to_dict("records")
        assert (row["dataset"], row["features"], row["metric"]) == ("m-x", "a+b", "accuracy")
        assert row["best_epoch"] == record.best_epoch
        assert json.loads(row["fingerprints"]) == record.fingerprints
        if record.failed:
            assert row["failed"] == record.failed
            assert np.isnan(row["score"])
            assert np.isnan(row["test.accuracy"])
        else:
            assert pd.isna(row["failed"])
            assert record.interval is not None
            assert [row["score"], row["interval_low"], row["interval_high"]] == [record.score, *record.interval]
            assert {k: row[f"test.{k}"] for k in record.test} == record.test
            assert {k: row[f"val.{k}"] for k in record.val} == record.val
        assert row["samples.train"] == 120
        assert row["config.epochs"] == 3
        assert row["environment.numpy"] == np.__version__
    assert list(tmp_path.glob("*.partial")) == []


def test_a_record_survives_json(view: Ensemble, tmp_path: Path) -> None:
    (record,) = run_protocol(view, QUICK, [0], tmp_path / "r", trials=TRIALS).records
    save_record(tmp_path / "copy.json", record)
    copy = load_record(tmp_path / "copy.json")
    assert copy == record
    assert json.loads((tmp_path / "copy.json").read_text()) == json.loads(json.dumps(asdict(record)))


@pytest.mark.parametrize("trials", [None, TRIALS])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_trained(
    view: Ensemble, tmp_path: Path, trained: list[list[int]], trials: TrialOptions | None
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SettingError, match=r"results cannot be written to .*file.*: Not a directory. Choose another"):
        run_protocol(view, QUICK, [0], tmp_path / "file", trials=trials)
    assert trained == []


def test_two_that_write_the_same_run_at_once_leave_it_whole(
    view: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another begins and ends while one is between writing and renaming: of the weights, and then of the record."""
    out, begun = tmp_path / "results", []

    def again() -> None:
        if len(begun) in {0, 2}:  # of the weights; in that other, of the record
            begun.append("second")
            run_protocol(view, QUICK, [0], out, force=True)
        begun.append("done")

    save, sync = safetensors.torch.save_file, os.fsync

    def saved(*what: Any, **options: Any) -> None:
        save(*what, **options)
        again()

    def synced(descriptor: int) -> None:
        sync(descriptor)
        again()

    monkeypatch.setattr(safetensors.torch, "save_file", saved)
    monkeypatch.setattr(os, "fsync", synced)
    result = run_protocol(view, QUICK, [0], out)
    assert begun.count("second") == 2
    (path,) = out.glob("*/*/*/seed-0.json")
    assert sorted(p.name for p in path.parent.iterdir()) == ["seed-0.json", "seed-0.safetensors"]
    assert load_record(path).test == result.records[0].test
