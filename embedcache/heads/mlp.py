"""Two layers on pooled vectors, for features whose classes no plane separates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from embedcache.heads._spec import HeadSpec
from embedcache.heads._stacked import StackedBatchNorm, StackedDropout, StackedLinear
from embedcache.train_config import TrainConfig


class MlpHeads(nn.Module):
    """``logits = linear(dropout(gelu(linear(x))))`` with ``config.hidden`` units."""

    def __init__(
        self, channels: int, num_classes: int, generators: Sequence[torch.Generator], config: TrainConfig
    ) -> None:
        super().__init__()
        self.norm = StackedBatchNorm(channels, len(generators)) if config.batch_norm else nn.Identity()
        self.first = StackedLinear(channels, config.hidden, generators)
        self.drop = StackedDropout(config.dropout, generators)
        self.last = StackedLinear(config.hidden, num_classes, generators)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(run, b, class)`` of vectors ``(b, channel)`` or ``(run, b, channel)``."""
        out: torch.Tensor = self.last(self.drop(nn.functional.gelu(self.first(self.norm(x)))))
        return out


SPEC = HeadSpec(
    name="mlp",
    title="one hidden layer on pooled vectors",
    tasks=("classification", "multilabel"),
    stack=MlpHeads,
    heeds=("class_weights", "label_smoothing", "batch_norm", "dropout"),
    learning_rates=(1e-5, 1e-2),
)
