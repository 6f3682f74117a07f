"""Bootstrap intervals against a loop with the same draws, and against the normal approximation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from embedcache.errors import DatasetError, SettingError
from embedcache.evaluation import bootstrap
from embedcache.evaluation.bootstrap import interval, interval_segmentation, resampled_sums
from embedcache.evaluation.metrics import PRIMARY, evaluate
from embedcache.evaluation.segmentation_metrics import SegmentationScores


def data(task: str, n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, (n, 4)) if task == "multilabel" else rng.integers(0, 4, n)
    one_hot = target if task == "multilabel" else np.eye(4)[target]
    return rng.normal(size=(n, 4)) + one_hot, target


@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_interval_is_that_of_a_loop_with_the_same_draws(task: str, n: int) -> None:
    logits, target = data(task, n)
    draws = np.random.default_rng(3).integers(0, n, (200, n))
    scores = [evaluate(task, logits[d], target[d])[PRIMARY[task]] for d in draws]
    expected = np.quantile(scores, [0.05, 0.95])
    assert interval(task, logits, target, resamples=200, level=0.9, seed=3) == pytest.approx(tuple(expected))


def test_interval_of_label_maps_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, (10, 6, 6))
    target[0] = target[0].clip(0, 1)
    predicted = np.where(rng.random(target.shape) < 0.7, target, rng.integers(0, 4, target.shape))
    target[[3, 7]] = 255  # images without a label are never drawn
    scores = SegmentationScores(5, 255)
    scores.update(predicted, None, target)
    labelled = np.delete(np.arange(10), [3, 7])
    looped = [
        jaccard_score(target[labelled][d].ravel(), predicted[labelled][d].ravel(), average="macro", zero_division=0)
        for d in np.random.default_rng(1).integers(0, 8, (100, 8))
    ]
    got = interval_segmentation(scores.confusions, resamples=100, seed=1)
    assert got == pytest.approx(tuple(np.quantile(looped, [0.025, 0.975])))


def test_an_ignored_class_is_ignored_here_too() -> None:
    rng = np.random.default_rng(0)
    target, predicted = rng.integers(0, 3, (1, 6, 6)), rng.integers(0, 3, (1, 6, 6))
    scores = SegmentationScores(3, ignore_index=0)
    scores.update(predicted, None, target)
    miou = scores.compute()["miou"]
    assert interval_segmentation(scores.confusions, ignore_index=0) == (miou, miou)  # one image: no spread to see


def test_accuracy_has_the_width_of_the_normal_approximation() -> None:
    n, right = 2000, 1500
    target = np.zeros(n, int)
    logits = np.eye(2)[(np.arange(n) >= right).astype(int)]
    low, high = interval("classification", logits, target, resamples=4000)
    half = 1.96 * np.sqrt(0.75 * 0.25 / n)
    assert (low, high) == (pytest.approx(0.75 - half, abs=0.1 * half), pytest.approx(0.75 + half, abs=0.1 * half))


def test_level_nests_and_the_seed_decides() -> None:
    logits, target = data("classification")
    wide, narrow = (interval("classification", logits, target, level=level) for level in (0.95, 0.5))
    score = evaluate("classification", logits, target)["accuracy"]
    assert wide[0] < narrow[0] <= score <= narrow[1] < wide[1]
    assert interval("classification", logits, target) == wide
    values = np.random.default_rng(0).random((40, 1))
    assert (resampled_sums(values, resamples=9, seed=0) != resampled_sums(values, resamples=9, seed=1)).any()


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 9, (37, 3))
    at_once = resampled_sums(values, resamples=50, seed=2)
    for draws in (1, 100, 37 * 7):
        monkeypatch.setattr(bootstrap, "_AT_ONCE", draws)
        np.testing.assert_array_equal(resampled_sums(values, resamples=50, seed=2), at_once)


def test_nothing_there_and_nothing_predicted_is_zero() -> None:
    assert interval("multilabel", -np.ones((3, 2)), np.zeros((3, 2))) == (0.0, 0.0)


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"level": 0.0}, {"level": 95}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        interval("classification", *data("classification"), **wrong)


def test_no_sample_is_said() -> None:
    with pytest.raises(DatasetError, match="no sample"):
        interval("classification", np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(DatasetError, match="no pixel of 2 images"):
        interval_segmentation(np.zeros((2, 3, 3), int))
    with pytest.raises(DatasetError, match="no sample"):
        resampled_sums(np.zeros((0, 2)), resamples=1, seed=0)
