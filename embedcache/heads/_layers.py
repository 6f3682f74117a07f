"""Small parts that the heads on maps share, and initial weights that come from one generator."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import sqrt
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def conv_norm_relu(channels: int, out: int, kernel: int) -> nn.Sequential:
    """Return a convolution without bias (same size), batch normalisation and ReLU, under TerraTorch's names."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv=nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False),
            norm=nn.BatchNorm2d(out),
            act=nn.ReLU(inplace=True),
        )
    )


def dropout(share: float) -> nn.Module:
    """Return dropout, or nothing at all for a share of 0."""
    return nn.Dropout(share) if share else nn.Identity()


def resized(maps: Tensor, grid: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Resize ``(b, channel, y, x)`` bilinearly to a grid ``(y, x)``; maps that fit are returned as they are."""
    if grid_of(maps) == grid:
        return maps
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=align_corners)


def grid_of(maps: Tensor) -> tuple[int, int]:
    """Return height and width of ``(b, channel, y, x)``."""
    return maps.shape[2], maps.shape[3]


def sum_of(maps: Iterable[Tensor]) -> Tensor:
    """Sum maps of one shape."""
    first, *others = maps
    for x in others:
        first = first + x
    return first


def sum_on_finest(maps: Iterable[Tensor]) -> Tensor:
    """Sum maps ``(b, channel, y, x)`` on the finest grid among them; those of one grid are resized once, together."""
    by_grid: dict[tuple[int, int], Tensor] = {}
    for x in maps:
        grid = grid_of(x)
        by_grid[grid] = by_grid[grid] + x if grid in by_grid else x
    finest = max(by_grid)
    total = by_grid.pop(finest)
    for x in by_grid.values():
        total = total + resized(x, finest)
    return total


def initialised(build: Callable[[], M], generator: torch.Generator) -> M:
    """Build a module whose initial weights all come from ``generator``, on that generator's device.

    It is built on the meta device first, where torch's own initialisation draws no number: the global generator stays
    as it was, and nothing is initialised twice.
    """
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device=generator.device)
    initialise(module, generator)
    return module


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Give every layer torch's default initial weights, drawn from ``generator`` in the order of the layers.

    Convolutions: uniform within 1 / sqrt(fan in), weights (``kaiming_uniform_`` with a = sqrt(5)) and bias alike.
    Batch normalisation: 1 and 0, without chance.

    Raises
    ------
    TypeError
        For a layer with weights of a kind that is not known here: it would be left with whatever was in memory.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(layer.weight, a=sqrt(5), generator=generator)
            if layer.bias is not None:
                bound = layer.weight[0].numel() ** -0.5  # fan in as torch counts it: all axes but the first
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        elif [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
            raise TypeError(f"no initial weights are defined for {type(layer).__name__}")
