"""A small convolutional decoder, for those in a hurry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embedcache.errors import SettingError
from embedcache.heads._layers import conv_norm_relu, dropout, initialised, sum_on_finest
from embedcache.heads._spec import HeadSpec

if TYPE_CHECKING:
    from embedcache.train_config import TrainConfig
    from embedcache_stores.schema import LevelSpec


class FCNHead(nn.Module):
    """Levels projected to few channels and summed on the finest grid, then two 3x3 convolutions and a 1x1.

    Each level of each member passes a 1x1 convolution to ``decoder_channels // 4`` channels and a batch normalisation
    on its own grid (levels differ in scale by orders of magnitude), and is resized to the finest grid among all. The
    sum equals one 1x1 convolution on the concatenation, and costs the 3x3 convolutions a fraction of it. It is the
    fusion of FCN (Long et al. 2015) and of Panoptic FPN's semantic branch (Kirillov et al. 2019), made small. No level
    is enlarged beyond the finest one: a plain vision transformer's logits lie on its own patches.
    """

    def __init__(self, members: Sequence[Sequence[LevelSpec]], num_classes: int, config: TrainConfig) -> None:
        super().__init__()
        width = max(1, config.decoder_channels // 4)
        channels = [level.channels for levels in members for level in levels]
        if not channels:
            raise SettingError("fcn needs at least one level of feature maps.")
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)) for c in channels
        )
        self.act = nn.ReLU()
        self.convs = nn.Sequential(conv_norm_relu(width, width, 3), conv_norm_relu(width, width, 3))
        self.dropout = dropout(config.dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return logits ``(b, class, y, x)`` on the finest grid among ``maps[member][level]``."""
        flat = (x for levels in maps for x in levels)
        total = sum_on_finest(project(x) for project, x in zip(self.projections, flat, strict=True))
        logits: Tensor = self.classifier(self.dropout(self.convs(self.act(total))))
        return logits


def decode(
    members: Sequence[Sequence[LevelSpec]], num_classes: int, generator: torch.Generator, config: TrainConfig
) -> FCNHead:
    """Build an untrained head for the members' levels, however many and on whatever grids."""
    return initialised(lambda: FCNHead(members, num_classes, config), generator)


SPEC = HeadSpec(
    name="fcn",
    title="small convolutional decoder on feature maps",
    tasks=("segmentation",),
    decode=decode,
    heeds=("loss", "class_weights", "label_smoothing", "dropout"),
    # Batch normalisation after every convolution, as in `upernet`: the same ranges, for the same reasons.
    learning_rates=(1e-4, 1e-2),
    weight_decays=(1e-4, 1e-1),
)
