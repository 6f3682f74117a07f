"""Rankings with ties, and probabilities that do not saturate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from embedcache.evaluation.calibration import log_odds
from embedcache.evaluation.ranking import ranking_scores


@given(st.integers(1, 15), st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
def test_tied_scores_rank_as_in_scikit_learn(rows: int, classes: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, levels, (rows, classes)) / 4, rng.random((rows, classes)) < rng.random()
    precision, area = ranking_scores(scores, positive)
    for c in range(classes):
        if positive[:, c].any():
            assert precision[c] == pytest.approx(average_precision_score(positive[:, c], scores[:, c]))
        else:
            assert np.isnan(precision[c])
        if len(set(positive[:, c])) == 2:
            assert area[c] == pytest.approx(roc_auc_score(positive[:, c], scores[:, c]))
        else:
            assert np.isnan(area[c])


def test_all_equal_says_nothing() -> None:
    precision, area = ranking_scores(np.zeros((8, 1)), np.arange(8)[:, None] < 2)
    assert (precision[0], area[0]) == (0.25, 0.5)


@given(arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(2, 5)), elements=st.floats(-8, 8, width=16)))
def test_log_odds_are_those_of_softmax(logits: np.ndarray) -> None:
    p = softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(log_odds(logits), np.log(p) - np.log1p(-p), atol=2e-9, rtol=1e-7)


def test_confident_samples_keep_their_order() -> None:
    logits = np.array([[50.0, 0, 1], [60, 0, 1], [2000, 0, 1], [1, 50, 0], [0, 2000, 1]])
    assert (softmax(logits[:3], axis=1)[:, 0] == 1).all()
    assert (np.diff(log_odds(logits)[:3, 0]) > 5).all()
    np.testing.assert_allclose(log_odds(logits)[3:, 0], log_softmax(logits[3:], axis=1)[:, 0])


def test_shifted_and_shuffled_rows_tie() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        row = rng.normal(size=40)
        rows = np.array([np.append(row[:1], rng.permutation(row[1:])) for _ in range(50)])
        assert len(set(log_odds(rows)[:, 0])) == 1
    assert len(set(log_odds(np.arange(4) + np.arange(9)[:, None])[:, 2])) == 1
    assert len(set(log_odds(np.full((3, 7), 0.1)).ravel())) == 1
    assert log_odds(np.array([[3.0], [4.0]])).tolist() == [[0.0], [0.0]]
