"""Metrics against scikit-learn and torchmetrics."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_average_precision,
    multilabel_auroc,
    multilabel_average_precision,
)

from embedcache.errors import DatasetError
from embedcache.evaluation.metrics import PRIMARY, accuracy_macro, evaluate, f1, per_class, primary_scores

cases = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 3), min_size=n, max_size=n), st.lists(st.integers(0, 3), min_size=n, max_size=n)
    )
)


@given(cases)
def test_single_label_scores_are_scikit_learns(case: tuple[list[int], list[int]]) -> None:
    target, predicted = (np.array(c) for c in case)
    scores = evaluate("classification", np.eye(4)[predicted], target)
    assert scores["accuracy"] == pytest.approx(accuracy_score(target, predicted))
    seen = np.isin(np.arange(4), target)
    recall = np.mean([np.mean(predicted[target == c] == c) for c in np.flatnonzero(seen)])
    assert scores["accuracy_macro"] == pytest.approx(recall)
    if seen[predicted].all() and seen.sum() > 1:  # scikit-learn warns, or counts otherwise, where this is not so
        assert accuracy_macro(target, predicted) == pytest.approx(balanced_accuracy_score(target, predicted))
    assert scores["f1_macro"] == pytest.approx(f1_score(target, predicted, average="macro", zero_division=0))
    assert scores["accuracy"] == pytest.approx(f1_score(target, predicted, average="micro"))  # so it is left out


@given(st.integers(1, 20), st.integers(0, 1000))
def test_multilabel_scores_are_scikit_learns(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    target, logits = rng.integers(0, 2, (rows, 5)), rng.normal(size=(rows, 5))
    predicted = (logits > 0).astype(int)
    scores = evaluate("multilabel", logits, target)
    for average in ("micro", "macro"):
        assert scores[f"f1_{average}"] == pytest.approx(f1_score(target, predicted, average=average, zero_division=0))
    assert scores["subset_accuracy"] == pytest.approx(accuracy_score(target, predicted))
    if target.any():
        assert scores["map_micro"] == pytest.approx(average_precision_score(target, logits, average="micro"))


def test_nothing_there_and_nothing_predicted_counts_zero_or_is_left_out() -> None:
    target = np.array([[1, 0], [1, 0]])
    assert f1(target, target, average="macro") == 0.5
    assert f1(target, target, average="macro", present_only=True) == 1.0
    assert f1(np.zeros((2, 2)), np.zeros((2, 2)), average="micro") == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_rankings_of_single_labels_are_the_oracles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target, logits = rng.integers(0, 6, 80), 3 * rng.normal(size=(80, 6)).astype(np.float32)
    logits[np.arange(80), target] += 1
    scores, probability = evaluate("classification", logits, target), softmax(logits.astype(np.float64), axis=1)
    assert scores["auroc_macro"] == pytest.approx(roc_auc_score(target, probability, multi_class="ovr"))
    assert scores["map_macro"] == pytest.approx(average_precision_score(np.eye(6)[target], probability))
    tensors = torch.from_numpy(probability), torch.from_numpy(target)
    assert scores["auroc_macro"] == pytest.approx(float(multiclass_auroc(*tensors, 6)), abs=1e-6)
    assert scores["map_macro"] == pytest.approx(float(multiclass_average_precision(*tensors, 6)), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_rankings_of_many_labels_are_the_oracles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.random((60, 4)) < (0.1, 0.3, 0.5, 0.9)
    target[:2] = [[True] * 4, [False] * 4]
    logits = rng.normal(size=(60, 4)) + target
    scores = evaluate("multilabel", logits, target.astype(np.float32))
    assert scores["auroc_macro"] == pytest.approx(roc_auc_score(target, logits))
    assert scores["map_macro"] == pytest.approx(average_precision_score(target, logits))
    tensors = torch.from_numpy(logits), torch.from_numpy(target.astype(int))
    assert scores["auroc_macro"] == pytest.approx(float(multilabel_auroc(*tensors, 4)), abs=1e-6)
    for average in ("micro", "macro"):
        oracle = float(multilabel_average_precision(*tensors, 4, average=average))
        assert scores[f"map_{average}"] == pytest.approx(oracle, abs=1e-6)


@given(st.sampled_from(["classification", "multilabel"]), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_scores_are_never_nan_and_agree_with_those_by_class(task: str, rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, (rows, classes)) * rng.choice([0.0, 1.0, 1e4])  # ties, all equal, far apart
    shape = (rows, classes) if task == "multilabel" else (rows,)
    target = rng.integers(0, 2 if task == "multilabel" else classes, shape)
    scores, by_class = evaluate(task, logits, target), per_class(task, logits, target, classes)
    assert all(0 <= s <= 1 for s in scores.values()), scores
    assert all(len(v) == classes for v in by_class.values())
    means = {k: [v for v in values if v is not None] for k, values in by_class.items()}
    for name, key in (("map_macro", "average_precision"), ("auroc_macro", "auroc")):
        assert (name in scores) == bool(means[key])
        if means[key]:
            assert scores[name] == pytest.approx(np.mean(means[key]))
    if task == "classification":
        assert scores["f1_macro"] == pytest.approx(np.mean(means["f1"]))
        assert scores["accuracy_macro"] == pytest.approx(np.mean(means["accuracy"]))
    else:
        assert scores["f1_macro"] == pytest.approx(np.sum(means["f1"]) / classes)


def test_what_is_undefined_is_left_out() -> None:
    one_class = evaluate("classification", np.eye(3)[[0, 1]], np.zeros(2, int))
    assert set(one_class) == {"accuracy", "accuracy_macro", "f1_macro", "map_macro", "ece"}
    nothing = evaluate("multilabel", np.ones((2, 3)), np.zeros((2, 3)))
    assert set(nothing) == {"f1_micro", "f1_macro", "subset_accuracy", "ece"}
    by_class = per_class("classification", np.eye(4)[[0, 1, 2]], np.array([0, 0, 2]), 4)
    assert by_class["accuracy"] == [0.5, None, 1.0, None]
    assert by_class["f1"] == [pytest.approx(2 / 3), 0.0, 1.0, None]
    decisions = per_class("multilabel", np.array([[1.0, -1], [1, -1]]), np.array([[1, 0], [0, 0]]), 2)
    assert decisions["accuracy"] == [0.5, None]


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_many_runs_at_once_are_each_run_alone(task: str) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(16, 50, 7)).astype(np.float32)
    logits[3] = np.nan  # diverged
    logits[4, :, 2] = np.nan
    logits[5, :9, 2] = -np.inf
    target = rng.integers(0, 2, (50, 7)) if task == "multilabel" else rng.integers(0, 7, 50)
    together = primary_scores(task, logits, target)
    assert together.tolist() == [evaluate(task, one, target)[PRIMARY[task]] for one in logits]
    without = np.delete(logits[4], 2, axis=1)  # NaN is the lowest, so class 2 is never chosen
    if task == "classification":
        found = np.delete(np.arange(7), 2)[without.argmax(axis=1)]
        assert together[4] == np.mean(found == target)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_any_number_will_do(dtype: type) -> None:
    logits, target = np.array([[60_000, -60_000], [0, 1], [3, 2]]).astype(dtype), np.array([0, 1, 1])
    assert evaluate("classification", logits, target) == evaluate("classification", logits.astype(np.float64), target)


def test_misuse_is_said() -> None:
    logits = np.zeros((2, 3))
    for wrong in (3, -1):
        with pytest.raises(DatasetError, match=f"target {wrong} is not a class: they are 0 to 2"):
            evaluate("classification", logits, np.array([0, wrong]))
    with pytest.raises(DatasetError, match="no sample"):
        evaluate("multilabel", logits[:0], logits[:0])
    with pytest.raises(DatasetError, match="no sample"):
        primary_scores("classification", logits[None, :0], np.zeros(0, int))
    with pytest.raises(ValueError, match="do not fit"):
        evaluate("multilabel", logits, np.zeros(2, int))
    with pytest.raises(ValueError, match="SegmentationScores"):
        primary_scores("segmentation", logits[None], np.zeros(2, int))
    with pytest.raises(ValueError, match="not 'regression'"):
        evaluate("regression", logits, np.zeros(2, int))
    with pytest.raises(ValueError, match="3 classes, not 4"):
        per_class("classification", logits, np.zeros(2, int), 4)


def test_nothing_but_numpy_is_imported() -> None:
    code = (
        "import sys, embedcache.evaluation.bootstrap;"
        "print({'torch', 'scipy', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
