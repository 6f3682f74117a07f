"""Scores of label maps against scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from embedcache.errors import DatasetError
from embedcache.evaluation.segmentation_metrics import SegmentationScores

Maps = tuple[np.ndarray, np.ndarray, np.ndarray]


def maps(seed: int = 0, images: int = 6, classes: int = 5, ignored: int | None = 255) -> Maps:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (images, 8, 9))
    predicted = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, classes, target.shape))
    if ignored is not None:
        target[rng.random(target.shape) < 0.2] = ignored
    return predicted, rng.random(target.shape, dtype=np.float32), target


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6))
def test_scores_are_scikit_learns(seed: int, images: int, classes: int) -> None:
    predicted, confidence, target = maps(seed, images, classes)
    scores = SegmentationScores(classes + 1, ignore_index=255)  # one class that never comes up
    scores.update(predicted.astype(np.uint8), confidence, target.astype(np.uint8))
    got, labelled = scores.compute(), target != 255
    true, found = target[labelled], predicted[labelled]
    assert got["miou"] == pytest.approx(jaccard_score(true, found, average="macro", zero_division=0))
    assert got["f1_macro"] == pytest.approx(f1_score(true, found, average="macro", zero_division=0))
    assert got["pixel_accuracy"] == pytest.approx(accuracy_score(true, found))
    assert got["accuracy_macro"] == pytest.approx(np.mean([np.mean(found[true == c] == c) for c in np.unique(true)]))
    oracle = binary_calibration_error(
        torch.from_numpy(confidence[labelled]), torch.from_numpy((true == found).astype(int)), n_bins=15
    )
    assert got["ece"] == pytest.approx(float(oracle), abs=1e-5)


@pytest.mark.parametrize("ignored", [255, 0])
def test_scores_are_torchmetrics_also_where_a_class_is_ignored(ignored: int) -> None:
    predicted, _, target = maps(3, ignored=ignored)
    scores = SegmentationScores(5, ignore_index=ignored)
    scores.update(predicted, None, target)
    got, by_class = scores.compute(), scores.per_class()
    tensors = torch.from_numpy(predicted), torch.from_numpy(target)
    assert got["miou"] == pytest.approx(float(multiclass_jaccard_index(*tensors, 5, ignore_index=ignored)), abs=1e-6)
    f1 = multiclass_f1_score(*tensors, 5, average=None, ignore_index=ignored)
    accuracy = multiclass_accuracy(*tensors, 5, average=None, ignore_index=ignored)
    for key, oracle in (("f1", f1), ("accuracy", accuracy)):
        for c in range(5):
            assert by_class[key][c] == (None if c == ignored else pytest.approx(float(oracle[c]), abs=1e-6))
    assert "ece" not in got
    for key, mean in (("iou", "miou"), ("f1", "f1_macro"), ("accuracy", "accuracy_macro")):
        assert got[mean] == pytest.approx(np.mean([v for v in by_class[key] if v is not None]))


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_pieces_are_the_whole(cuts: list[int]) -> None:
    predicted, confidence, target = maps(1, images=12)
    whole, pieces = SegmentationScores(5, 255), SegmentationScores(5, 255)
    whole.update(predicted, confidence, target)
    for rows in np.split(np.arange(12), np.unique(np.cumsum(cuts).clip(0, 12))):
        pieces.update(predicted[rows], confidence[rows], target[rows])
    np.testing.assert_array_equal(pieces.confusions, whole.confusions)
    assert pieces.compute() == pytest.approx(whole.compute())
    assert pieces.per_class() == whole.per_class()


def test_each_image_has_a_confusion_matrix_of_its_own() -> None:
    predicted, confidence, target = maps()
    target[2] = 255
    together = SegmentationScores(5, 255)
    together.update(predicted, confidence, target)
    assert together.confusions.shape == (6, 5, 5)
    assert together.confusions[2].sum() == 0  # images keep their place
    alone = SegmentationScores(5, 255)
    alone.update(predicted[4:5], None, target[4:5])
    np.testing.assert_array_equal(together.confusions[4], alone.confusions[0])
    row, column = 3, 1
    assert together.confusions[4, row, column] == np.sum((target[4] == row) & (predicted[4] == column))


def test_absent_classes_and_negative_targets() -> None:
    scores = SegmentationScores(4)
    scores.update(np.array([[[0, 1, 2]]]), None, np.array([[[0, 0, -1]]]))
    assert scores.per_class() == {
        "iou": [0.5, 0.0, None, None],
        "accuracy": [0.5, None, None, None],
        "f1": [pytest.approx(2 / 3), 0.0, None, None],
    }
    assert scores.compute() == pytest.approx(
        {"miou": 0.25, "pixel_accuracy": 0.5, "accuracy_macro": 0.5, "f1_macro": 1 / 3}
    )


def test_ece_needs_confidence_of_every_batch() -> None:
    predicted, confidence, target = maps()
    scores = SegmentationScores(5, 255)
    scores.update(predicted, confidence, target)
    assert "ece" in scores.compute()
    scores.update(predicted, None, target)
    scores.update(predicted, confidence, target)
    assert "ece" not in scores.compute()


def test_misuse_is_said_and_counts_nothing() -> None:
    predicted, confidence, target = maps()
    scores = SegmentationScores(5, ignore_index=255)
    with pytest.raises(DatasetError, match="no pixel of 0 images"):
        scores.compute()
    wrong = target.copy()
    wrong[0, 0, 0] = 7
    with pytest.raises(DatasetError, match="target 7 is not a class: they are 0 to 4"):
        scores.update(predicted, confidence, wrong)
    for bad in (9, -2):
        mistaken = predicted.copy()
        mistaken[target == 2] = bad
        with pytest.raises(ValueError, match=f"prediction {bad} is not a class"):
            scores.update(mistaken, confidence, target)
    with pytest.raises(ValueError, match="from 0 to 1"):
        scores.update(predicted, confidence * 4, target)
    with pytest.raises(ValueError, match="of one shape"):
        scores.update(predicted, confidence[:1], target)
    with pytest.raises(ValueError, match="b, y, x"):
        scores.update(predicted[0], None, target[0])
    with pytest.raises(ValueError, match="integers, not float64"):
        scores.update(predicted / 2, None, target)
    assert len(scores.confusions) == 0
    scores.update(predicted, confidence, np.full_like(target, 255))
    with pytest.raises(DatasetError, match="no pixel of 6 images has a label"):
        scores.per_class()
