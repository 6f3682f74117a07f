"""Metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from embedcache.evaluation.metrics import accuracy_macro, evaluate, f1

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


@given(st.integers(1, 20), st.integers(0, 1000))
def test_multilabel_scores_are_scikit_learns(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    target, logits = rng.integers(0, 2, (rows, 5)), rng.normal(size=(rows, 5))
    predicted = (logits > 0).astype(int)
    scores = evaluate("multilabel", logits, target)
    for average in ("micro", "macro"):
        assert scores[f"f1_{average}"] == pytest.approx(f1_score(target, predicted, average=average, zero_division=0))
    assert scores["subset_accuracy"] == pytest.approx(accuracy_score(target, predicted))


def test_nothing_there_and_nothing_predicted_counts_zero_or_is_left_out() -> None:
    target = np.array([[1, 0], [1, 0]])
    assert f1(target, target, average="macro") == 0.5
    assert f1(target, target, average="macro", present_only=True) == 1.0
    assert f1(np.zeros((2, 2)), np.zeros((2, 2)), average="micro") == 0.0
