"""Metrics in plain numpy; scikit-learn and torchmetrics are the oracles in the tests."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.errors import DatasetError
from embedcache.evaluation.calibration import calibration_error, log_odds, sigmoid, top_confidence
from embedcache.evaluation.ranking import ranking_scores

PRIMARY: Final = {"classification": "accuracy", "multilabel": "f1_micro", "segmentation": "miou"}
"""The metric that chooses epochs and is plotted, by task (paper, Protocol 3)."""

_LOWEST: Final = 1e30


def evaluate(task: str, logits: npt.NDArray[Any], target: npt.NDArray[Any]) -> dict[str, float]:
    """Score logits against targets; every score is 0 to 1, and a score that is undefined is left out.

    ``classification``: ``accuracy``; ``accuracy_macro``; ``f1_macro``, over classes there or predicted;
    ``auroc_macro``, one class against the rest by softmax, over classes with positives and negatives; ``map_macro``,
    mean average precision over classes with positives; ``ece``, of the top class. F1 (micro) is accuracy: left out.

    ``multilabel``: ``f1_micro``; ``f1_macro``, over all classes; ``subset_accuracy``; ``map_micro``, of all decisions
    as one ranking; ``map_macro``; ``auroc_macro``; ``ece``, of the probability of "there" over all decisions.

    Parameters
    ----------
    task : str
        ``classification`` or ``multilabel``; segmentation is scored by ``SegmentationScores``.
    logits : (n, class) array
        A NaN, from a head that diverged, counts as the lowest.
    target : (n,) int array or (n, class) array
        Classes, or where each class is there (above 0).

    Raises
    ------
    DatasetError
        If a target is not one of the classes, or there is no sample.
    """
    logits, target = check_inputs(task, logits, target)
    scores = _decisions(task, logits, target)
    if task == "multilabel":
        scores["ece"] = calibration_error(sigmoid(logits).ravel(), target.ravel())
        precision, area = ranking_scores(logits, target)
        scores |= _mean("map_micro", ranking_scores(logits.reshape(-1, 1), target.reshape(-1, 1))[0])
    else:
        scores["ece"] = calibration_error(top_confidence(logits), logits.argmax(axis=1) == target)
        precision, area = ranking_scores(log_odds(logits), _one_hot(target, logits.shape[1]))
    return scores | _mean("map_macro", precision) | _mean("auroc_macro", area)


def primary_scores(task: str, logits: npt.NDArray[Any], target: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the primary metric of many runs at once: ``evaluate(...)[PRIMARY[task]]`` of each.

    Parameters
    ----------
    task : str
    logits : (runs, n, class) array
    target : (n,) int array or (n, class) array

    Returns
    -------
    (runs,) float64 array

    Raises
    ------
    DatasetError
        If there is no sample.
    """
    _check_task(task)
    if not target.size:
        raise DatasetError("there is no sample to score.")
    logits = _without_nan(logits)
    if task == "multilabel":
        predicted, there = logits > 0, target > 0
        hits = np.count_nonzero(predicted & there, axis=(1, 2))
        total = np.count_nonzero(predicted, axis=(1, 2)) + np.count_nonzero(there)
        return np.asarray(2 * hits / np.maximum(total, 1))
    return np.asarray(np.count_nonzero(logits.argmax(axis=2) == target, axis=1) / logits.shape[1])


def per_class(
    task: str, logits: npt.NDArray[Any], target: npt.NDArray[Any], num_classes: int
) -> dict[str, list[float | None]]:
    """Score every class by itself; None where a score is undefined because the class is absent.

    ``accuracy`` is the share of the class's samples that were found; in multilabel, the share of decisions on the
    class that were right, None where it is never there. ``f1`` is None only where the class is neither there nor
    predicted. ``average_precision`` and ``auroc`` are as in :func:`evaluate`.

    Parameters
    ----------
    task : str
    logits : (n, num_classes) array
    target : (n,) int array or (n, num_classes) array
    num_classes : int

    Returns
    -------
    dict of str to lists of length num_classes
    """
    logits, target = check_inputs(task, logits, target)
    if logits.shape[1] != num_classes:
        raise ValueError(f"logits are of {logits.shape[1]} classes, not {num_classes}.")
    if task == "multilabel":
        there, predicted, order = target, logits > 0, logits
        right = np.mean(there == predicted, axis=0)
    else:
        there, order = _one_hot(target, num_classes), log_odds(logits)
        predicted = _one_hot(logits.argmax(axis=1), num_classes)
        right = (there & predicted).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    precision, area = ranking_scores(order, there)
    return {
        "accuracy": or_none(np.where(there.any(axis=0), right, np.nan)),
        "f1": or_none(_f1_by_class(there, predicted)),
        "average_precision": or_none(precision),
        "auroc": or_none(area),
    }


