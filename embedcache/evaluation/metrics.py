"""Metrics in plain numpy; scikit-learn is the oracle in the tests."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

PRIMARY: Final = {"classification": "accuracy", "multilabel": "f1_micro", "segmentation": "miou"}
"""The metric that chooses epochs and is plotted, by task (paper, Protocol 3)."""


def evaluate(task: str, logits: npt.NDArray[Any], target: npt.NDArray[Any]) -> dict[str, float]:
    """Score logits ``(n, class)`` against targets ``(n,)`` or ``(n, class)``; every score is 0 to 1."""
    if task == "multilabel":
        predicted = logits > 0  # probability above one half
        return {
            "f1_micro": f1(target, predicted, average="micro"),
            "f1_macro": f1(target, predicted, average="macro"),
            "subset_accuracy": float(np.mean((predicted == (target > 0)).all(axis=1))),
        }
    predicted = logits.argmax(axis=1)
    one_hot = np.eye(logits.shape[1], dtype=bool)
    return {
        "accuracy": float(np.mean(predicted == target)),
        "accuracy_macro": accuracy_macro(target, predicted),
        "f1_macro": f1(one_hot[target], one_hot[predicted], average="macro", present_only=True),
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
    hits = (target & predicted).sum(axis=0)
    total = target.sum(axis=0) + predicted.sum(axis=0)
    if average == "micro":
        return float(2 * hits.sum() / max(int(total.sum()), 1))
    per_class = 2 * hits / np.maximum(total, 1)
    return float(per_class[total > 0].mean()) if present_only else float(per_class.mean())
