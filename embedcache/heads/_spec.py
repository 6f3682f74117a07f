"""What a head is: three kinds, by what they read and how they learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from embedcache.train_config import TrainConfig
    from embedcache_stores.schema import LevelSpec


NOT_FOR_ALL = ("loss", "class_weights", "label_smoothing", "batch_norm", "dropout")
"""Settings that some heads have and others do not."""


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """Static facts of one head; exactly one of the three ways to make it is given."""

    name: str
    title: str
    tasks: tuple[str, ...]
    """Tasks it can learn: ``classification``, ``multilabel``, ``segmentation``."""
    stack: Callable[[int, int, Sequence[torch.Generator], TrainConfig], torch.nn.Module] | None = None
    """``stack(channels, num_classes, generators, config)``: as many untrained heads on pooled vectors as there are
    generators, in one module, every parameter and buffer of which has the run as its first axis; all chance comes
    from the generators. ``forward(x)`` takes ``(b, channel)`` for all runs, or ``(run, b, channel)``, and returns
    logits ``(run, b, class)``."""
    fit: Callable[[torch.Tensor, torch.Tensor, int, TrainConfig], torch.nn.Module] | None = None
    """``fit(x, y, num_classes, config)``: a head on standardised vectors that is computed, without chance."""
    decode: Callable[[Sequence[Sequence[LevelSpec]], int, torch.Generator, TrainConfig], torch.nn.Module] | None = None
    """``decode(members, num_classes, generator, config)``: one untrained head on feature maps. ``members`` lists each
    store's levels, finest first. ``forward(maps)`` takes maps in the same nesting, each ``(b, channel, y, x)``, and
    returns logits ``(b, class, y, x)`` on whatever grid it has; training resizes them to the masks."""
    heeds: tuple[str, ...] = ()
    """Which of :data:`NOT_FOR_ALL` change what it learns."""
    learning_rates: tuple[float, float] = (1e-4, 1e-1)
    """Range that trials search."""
    weight_decays: tuple[float, float] = (1e-6, 1e-1)
    grid: tuple[str, tuple[Any, ...]] | None = field(default=None)
    """For a head that is fitted: the field of the configuration that trials go through, and its values."""
