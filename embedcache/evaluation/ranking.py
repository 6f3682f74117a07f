"""Average precision and area under the ROC curve of many classes at once; tied scores share one threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def ranking_scores(
    scores: npt.NDArray[Any], positive: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Judge the order in which each class's scores put the samples.

    Parameters
    ----------
    scores : (n, class) array
        Any numbers that grow with belief; only their order counts. No NaN.
    positive : (n, class) bool array

    Returns
    -------
    average_precision, auroc : (class,) float64 arrays
        Not interpolated, as in scikit-learn. NaN where undefined: average precision needs a positive, AUROC a
        negative too.
    """
    ordered = np.ascontiguousarray(scores.T)
    order = np.argsort(-ordered, axis=1)
    ordered = np.take_along_axis(ordered, order, axis=1)
    hit = np.take_along_axis(np.ascontiguousarray(positive.T), order, axis=1).astype(np.int64)
    index = np.arange(ordered.shape[1])
    new = np.ones(ordered.shape, dtype=bool)  # where a run of tied scores begins
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = np.where(np.roll(new, -1, axis=1), index, index.size)
    last = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    first = np.maximum.accumulate(np.where(new, index, 0), axis=1)

    found = hit.cumsum(axis=1)
    found_with = np.take_along_axis(found, last, axis=1)
    found_before = np.take_along_axis(found - hit, first, axis=1)
    above = (last + 1 - found_with + first - found_before) / 2  # negatives above; half of those tied
    positives = hit.sum(axis=1)
    negatives = index.size - positives
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN promised
        precision = (hit * (found_with / (last + 1))).sum(axis=1) / positives
        area = 1 - (hit * above).sum(axis=1) / (positives * negatives)
    return precision, area
