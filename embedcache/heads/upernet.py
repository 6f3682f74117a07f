"""UPerNet on four levels: the paper's segmentation head, with TerraTorch's parameters and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from embedcache.heads._layers import conv_norm_relu, dropout, grid_of, initialised, resized, sum_of
from embedcache.heads._pyramid import JoinedPyramid
from embedcache.heads._reordered import conv_of_resized
from embedcache.heads._spec import HeadSpec

if TYPE_CHECKING:
    from embedcache.train_config import TrainConfig
    from embedcache_stores.schema import LevelSpec

POOL_SCALES = (1, 2, 3, 6)


class UPerNetDecoder(nn.Module):
    """Pyramid pooling on the coarsest level, then a feature pyramid network over all (Xiao et al. 2018, figure 4).

    Same parameter names, defaults and outputs as TerraTorch's ``UperNetDecoder`` (``align_corners=True`` everywhere):
    weights of one load into the other. Any number of levels from one; in training a batch needs two samples or more,
    for a batch normalisation follows the pooling to a single position.

    Parameters
    ----------
    levels
        Channels of each level, finest first.
    channels
        Channels inside, and of the output.
    """

    def __init__(self, levels: Sequence[int], channels: int) -> None:
        super().__init__()
        *finer, top = levels
        self.channels = channels
        # PSPNet's pyramid pooling (Zhao et al. 2017): averages over 1, 4, 9 and 36 parts of the coarsest level
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_norm_relu(top, channels, 1)) for scale in POOL_SCALES
        )
        self.bottleneck = conv_norm_relu(top + len(POOL_SCALES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(conv_norm_relu(c, channels, 1) for c in finer)
        self.fpn_convs = nn.ModuleList(conv_norm_relu(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = conv_norm_relu(len(levels) * channels, channels, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return ``(b, channels, y, x)`` on the grid of the first of ``maps``, each ``(b, channel, y, x)``."""
        *finer, top = maps
        pooled = [resized(pool(top), grid_of(top), align_corners=True) for pool in self.psp_modules]
        coarse = self.bottleneck(torch.cat([top, *pooled], dim=1))
        outputs = [coarse]  # coarsest first
        for x, lateral, smooth in reversed([*zip(finer, self.lateral_convs, self.fpn_convs, strict=True)]):
            coarse = lateral(x) + resized(coarse, grid_of(x), align_corners=True)
            outputs.append(smooth(coarse))
        finest = grid_of(maps[0])
        # TerraTorch convolves the concatenation of all levels enlarged. That is the sum over levels of a convolution of
        # each enlarged, and those of coarse levels cost a fraction of it: see conv_of_resized.
        conv, norm, act = self.fpn_bottleneck
        weights = cast("nn.Conv2d", conv).weight.split(self.channels, dim=1)
        summed = sum_of(
            conv_of_resized(x, weight, finest) for x, weight in zip(reversed(outputs), weights, strict=True)
        )
        fused: Tensor = act(norm(summed))
        return fused


class SegmentationHead(nn.Module):
    """Dropout and a 1x1 convolution to class logits, under the names of TerraTorch's ``SegmentationHead``."""

    def __init__(self, channels: int, num_classes: int, share: float) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Identity(), dropout(share), nn.Conv2d(channels, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(b, class, y, x)`` of ``(b, channel, y, x)``."""
        logits: Tensor = self.head(x)
        return logits


class UPerNetHead(nn.Module):
    """Members' levels -> one pyramid (``pyramid``) -> UPerNet (``decoder``) -> logits (``head``)."""

    def __init__(self, members: Sequence[Sequence[LevelSpec]], num_classes: int, config: TrainConfig) -> None:
        super().__init__()
        self.pyramid = JoinedPyramid(members)
        self.decoder = UPerNetDecoder(self.pyramid.channels, config.decoder_channels)
        self.head = SegmentationHead(config.decoder_channels, num_classes, config.dropout)

    def forward(self, maps: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return logits ``(b, class, y, x)`` on the finest grid of the pyramid, of ``maps[member][level]``."""
        logits: Tensor = self.head(self.decoder(self.pyramid(maps)))
        return logits


def decode(
    members: Sequence[Sequence[LevelSpec]], num_classes: int, generator: torch.Generator, config: TrainConfig
) -> UPerNetHead:
    """Build an untrained head for the members' levels (those picked by ``config.levels``, where given).

    Raises
    ------
    SettingError
        If the levels make no pyramid; see :class:`embedcache.heads._pyramid.JoinedPyramid`.
    """
    return initialised(lambda: UPerNetHead(members, num_classes, config), generator)


SPEC = HeadSpec(
    name="upernet",
    title="UPerNet: pyramid pooling and a feature pyramid network on feature maps",
    tasks=("segmentation",),
    decode=decode,
    heeds=("loss", "class_weights", "label_smoothing", "dropout"),
    # MMSegmentation trains UPerNet with AdamW at 6e-5 together with a backbone; alone and from scratch, with batch
    # normalisation after every convolution, it bears and wants more. A decay below 1e-4 changes nothing at such rates.
    learning_rates=(1e-4, 1e-2),
    weight_decays=(1e-4, 1e-1),
)
