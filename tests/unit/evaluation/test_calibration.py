"""Expected calibration error against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from embedcache.evaluation.calibration import CalibrationBins, calibration_error, sigmoid, top_confidence
from embedcache.evaluation.metrics import evaluate


@given(st.integers(1, 200), st.integers(2, 6), st.integers(0, 10**6))
def test_single_label_ece_is_torchmetrics(rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, target = 2 * rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)
    p = torch.from_numpy(softmax(logits, axis=1))
    oracle = multiclass_calibration_error(p, torch.from_numpy(target), classes, n_bins=15)
    assert evaluate("classification", logits, target)["ece"] == pytest.approx(float(oracle), abs=1e-5)


@given(st.integers(1, 100), st.integers(1, 5), st.integers(0, 10**6))
def test_multilabel_ece_is_torchmetrics(rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, target = 2 * rng.normal(size=(rows, classes)), rng.integers(0, 2, (rows, classes))
    oracle = binary_calibration_error(torch.from_numpy(expit(logits)), torch.from_numpy(target), n_bins=15)
    assert evaluate("multilabel", logits, target)["ece"] == pytest.approx(float(oracle), abs=1e-5)


def test_edges_of_bins() -> None:
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    assert calibration_error(np.array([0.0, np.nan]), np.array([False, False])) == 0.0
    last = np.array([14 / 15 + 1e-9, 1.0])  # one bin, so errors of opposite sign meet; torchmetrics keeps 1.0 apart
    assert calibration_error(last, np.array([True, False])) == pytest.approx(last.mean() - 0.5)


def test_pieces_are_the_whole() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(1000).astype(np.float32), rng.random(1000) < 0.5
    bins = CalibrationBins()
    for piece in np.array_split(np.arange(1000), 7):
        bins.add(confidence[piece], correct[piece])
    assert bins.error() == pytest.approx(calibration_error(confidence, correct))


def test_confidence_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1, not 0\.5 to 3"):
        calibration_error(np.array([0.5, 3.0]), np.array([True, True]))
    assert calibration_error(np.array([1.0002], np.float16), np.array([True])) == 0.0


def test_probabilities_do_not_overflow() -> None:
    logits = np.array([[1e30, -1e30], [800, 0], [0.5, 0.25]])
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_allclose(sigmoid(logits), expit(logits))
        np.testing.assert_allclose(top_confidence(logits), softmax(logits, axis=1).max(axis=1))
