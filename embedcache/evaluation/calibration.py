"""From logits to confidence, and how far confidence is from the share that is right."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

BINS: Final = 15
_SLACK: Final = 1e-3  # half-precision softmax may end this far outside 0..1


class CalibrationBins:
    """Sums for the expected calibration error, added to piece by piece.

    The bins are [0, 1/15), [1/15, 2/15) ... [14/15, 1], as in torchmetrics, except that a confidence of exactly 1
    belongs to the last bin; torchmetrics opens a sixteenth for it.
    """

    def __init__(self) -> None:
        self._sums = np.zeros((3, BINS))  # how many, sum of confidence, sum of correct

    def add(self, confidence: npt.NDArray[Any], correct: npt.NDArray[Any]) -> None:
        """Count decisions: ``confidence`` ``(n,)`` from 0 to 1 (NaN counts as 0), ``correct`` ``(n,)`` bool.

        Raises
        ------
        ValueError
            If a confidence is not from 0 to 1.
        """
        confidence = np.nan_to_num(confidence.astype(np.float64), nan=0.0)
        if confidence.size and (confidence.min() < -_SLACK or confidence.max() > 1 + _SLACK):
            raise ValueError(f"confidence is from 0 to 1, not {confidence.min():g} to {confidence.max():g}.")
        confidence = confidence.clip(0, 1)
        bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
        self._sums += [np.bincount(bins, w, BINS) for w in (None, confidence, correct.astype(np.float64))]

    def error(self) -> float:
        """Return the expected calibration error: |confidence - share correct| of each bin, weighted by its count."""
        count, confidence, correct = self._sums
        return float(np.abs(confidence - correct).sum() / count.sum())


def calibration_error(confidence: npt.NDArray[Any], correct: npt.NDArray[Any]) -> float:
    """Return the expected calibration error of ``confidence`` ``(n,)`` and ``correct`` ``(n,)``."""
    bins = CalibrationBins()
    bins.add(confidence, correct)
    return bins.error()


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return probabilities of any shape, without overflow."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    result: npt.NDArray[np.float64] = np.where(logits >= 0, 1, small) / (1 + small)
    return result


def top_confidence(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the largest softmax probability ``(n,)`` of logits ``(n, class)``."""
    wide = logits.astype(np.float64)
    result: npt.NDArray[np.float64] = 1 / np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)
    return result


def log_odds(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return ``log(p / (1 - p))`` of softmax probabilities: the same order, but it does not saturate.

    A margin of 37 is a probability of 1 even in float64, so confident samples would tie. Rounded to nine decimals, so
    that rows that differ only by the rounding of a sum do tie.

    Parameters
    ----------
    logits : (n, class) array

    Returns
    -------
    (n, class) float64 array
    """
    if logits.shape[1] == 1:
        return np.zeros(logits.shape)
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    top = wide.argmax(axis=1)[:, None]
    rest = wide.copy()
    np.put_along_axis(rest, top, -np.inf, axis=1)
    second = rest.max(axis=1, keepdims=True)
    log_rest = second + np.log(np.exp(rest - second).sum(axis=1, keepdims=True))
    log_sum = np.log(np.exp(wide).sum(axis=1, keepdims=True))
    others = np.minimum(np.exp(wide - log_sum), 0.5)  # all but the top have at most one half
    result = wide - log_sum - np.log1p(-others)
    np.put_along_axis(result, top, -log_rest, axis=1)
    return np.asarray(result.round(9))
