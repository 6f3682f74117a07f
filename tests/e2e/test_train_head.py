"""``embedcache train-head`` as a user runs it, on a small cache of vectors with known content."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from embedcache_stores import ArraySpec, FeatureWriter, StoreSpec

Cli = Callable[..., Any]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Other work shares the processors; tiny products on several threads would only wait."""
CLASSES = ("forest", "river", "road")


def write_store(root: Path, dataset: str, name: str, x: np.ndarray, label: np.ndarray, split: list[str]) -> None:
    rows = len(x)
    columns: dict[str, Any] = {
        "split": np.array(split, dtype=object),
        "problem": np.array([""] * rows, dtype=object),
        "label": label.astype(np.int64),
    }
    spec = StoreSpec(
        sample_ids=tuple(f"s{i}" for i in range(rows)),
        arrays=(ArraySpec(name="pooled_mean", dims=("channel",), shape=x.shape[1:], dtype="float32"),),
        columns=(
            ArraySpec(name="split", dtype="string"),
            ArraySpec(name="problem", dtype="string"),
            ArraySpec(name="label", dims=(), shape=(), dtype="int64"),
        ),
        provenance={
            "backbone": {"name": name, "weights": {"kind": "file"}},
            "dataset": {"splits": "s", "labels": "l"},
            "content": float(np.nan_to_num(x).sum()),
        },
        rows_per_group=64,
        attrs={"task": "classification", "class_names": list(CLASSES), "levels": []},
    )
    with FeatureWriter(root / dataset / f"{name}.zarr", spec) as writer:
        for group in range(spec.groups):
            here = spec.group_rows(group)
            writer.write_group(group, {"pooled_mean": x[here]}, {k: v[here] for k, v in columns.items()})
        writer.commit()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of dataset ``m-x`` with stores ``a`` and ``b``, and datasets with something wrong."""
    root = tmp_path_factory.mktemp("vectors") / "cache"
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 320)
    split = [("train", "train", "val", "test")[i % 4] for i in range(320)]
    for seed, name in enumerate("ab"):
        centres = np.random.default_rng(seed).normal(size=(3, 8))
        x = (centres[label] + 1.2 * rng.normal(size=(320, 8))).astype(np.float32)
        write_store(root, "m-x", name, x, label, split)
    spoiled = x.copy()
    spoiled[[9, 30], 2] = np.nan
    write_store(root, "m-nan", "a", spoiled, label, split)
    unseen = np.where((label == 2) & (np.array(split) == "train"), 0, label)
    write_store(root, "m-unseen", "a", x, unseen, split)
    return root


@pytest.fixture
def head(cli: Cli, cache: Path, tmp_path: Path) -> Cli:
    def run(*args: str, dataset: str = "m-x", features: str = "a") -> Any:
        given = ("--dataset", dataset, "--features", features, "--cache", cache)
        return cli("train-head", *given, "--epochs", "3", *args, cwd=tmp_path, env=ONE_THREAD)

    return run


def records(folder: Path) -> dict[int, dict[str, Any]]:
    return {r["seed"]: r for r in (json.loads(p.read_text()) for p in folder.rglob("seed-*.json"))}


def test_the_default_chooses_by_trials_and_runs_every_seed(head: Cli, cli: Cli, cache: Path, tmp_path: Path) -> None:
    ran = head("--seeds", "3", "--json", features="a+b")
    assert ran.code == 0, ran.err
    assert re.search(r"m-x/a\+b: 16 trials: learning rate \S+, weight decay \S+ \(validation [\d.]+ %\)", ran.err)
    assert "3 runs trained, 0 found" in ran.err
    (summary,) = json.loads(ran.out)
    assert (summary["head"], summary["seeds"], len(summary["scores"])) == ("linear", [0, 1, 2], 3)
    assert summary["mean"] > 0.6
    assert summary["chosen"] == ["learning_rate", "weight_decay"]
    found = records(tmp_path / "results")
    assert sorted(found) == [0, 1, 2]
    assert [found[s]["test"]["accuracy"] for s in range(3)] == summary["scores"]
    assert len(found[0]["trials"]["tried"]) == 16
    table = pd.read_parquet(tmp_path / "results/runs.parquet")
    assert table["score"].tolist() == summary["scores"]
    again = head("--seeds", "4", features="a+b")
    assert "1 runs trained, 3 found" in again.err
    assert re.search(r"^m-x +a\+b +linear +[\d.]+ +[\d.]+ +[\d.]+ to [\d.]+ +4$", again.out, re.MULTILINE)

    file = next((tmp_path / "results").rglob("seed-1.json"))
    same = cli("train-head", "--from-record", file, cwd=tmp_path, env=ONE_THREAD)  # the record knows the cache
    assert same.code == 0, same.err
    assert "accuracy: the same, seed 1 of a+b" in same.out
    pairs = json.loads(
        cli("train-head", "--from-record", file, "--cache", cache, "--json", cwd=tmp_path, env=ONE_THREAD).out
    )["then_and_now"]
    assert set(pairs) == set(found[1]["test"])
    assert all(then == now for then, now in pairs.values())  # to the last bit


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--trials", "0"), {"head": "linear", "learning_rate": 1e-3, "weight_decay": 1e-2}),
        (("--learning-rate", "0.02"), {"head": "linear", "learning_rate": 0.02, "weight_decay": 1e-2}),
        (
            ("--head", "mlp", "--hidden", "8", "--weight-decay", "0.5"),
            {"head": "mlp", "hidden": 8, "weight_decay": 0.5},
        ),
        (("--head", "logistic", "--c", "0.1"), {"head": "logistic", "c": 0.1}),
        (("--trials", "0", "--channels", "2:6", "--memory", "inf"), {"channels": "2:6"}),
    ],
    ids=" ".join,
)
def test_hyperparameters_that_are_given_are_taken(
    head: Cli, tmp_path: Path, args: tuple[str, ...], expected: dict[str, Any]
) -> None:
    ran = head("--seeds", "2", *args)
    assert ran.code == 0, ran.err
    assert "trials:" not in ran.err
    assert not list(tmp_path.rglob("choice.json"))
    for record in records(tmp_path / "results").values():
        assert {k: record["config"][k] for k in expected} == expected
        assert record["trials"] is None


def test_neighbours_are_chosen_from_a_grid_and_run_once(head: Cli, tmp_path: Path) -> None:
    ran = head("--head", "knn")
    assert ran.code == 0, ran.err
    assert re.search(r"6 trials: k \d+ \(validation", ran.err)
    assert list(records(tmp_path / "results")) == [0]


def test_a_plan_trains_nothing(head: Cli, tmp_path: Path) -> None:
    ran = head("--plan")
    assert ran.code == 0, ran.err
    assert "a: linear, 16 trials, then 10 seeds, on " in ran.out
    assert "160 train, 80 val, 80 test, batches of 32" in ran.out
    assert "27 weights; 16 runs in one pass" in ran.out
    (plan,) = json.loads(head("--plan", "--json", "--memory", "0").out)
    assert (plan["parameters"], plan["resident"], plan["seeds"]) == (27, False, 10)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("args", "where", "fragments"),
    [
        (("--trials", "8", "--learning-rate", "0.1"), {}, ("--trials", "--learning-rate", "--trials 0")),
        (("--c", "2"), {}, ("'linear' has no --c", "--learning-rate and --weight-decay")),
        (("--head", "knn", "--learning-rate", "0.1"), {}, ("'knn' has no --learning-rate", "it has --k")),
        (("--loss", "dice"), {}, ("'linear' has no --loss", "fcn, linear-seg, upernet")),
        (("--head", "knn", "--class-weights", "balanced"), {}, ("'knn' has no --class-weights", "linear", "logistic")),
        (("--head", "liner"), {}, ("'liner' is not known", "did you mean", "'linear'")),
        (("--head", "upernet"), {}, ("'upernet' learns segmentation", "classification", "logistic")),
        (("--channels", "3:99"), {}, ("--channels 3:99", "8 channels")),
        (("--channels", "x"), {}, ("START:STOP", "'x'")),
        (("--levels", "0"), {}, ("--levels", "heads on maps")),
        (("--levels", "a"), {}, ("--levels must be whole numbers",)),
        (("--pooled", "cls"), {}, ("no pooled vectors 'cls'", "it has mean")),
        (("--learning-rate", "nan"), {}, ("--learning-rate must be a finite number",)),
        (("--learning-rate", "1e38"), {}, ("every run was given up", "seed 0 became", "lower --learning-rate")),
        (("--from-record", "x.json"), {}, ("--from-record", "leave --dataset, --features and --split out")),
        (("--channels", "0:²"), {}, ("--channels must be START:STOP",)),
        ((), {"dataset": "m-nan"}, ("2 feature vectors of 'a' are not finite", "row 9 ('s9')")),
        ((), {"features": "c"}, ("c",)),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else str(v),
)
def test_mistakes_are_one_sentence(
    head: Cli, tmp_path: Path, args: tuple[str, ...], where: dict[str, str], fragments: tuple[str, ...]
) -> None:
    ran = head(*args, **where)
    assert ran.code == 1, (ran.out, ran.err)
    (error,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in ran.err
    assert "fault of embedcache" not in ran.err
    for fragment in fragments:
        assert fragment in error
    if "1e38" not in args:
        assert not list(tmp_path.rglob("seed-*"))


def test_classes_missing_from_train_are_noted(head: Cli) -> None:
    ran = head("--trials", "0", "--seeds", "1", dataset="m-unseen")
    assert ran.code == 0, ran.err
    assert "note: classes missing from train: road" in ran.out


def test_ctrl_c_and_the_same_command_continues_to_the_same_result(cli: Cli, cache: Path, tmp_path: Path) -> None:
    args = ("train-head", "--dataset", "m-x", "--features", "a", "--cache", str(cache), "--epochs", "60")
    args = (*args, "--batch-size", "4", "--seeds", "2", "--trials", "8", "--trial-batch", "2")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "embedcache_cli", *args, "--out", "stopped"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )
    deadline = time.monotonic() + 200
    while not any(p.read_bytes().count(b"\n") > 2 for p in tmp_path.glob("stopped/m-x/a/*/optuna.log")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 3, err
    assert "Traceback" not in err
    assert "continue with:\n  embedcache train-head" in err
    assert not list(tmp_path.glob("stopped/m-x/a/*/choice.json"))
    resumed = cli(*args, "--out", "stopped", "--json", cwd=tmp_path, env=ONE_THREAD)
    whole = cli(*args, "--out", "whole", "--json", cwd=tmp_path, env=ONE_THREAD)
    assert (resumed.code, whole.code) == (0, 0), resumed.err
    assert json.loads(resumed.out) == json.loads(whole.out)
    one, other = (json.loads(next(tmp_path.glob(f"{f}/m-x/a/*/choice.json")).read_text()) for f in ("stopped", "whole"))
    assert one == other


def test_search_ranks_every_combination_and_names_what_it_costs(cache: Path, tmp_path: Path, cli: Cli) -> None:
    args = ("search", "--dataset", "m-x", "--cache", str(cache), "--trials", "0", "--seeds", "2", "--epochs", "8")
    ran = cli(*args, cwd=tmp_path, env=ONE_THREAD)
    assert ran.code == 0, ran.err
    assert {"a", "b", "a+b"} == {line.split()[0] for line in ran.out.splitlines()[2:5]}
    assert "Shapley values sum to the score of all together" in ran.out
    assert "best on validation: " in ran.out
    again = cli(*args, "--json", cwd=tmp_path, env=ONE_THREAD)
    assert again.err.count("0 runs trained, 2 found") == 3
    found = json.loads(again.out)
    assert found["exhaustive"]
    assert [c["val"] for c in found["combinations"]] == sorted((c["val"] for c in found["combinations"]), reverse=True)
    one = cli(*args, "--features", "a", cwd=tmp_path, env=ONE_THREAD)
    assert one.code == 1
    assert "error: a search needs two stores or more" in one.err
