"""Losses of class labels for stacks of runs: one number a run, so that no run's gradient holds another's."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812


def balanced_weights(y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Weight of each class, ``(class,)`` float32.

    For ``(n,)`` labels n / (classes present * count), as scikit-learn's ``balanced``; classes that are absent weigh 0.
    For ``(n, class)`` of 0/1 the weight of a positive: negatives / positives of that class, at most 100.
    """
    if y.ndim == 2:
        positive = y.sum(dim=0)
        return ((len(y) - positive) / positive.clamp_min(1)).clamp(1e-2, 100).to(torch.float32)
    count = torch.bincount(y, minlength=num_classes).to(torch.float32)
    present = count > 0
    return torch.where(present, len(y) / (present.sum() * count.clamp_min(1)), torch.zeros_like(count))


def run_losses(
    logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    """Mean loss of each run, ``(run,)``.

    Parameters
    ----------
    logits
        ``(run, b, class)``.
    target
        ``(b,)`` or ``(run, b)`` class indices: cross-entropy. ``(b, class)`` or ``(run, b, class)`` of 0/1: binary
        cross-entropy, mean over samples and classes. Told apart by dtype.
    weights
        Of :func:`balanced_weights`; None weighs all alike.
    smoothing
        Label smoothing, 0 to 1 (Szegedy et al. 2016).
    """
    runs, batch, classes = logits.shape
    logits = logits.float()
    if target.is_floating_point():
        wanted = target.expand(runs, batch, classes)
        if smoothing:
            wanted = wanted * (1 - smoothing) + smoothing / 2
        loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights, reduction="none")
        return loss.mean(dim=(1, 2))
    flat = target.expand(runs, batch).reshape(-1)
    loss = F.cross_entropy(
        logits.reshape(-1, classes), flat, weight=weights, label_smoothing=smoothing, reduction="none"
    ).view(runs, batch)
    if weights is None:
        return loss.mean(dim=1)
    return loss.sum(dim=1) / weights[flat].view(runs, batch).sum(dim=1).clamp_min(1e-12)
