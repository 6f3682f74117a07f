"""Scores of label maps, gathered batch by batch: no logit is kept, only counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import DatasetError
from embedcache.evaluation.calibration import CalibrationBins
from embedcache.evaluation.metrics import or_none


class SegmentationScores:
    """Gather predictions of images and score them.

    A pixel counts where its target is neither ``ignore_index`` nor negative. An ``ignore_index`` that is one of the
    classes gets no score of its own, but predicting it is wrong.

    Parameters
    ----------
    num_classes : int
    ignore_index : int, optional
        Target of pixels without a label.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        self._classes = num_classes
        self._ignore = ignore_index
        self._confusions: list[npt.NDArray[np.int64]] = []
        self._bins: CalibrationBins | None = CalibrationBins()

    @property
    def confusions(self) -> npt.NDArray[np.int64]:
        """Pixels of each image by target and prediction, ``(images, class, class)``, in the order of arrival."""
        if not self._confusions:
            return np.zeros((0, self._classes, self._classes), dtype=np.int64)
        return np.concatenate(self._confusions)

    def update(
        self, predicted: npt.NDArray[Any], confidence: npt.NDArray[Any] | None, target: npt.NDArray[Any]
    ) -> None:
        """Count a batch; nothing is counted if it raises.

        Parameters
        ----------
        predicted : (b, y, x) int array
        confidence : (b, y, x) float array or None
            Probability of the predicted class. Without it in any batch there is no ``ece``.
        target : (b, y, x) int array

        Raises
        ------
        DatasetError
            If a target is not one of the classes.
        ValueError
            If a prediction is not one of the classes, a confidence not from 0 to 1, or the shapes differ.
        """
        shapes = [predicted.shape, target.shape] + ([] if confidence is None else [confidence.shape])
        if target.ndim != 3 or len(set(shapes)) > 1:
            raise ValueError(f"label maps are (b, y, x) and of one shape, not {', '.join(map(str, shapes))}.")
        if predicted.dtype.kind not in "iu" or target.dtype.kind not in "iu":
            raise ValueError(f"label maps are integers, not {predicted.dtype} and {target.dtype}.")
        counted = target >= 0
        if self._ignore is not None:
            counted &= target != self._ignore
        image = np.broadcast_to(np.arange(len(target))[:, None, None], target.shape)[counted]
        true, found = target[counted].astype(np.int64), predicted[counted].astype(np.int64)
        last = self._classes - 1
        if true.max(initial=0) > last:
            raise DatasetError(f"target {true.max()} is not a class: they are 0 to {last} (ignored: {self._ignore}).")
        if found.max(initial=0) > last or found.min(initial=0) < 0:
            wrong = found.min() if found.min() < 0 else found.max()
            raise ValueError(f"prediction {wrong} is not a class: they are 0 to {last}.")
        if confidence is None:
            self._bins = None
        elif self._bins is not None:
            self._bins.add(confidence[counted], true == found)
        shape = (len(target), self._classes, self._classes)
        cells = (image * self._classes + true) * self._classes + found
        self._confusions.append(np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape))

    def compute(self) -> dict[str, float]:
        """Score all images so far as one; every score is 0 to 1.

        ``miou`` and ``f1_macro`` are means over the classes that are there or predicted; ``accuracy_macro`` over those
        that are there; ``ece`` is the expected calibration error over pixels.

        Raises
        ------
        DatasetError
            If no pixel counted.
        """
        confusion = self._total()
        iou, accuracy, f1 = class_scores(confusion, self._ignore)
        scores = {
            "miou": float(np.nanmean(iou)),
            "pixel_accuracy": float(np.trace(confusion) / confusion.sum()),
            "accuracy_macro": float(np.nanmean(accuracy)),
            "f1_macro": float(np.nanmean(f1)),
        }
        return scores if self._bins is None else {**scores, "ece": self._bins.error()}

    def per_class(self) -> dict[str, list[float | None]]:
        """Return ``iou``, ``accuracy`` and ``f1`` of every class; None where :meth:`compute` leaves the class out.

        Raises
        ------
        DatasetError
            If no pixel counted.
        """
        iou, accuracy, f1 = class_scores(self._total(), self._ignore)
        return {"iou": or_none(iou), "accuracy": or_none(accuracy), "f1": or_none(f1)}

    def _total(self) -> npt.NDArray[np.int64]:
        confusion: npt.NDArray[np.int64] = self.confusions.sum(axis=0)
        if not confusion.any():
            raise DatasetError(
                f"no pixel of {len(self.confusions)} images has a label: all are negative or {self._ignore}."
            )
        return confusion


def class_scores(
    confusion: npt.NDArray[Any], ignore_index: int | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return IoU, accuracy and F1 of every class.

    Parameters
    ----------
    confusion : (..., class, class) array
        Pixels by target and prediction.
    ignore_index : int, optional
        A class that gets no score.

    Returns
    -------
    iou, accuracy, f1 : (..., class) float64 arrays
        NaN where the class is absent: from targets and predictions, or for accuracy from targets.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    there, found = confusion.sum(axis=-1), confusion.sum(axis=-2)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN promised
        scores = hits / (there + found - hits), hits / there, 2 * hits / (there + found)
    if ignore_index is not None and 0 <= ignore_index < confusion.shape[-1]:
        for score in scores:
            score[..., ignore_index] = np.nan
    return scores