def accuracy_macro(target: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
    """Mean over the classes present in ``target`` of the share of each that was found (balanced accuracy)."""
    return float(np.mean([np.mean(predicted[target == c] == c) for c in np.unique(target)]))


def f1(target: npt.NDArray[Any], predicted: npt.NDArray[Any], *, average: str, present_only: bool = False) -> float:
    """F1 of binary indicators ``(n, class)``.

    ``micro`` pools all decisions; ``macro`` is the mean over classes, where a class that is neither there nor
    predicted counts as 0 (as scikit-learn does), or is left out with ``present_only``.
    """
    target, predicted = target.astype(bool), predicted.astype(bool)
    if average == "micro":
        total = int(target.sum()) + int(predicted.sum())
        return float(2 * (target & predicted).sum() / max(total, 1))
    by_class = _f1_by_class(target, predicted)
    return float(np.nanmean(by_class)) if present_only else float(np.nan_to_num(by_class).mean())


def or_none(values: npt.NDArray[np.float64]) -> list[float | None]:
    """Turn ``(class,)`` values into a list for JSON, with None for NaN."""
    return [None if np.isnan(v) else float(v) for v in values]


def check_inputs(
    task: str, logits: npt.NDArray[Any], target: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return logits without NaN or infinity, and targets as classes or bools; raise as :func:`evaluate` says."""
    _check_task(task)
    wanted = logits.shape if task == "multilabel" else logits.shape[:1]
    if logits.ndim != 2 or target.shape != wanted:
        raise ValueError(f"logits are (n, class), not {logits.shape}; targets of {task} do not fit: {target.shape}.")
    if not target.size:
        raise DatasetError("there is no sample to score.")
    if task == "multilabel":
        return _without_nan(logits), target > 0
    low, high = target.min(), target.max()
    if low < 0 or high >= logits.shape[1]:
        raise DatasetError(f"target {low if low < 0 else high} is not a class: they are 0 to {logits.shape[1] - 1}.")
    return _without_nan(logits), target


def _decisions(task: str, logits: npt.NDArray[Any], target: npt.NDArray[Any]) -> dict[str, float]:
    if task == "multilabel":
        predicted = logits > 0  # probability above one half
        return {
            "f1_micro": f1(target, predicted, average="micro"),
            "f1_macro": f1(target, predicted, average="macro"),
            "subset_accuracy": float(np.mean((predicted == target).all(axis=1))),
        }
    predicted, classes = logits.argmax(axis=1), logits.shape[1]
    one_hot = _one_hot(target, classes), _one_hot(predicted, classes)
    return {
        "accuracy": float(np.mean(predicted == target)),
        "accuracy_macro": accuracy_macro(target, predicted),
        "f1_macro": f1(*one_hot, average="macro", present_only=True),
    }


def _f1_by_class(there: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    total = there.sum(axis=0) + predicted.sum(axis=0)
    return np.where(total > 0, 2 * (there & predicted).sum(axis=0) / np.maximum(total, 1), np.nan)


def _mean(name: str, values: npt.NDArray[np.float64]) -> dict[str, float]:
    defined = values[~np.isnan(values)]
    return {name: float(defined.mean())} if defined.size else {}


def _one_hot(classes: npt.NDArray[Any], count: int) -> npt.NDArray[np.bool_]:
    return np.asarray(classes[:, None] == np.arange(count))


def _check_task(task: str) -> None:
    if task == "segmentation":
        raise ValueError("segmentation is scored by SegmentationScores, not from all logits at once.")
    if task not in PRIMARY:
        raise ValueError(f"task is one of {', '.join(PRIMARY)}, not {task!r}.")


def _without_nan(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if np.isfinite(logits).all():
        return logits
    return np.nan_to_num(logits.astype(np.float64), nan=-_LOWEST, posinf=_LOWEST, neginf=-_LOWEST)
