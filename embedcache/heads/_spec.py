"""What a head is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """Static facts of one head."""

    name: str
    title: str
    tasks: tuple[str, ...]
    """Tasks it can learn: ``classification``, ``multilabel``, ``segmentation``."""
    build: Callable[[int, int, torch.Generator], torch.nn.Module]
    """``build(channels, num_classes, generator)``: an untrained head; all chance comes from the generator."""
