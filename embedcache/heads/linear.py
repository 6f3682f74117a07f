"""One linear projection of standardised pooled vectors: the paper's classification head."""

from __future__ import annotations

import torch
from torch import nn

from embedcache.heads._spec import HeadSpec


class LinearHead(nn.Module):
    """``logits = ((x - mean) / std) @ weight.T + bias``.

    ``mean`` and ``std`` are those of the training split, channel by channel, so that members of an ensemble weigh
    alike whatever the scale of their features; they are saved with the weights.
    """

    def __init__(self, channels: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = channels**-0.5  # torch's own initialisation of nn.Linear, from our generator
        self.weight = nn.Parameter(torch.empty(num_classes, channels).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound, generator=generator))
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def fit_scale(self, x: torch.Tensor) -> None:
        """Take the scale of training vectors ``(n, channel)``; channels that never vary are only centred."""
        self.mean.copy_(x.mean(dim=0))
        std = x.std(dim=0, unbiased=False)
        self.std.copy_(torch.where(std > 1e-6 * std.max().clamp_min(1e-12), std, torch.ones_like(std)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(n, class)`` of vectors ``(n, channel)``."""
        return nn.functional.linear((x - self.mean) / self.std, self.weight, self.bias)


SPEC = HeadSpec(
    name="linear",
    title="linear projection of pooled vectors",
    tasks=("classification", "multilabel"),
    build=LinearHead,
)
