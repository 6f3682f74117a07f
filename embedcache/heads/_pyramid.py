"""Levels of one or several backbones as one pyramid, for heads that need one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embedcache.errors import SettingError
from embedcache.heads._layers import grid_of, resized

if TYPE_CHECKING:
    from embedcache_stores.schema import LevelSpec


class LearnedPyramid(nn.Module):
    """Four levels on one grid become a pyramid of x4, x2, x1 and x1/2.

    Parameters and outputs are those of TerraTorch's ``LearnedInterpolateToPyramidal``: the scheme of Li et al. 2021
    ("Benchmarking detection transfer learning with vision transformers"), with fewer channels where the grid grows.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.channels = [first // 4, second // 2, third, fourth]
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(first, first // 2, 2, 2),
            nn.BatchNorm2d(first // 2),
            nn.GELU(),
            nn.ConvTranspose2d(first // 2, first // 4, 2, 2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(second, second // 2, 2, 2))
        self.fpn4 = nn.MaxPool2d(2, 2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return four maps, finest first, of four ``(b, channel, y, x)`` on one grid."""
        first, second, third, fourth = maps
        return [self.fpn1(first), self.fpn2(second), third, self.fpn4(fourth)]


class JoinedPyramid(nn.Module):
    """One pyramid of the levels of all members: a neck where a member needs one, then level by level joined.

    A member whose levels (more than one) all lie on one grid is a plain vision transformer and gets a
    :class:`LearnedPyramid`, ``necks.<member>``; others are pyramids already. Then level i of every member is resized to
    the finest grid of that level among the members, as :class:`embedcache.ensemble.Ensemble` does it, and all are
    concatenated on the channel axis, in the order of the members.

    Raises
    ------
    SettingError
        If members have different numbers of levels, or a plain one has not exactly four, or a grid too small to halve.
    """

    def __init__(self, members: Sequence[Sequence[LevelSpec]]) -> None:
        super().__init__()
        if len({len(levels) for levels in members}) != 1 or not members[0]:
            counts = ", ".join(str(len(levels)) for levels in members) or "none"
            raise SettingError(
                f"upernet joins its members level by level, so all need equally many, at least one; they have {counts}."
            )
        self.necks = nn.ModuleList(nn.Identity() if _is_pyramid(m) else _neck(m) for m in members)
        per_member = [
            neck.channels if isinstance(neck, LearnedPyramid) else [level.channels for level in levels]
            for neck, levels in zip(self.necks, members, strict=True)
        ]
        self.channels: list[int] = [sum(level) for level in zip(*per_member, strict=True)]
        """Channels of each joined level."""

    def forward(self, maps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Join ``maps[member][level]``, each ``(b, channel, y, x)``, to one map per level, finest first."""
        pyramids = [neck(levels) for neck, levels in zip(self.necks, maps, strict=True)]
        return [_joined(level) for level in zip(*pyramids, strict=True)]


def _is_pyramid(levels: Sequence[LevelSpec]) -> bool:
    return len(levels) == 1 or len({(level.height, level.width) for level in levels}) > 1


def _neck(levels: Sequence[LevelSpec]) -> LearnedPyramid:
    grid = f"{levels[0].height} x {levels[0].width}"
    if len(levels) != 4:
        raise SettingError(
            f"upernet makes a pyramid of a plain vision transformer's levels (here all on a grid of {grid}) and needs "
            f"exactly 4 for that, got {len(levels)}; leave --levels out, or take the head linear-seg or fcn."
        )
    if min(levels[0].height, levels[0].width) < 2:
        raise SettingError(f"upernet halves the grid of a plain vision transformer's last level; {grid} is too small.")
    return LearnedPyramid([level.channels for level in levels])


def _joined(level: Sequence[Tensor]) -> Tensor:
    if len(level) == 1:
        return level[0]
    finest = max(grid_of(x) for x in level)
    return torch.cat([resized(x, finest) for x in level], dim=1)
