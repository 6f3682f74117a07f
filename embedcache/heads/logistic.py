"""Logistic regression by full-batch L-BFGS: no learning rate, no seed, the optimum of a convex problem."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedcache.heads._spec import HeadSpec
from embedcache.train_config import TrainConfig
from embedcache.vector_losses import balanced_weights

_BLOCK: Final = 65536
_ITERATIONS: Final = 1000


class LogisticHead(nn.Module):
    """``logits = x @ weight.T + bias`` with the weights that a fit found."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(b, class)`` of vectors ``(b, channel)``."""
        return nn.functional.linear(x, self.weight, self.bias)


def fit_logistic(x: torch.Tensor, y: torch.Tensor, num_classes: int, config: TrainConfig) -> LogisticHead:
    """Minimise ``C * sum(loss) + |weight|^2 / 2``, scikit-learn's objective; the bias is free.

    With ``class_weights`` each sample's loss is multiplied by its class's weight (of :func:`balanced_weights`).
    Class labels have the softmax loss over all classes (also where there are two), several labels one binary loss a
    class. SciPy's L-BFGS-B steers in float64, losses and gradients are float32 sums over blocks, on ``x``'s device.

    Parameters
    ----------
    x
        ``(n, channel)`` float32, standardised.
    y
        ``(n,)`` int64 or ``(n, class)`` float32 of 0/1.
    """
    from scipy.optimize import minimize

    n, channels = x.shape
    weights = balanced_weights(y, num_classes) if config.class_weights == "balanced" else None
    total = 1.0 / (config.c * n)  # the objective divided by C * n, so that its size does not depend on either

    def objective(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        whole = torch.from_numpy(flat.reshape(num_classes, channels + 1)).to(x.device, torch.float32)
        weight, bias = whole[:, :-1].contiguous(), whole[:, -1]
        gradient = torch.zeros_like(whole)
        loss = 0.0
        for start in range(0, n, _BLOCK):
            block, target = x[start : start + _BLOCK], y[start : start + _BLOCK]
            logits = nn.functional.linear(block, weight, bias)
            part, slope = _loss_and_slope(logits, target, weights)
            loss += part
            gradient[:, :-1].addmm_(slope.T, block)
            gradient[:, -1] += slope.sum(dim=0)
        out = gradient.cpu().numpy().astype(np.float64) / n
        wide = flat.reshape(num_classes, channels + 1)
        out[:, :-1] += total * wide[:, :-1]
        return loss / n + 0.5 * total * float((wide[:, :-1] ** 2).sum()), out.ravel()

    found: Any = minimize(
        objective,
        np.zeros(num_classes * (channels + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _ITERATIONS, "gtol": 1e-6, "ftol": 1e-9, "maxcor": 20},
    )
    best = torch.from_numpy(found.x.reshape(num_classes, channels + 1).astype(np.float32)).to(x.device)
    return LogisticHead(best[:, :-1].contiguous(), best[:, -1].contiguous())


def _loss_and_slope(
    logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None
) -> tuple[float, torch.Tensor]:
    """Return the summed loss and its derivative by the logits."""
    if target.ndim == 2:
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
        slope = torch.sigmoid(logits) - target
        if weights is not None:
            slope = torch.where(target > 0, slope * weights, slope)
        return float(loss.sum(dtype=torch.float64)), slope
    log_p = torch.log_softmax(logits, dim=1)
    picked = log_p.gather(1, target[:, None])
    slope = log_p.exp()
    slope.scatter_add_(1, target[:, None], torch.full_like(picked, -1.0))
    if weights is not None:
        mine = weights[target][:, None]
        picked, slope = picked * mine, slope * mine
    return -float(picked.sum(dtype=torch.float64)), slope


SPEC = HeadSpec(
    name="logistic",
    title="logistic regression (L-BFGS)",
    tasks=("classification", "multilabel"),
    fit=fit_logistic,
    heeds=("class_weights",),
    grid=("c", tuple(float(c) for c in np.logspace(-5, 4, 10).round(10))),
)
