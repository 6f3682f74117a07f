"""A linear projection at every position of the joined feature maps: the dense counterpart of ``linear``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from embedcache.errors import SettingError
from embedcache.heads._layers import dropout, initialised, sum_on_finest
from embedcache.heads._spec import HeadSpec

if TYPE_CHECKING:
    from embedcache.train_config import TrainConfig
    from embedcache_stores.schema import LevelSpec


class LinearSegHead(nn.Module):
    """A 1x1 convolution on all levels of all members, resized to the finest grid and concatenated on channels.

    A 1x1 convolution works on channels and a bilinear resize on positions, so they commute: each level is projected to
    the classes on its own grid, and only class logits are resized and summed. The answer is that of the concatenated
    form, and so are the parameters (one ``classifier``); no map of many channels is ever enlarged.

    With ``config.batch_norm`` each level first passes a batch normalisation without learned scale and shift; the mean
    and variance of training are saved with the weights. Maps come standardised by default, which serves as well.
    """

    def __init__(self, members: Sequence[Sequence[LevelSpec]], num_classes: int, config: TrainConfig) -> None:
        super().__init__()
        self.widths = [level.channels for levels in members for level in levels]
        if not self.widths:
            raise SettingError("linear-seg needs at least one level of feature maps.")
        norm = config.batch_norm
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, affine=False) if norm else nn.Identity() for c in self.widths)
        self.dropout = dropout(config.dropout)
        self.classifier = nn.Conv2d(sum(self.widths), num_classes, 1)

    def forward(self, maps: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return logits ``(b, class, y, x)`` on the finest grid among ``maps[member][level]``."""
        flat = (x for levels in maps for x in levels)
        weights = self.classifier.weight.split(self.widths, dim=1)
        total = sum_on_finest(
            F.conv2d(self.dropout(norm(x)), weight) for x, norm, weight in zip(flat, self.norms, weights, strict=True)
        )
        assert self.classifier.bias is not None
        return total + self.classifier.bias[:, None, None]


def decode(
    members: Sequence[Sequence[LevelSpec]], num_classes: int, generator: torch.Generator, config: TrainConfig
) -> LinearSegHead:
    """Build an untrained head for the members' levels, however many and on whatever grids."""
    return initialised(lambda: LinearSegHead(members, num_classes, config), generator)


SPEC = HeadSpec(
    name="linear-seg",
    title="linear projection at every position of the feature maps",
    tasks=("segmentation",),
    decode=decode,
    heeds=("loss", "class_weights", "label_smoothing", "batch_norm", "dropout"),
    # Convex on standardised features, like `linear`, so the same wide ranges do no harm.
    learning_rates=(1e-4, 1e-1),
    weight_decays=(1e-6, 1e-1),
)
