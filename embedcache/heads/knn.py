"""Nearest neighbours on cosine similarity: what the features know without any training."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from embedcache.heads._spec import HeadSpec
from embedcache.train_config import TrainConfig

_BLOCK: Final = 4096
_TRAIN_BLOCK: Final = 65536


class KnnHead(nn.Module):
    """Scores by the labels of the ``k`` most similar training vectors.

    A neighbour's vote is one plus a thousandth of its similarity, so that a draw goes to the closer neighbours.
    Logits are log-odds of the share of votes.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, k: int) -> None:
        super().__init__()
        self.k = k
        self.x: torch.Tensor
        self.y: torch.Tensor
        self.register_buffer("x", nn.functional.normalize(x, dim=1))
        self.register_buffer("y", y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(b, class)`` of vectors ``(b, channel)``."""
        k = min(self.k, len(self.x))
        out = []
        for block in nn.functional.normalize(x, dim=1).split(_BLOCK):
            similarity, at = self._nearest(block, k)
            votes = 1 + 1e-3 * similarity
            share = torch.einsum("bk,bkc->bc", votes, self.y[at]) / votes.sum(dim=1, keepdim=True)
            share = share.clamp(1e-4, 1 - 1e-4)
            out.append(torch.log(share) - torch.log1p(-share))
        return torch.cat(out) if out else self.y.new_zeros((0, self.y.shape[1]))

    def _nearest(self, block: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the neighbours of ``(b, channel)`` block of training vectors by block: memory stays bounded."""
        best = block.new_empty((len(block), 0))
        where = torch.empty((len(block), 0), dtype=torch.int64, device=block.device)
        for start in range(0, len(self.x), _TRAIN_BLOCK):
            here = block @ self.x[start : start + _TRAIN_BLOCK].T
            value, at = here.topk(min(k, here.shape[1]), dim=1)
            best, where = torch.cat([best, value], dim=1), torch.cat([where, at + start], dim=1)
            if best.shape[1] > k:
                best, chosen = best.topk(k, dim=1)
                where = where.gather(1, chosen)
        return best, where


def fit_knn(x: torch.Tensor, y: torch.Tensor, num_classes: int, config: TrainConfig) -> KnnHead:
    """Keep the training vectors ``(n, channel)`` and their labels."""
    labels = y if y.ndim == 2 else nn.functional.one_hot(y, num_classes).to(torch.float32)
    return KnnHead(x, labels, config.k)


SPEC = HeadSpec(
    name="knn",
    title="nearest neighbours (cosine)",
    tasks=("classification", "multilabel"),
    fit=fit_knn,
    grid=("k", (1, 3, 5, 10, 20, 50)),
)
