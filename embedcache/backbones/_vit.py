"""What the plain vision transformers share: four evenly spaced blocks as maps on one grid, cls and mean vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedcache.backbones._spec import Features

if TYPE_CHECKING:
    import torch


def four_blocks(depth: int) -> tuple[int, ...]:
    """Return the last block of each quarter: 5, 11, 17, 23 of 24 (TerraTorch's choice for Prithvi)."""
    return tuple(depth * (i + 1) // 4 - 1 for i in range(4))


def features_of_tokens(blocks: Sequence[torch.Tensor], input_size: int, patch: int) -> Features:
    """Turn block outputs ``(b, 1 + y*x, channels)``, cls token first, into maps and pooled vectors of the last."""
    grid = input_size // patch
    last = blocks[-1].float()
    return Features(
        pooled={"cls": last[:, 0], "mean": last[:, 1:].mean(dim=1)},
        levels=[t[:, 1:].transpose(1, 2).unflatten(2, (grid, grid)) for t in blocks],
    )
