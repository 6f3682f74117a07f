"""How far a score could move with other test samples: percentile bootstrap of the primary metric.

A resample is only how often each sample was drawn; the metrics are ratios of sums over samples, so that all resamples
are one matrix product.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.errors import DatasetError, SettingError
from embedcache.evaluation.metrics import check_inputs
from embedcache.evaluation.segmentation_metrics import class_scores

_AT_ONCE: Final = 1 << 21  # draws held in memory


def interval(
    task: str,
    logits: npt.NDArray[Any],
    target: npt.NDArray[Any],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of the primary metric over test samples drawn again with replacement.

    Parameters
    ----------
    task : str
        ``classification`` or ``multilabel``.
    logits : (n, class) array
    target : (n,) int array or (n, class) array
    resamples : int
    level : float
        Share of resamples inside.
    seed : int

    Returns
    -------
    low, high : float

    Raises
    ------
    DatasetError
        If there is no sample.
    SettingError
        If ``resamples`` or ``level`` make no sense.
    """
    logits, target = check_inputs(task, logits, target)
    if task == "multilabel":
        predicted, there = logits > 0, target
        per_sample = np.stack([2 * (predicted & there).sum(axis=1), predicted.sum(axis=1) + there.sum(axis=1)], axis=1)
    else:
        correct = logits.argmax(axis=1) == target
        per_sample = np.stack([correct, np.ones_like(correct)], axis=1)
    totals = resampled_sums(per_sample, resamples=resamples, seed=seed)
    return _percentiles(totals[:, 0] / np.maximum(totals[:, 1], 1), level)


def interval_segmentation(
    confusions: npt.NDArray[Any],
    *,
    ignore_index: int | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of the mean IoU over test images drawn again with replacement.

    Images, not pixels, are drawn: pixels of one image are not independent. Images without a labelled pixel are not.

    Parameters
    ----------
    confusions : (images, class, class) int array
        ``SegmentationScores.confusions``.
    ignore_index : int, optional
        As for ``SegmentationScores``.
    resamples : int
    level : float
        Share of resamples inside.
    seed : int

    Returns
    -------
    low, high : float

    Raises
    ------
    DatasetError
        If there is no labelled pixel.
    SettingError
        If ``resamples`` or ``level`` make no sense.
    """
    labelled = confusions[confusions.any(axis=(1, 2))]
    if not len(labelled):
        raise DatasetError(f"no pixel of {len(confusions)} images has a label.")
    sums = resampled_sums(labelled.reshape(len(labelled), -1), resamples=resamples, seed=seed)
    iou, _, _ = class_scores(sums.reshape(-1, *labelled.shape[1:]), ignore_index)
    return _percentiles(np.nanmean(iou, axis=1), level)


def resampled_sums(per_sample: npt.NDArray[Any], *, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Sum over samples drawn again with replacement.

    Parameters
    ----------
    per_sample : (n, k) array
    resamples : int
    seed : int
        Resample i is row i of ``numpy.random.default_rng(seed).integers(0, n, (resamples, n))``.

    Returns
    -------
    (resamples, k) float64 array
    """
    if resamples < 1:
        raise SettingError(f"resamples is at least 1, not {resamples}.")
    n = len(per_sample)
    if not n:
        raise DatasetError("there is no sample to draw.")
    rng = np.random.default_rng(seed)
    values = per_sample.astype(np.float64)
    rows = max(_AT_ONCE // n, 1)
    parts = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, n, (min(rows, resamples - start), n))
        drawn += n * np.arange(len(drawn))[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        parts.append(times.astype(np.float64) @ values)
    return np.concatenate(parts)


def _percentiles(scores: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise SettingError(f"level is between 0 and 1, not {level}.")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
