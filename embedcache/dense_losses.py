"""Losses of logits per pixel against masks, with pixels that do not count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

if TYPE_CHECKING:
    from embedcache.train_config import Loss

GAMMA = 2.0
_LEFT_OUT = -100  # torch's own mark for pixels that cross_entropy skips


def dense_loss(
    logits: Tensor,
    target: Tensor,
    *,
    kind: Loss,
    ignore_index: int | None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of a batch as a scalar, in float32 at least.

    Pixels that are negative or ``ignore_index`` are left out, of sums and of counts. A batch without any other pixel
    has loss 0 and gradient 0. Sums and means run over the whole batch, not image by image.

    * ``cross-entropy``: as :func:`torch.nn.functional.cross_entropy`, weights and label smoothing included.
    * ``dice``: 1 - 2 sum(p y) / (sum(p) + sum(y)) per class, with p the softmax and y the mask of the class; averaged
      over the classes that are present in the batch's masks (soft Dice as in Sudre et al. 2017, and as
      segmentation_models_pytorch's ``DiceLoss`` without smoothing, which divides by all classes instead).
    * ``focal``: -(1 - p)^2 log p of the right class (Lin et al. 2017, eq. 4 with gamma = 2, softmax for sigmoid).
    * ``cross-entropy+dice``: the plain sum of both, as in nnU-Net (Isensee et al. 2021).

    ``weights`` always make a weighted mean: of pixels by their class, or of classes for dice. Label smoothing concerns
    cross-entropy only.

    Parameters
    ----------
    logits
        ``(b, class, y, x)``.
    target
        ``(b, y, x)`` int64 class indices, on the logits' grid.
    ignore_index
        A further value to leave out; it may lie outside the classes.
    weights
        ``(class,)``, or None for equal ones.
    """
    if (logits.shape[0], *logits.shape[2:]) != tuple(target.shape):
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not lie on one grid")
    if logits.dtype in {torch.float16, torch.bfloat16}:
        logits = logits.float()
    valid = target >= 0
    if ignore_index is not None:
        valid &= target != ignore_index
    target = target.where(valid, _LEFT_OUT)
    weights = None if weights is None else weights.to(logits)
    match kind:
        case "cross-entropy":
            return _cross_entropy(logits, target, weights, label_smoothing)
        case "dice":
            return _dice(logits, target, weights)
        case "focal":
            return _focal(logits, target, weights)
        case "cross-entropy+dice":
            return _cross_entropy(logits, target, weights, label_smoothing) + _dice(logits, target, weights)


def _cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None, label_smoothing: float) -> Tensor:
    # summed from single pixels: torch's own mean is NaN where nothing counts, and its sum not repeatable on a GPU
    losses = F.cross_entropy(
        logits, target, weights, ignore_index=_LEFT_OUT, reduction="none", label_smoothing=label_smoothing
    )
    return losses.sum() / _total_weight(target, weights, logits.dtype)


def _focal(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    nll = F.cross_entropy(logits, target, ignore_index=_LEFT_OUT, reduction="none")
    losses = (-torch.expm1(-nll)) ** GAMMA * nll  # 1 - p without cancellation where p is near 1
    if weights is not None:
        losses = losses * weights[target.clamp_min(0)]
    return losses.sum() / _total_weight(target, weights, logits.dtype)


def _dice(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    p = logits.softmax(dim=1) * (target >= 0)[:, None]
    y = target[:, None] == classes
    everywhere = (0, 2, 3)
    count = y.sum(everywhere)
    present = (count > 0).to(p.dtype)
    overlap = 2 * (p * y).sum(everywhere) / (p.sum(everywhere) + count).clamp_min(1)  # absent classes may have 0
    share = present if weights is None else present * weights
    return ((1 - overlap) * share).sum() / _nonzero(share.sum())


def _total_weight(target: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    valid = target >= 0
    if weights is None:
        return _nonzero(valid.sum().to(dtype))
    return _nonzero((weights[target.clamp_min(0)] * valid).sum())


def _nonzero(x: Tensor) -> Tensor:
    """Return 1 for 0, so that 0 / 0 is 0."""
    return x.where(x != 0, torch.ones_like(x))
