"""One linear projection of pooled vectors: the paper's classification head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from embedcache.heads._spec import HeadSpec
from embedcache.heads._stacked import StackedBatchNorm, StackedLinear
from embedcache.train_config import TrainConfig


class LinearHeads(nn.Module):
    """``logits = x @ weight.T + bias``, after an optional batch normalisation (as linear probes of MAE have it)."""

    def __init__(
        self, channels: int, num_classes: int, generators: Sequence[torch.Generator], config: TrainConfig
    ) -> None:
        super().__init__()
        self.norm = StackedBatchNorm(channels, len(generators)) if config.batch_norm else nn.Identity()
        self.linear = StackedLinear(channels, num_classes, generators)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(run, b, class)`` of vectors ``(b, channel)`` or ``(run, b, channel)``."""
        out: torch.Tensor = self.linear(self.norm(x))
        return out

    def descend(self, x: torch.Tensor, losses: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return each run's loss ``(run,)`` and set the gradients: nothing before the layer learns, so they are known.

        Parameters
        ----------
        x
            ``(b, channel)`` or ``(run, b, channel)``.
        losses
            Returns ``(run,)`` of logits.
        """
        with torch.no_grad():
            seen = self.norm(x)
            logits = self.linear(seen)
        with torch.autocast(x.device.type, enabled=False):
            logits = logits.float().requires_grad_()
            out = losses(logits)
            (slope,) = torch.autograd.grad(out.sum(), logits)
            self.linear.set_gradients(seen, slope)
        return out.detach()


SPEC = HeadSpec(
    name="linear",
    title="linear projection of pooled vectors",
    tasks=("classification", "multilabel"),
    stack=LinearHeads,
    heeds=("class_weights", "label_smoothing", "batch_norm"),
)
