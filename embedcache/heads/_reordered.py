"""A 3x3 convolution of an enlarged map, computed on the small one: the same answer from less arithmetic.

A bilinear resize and the shift by a kernel's tap are linear in positions, the tap's weights linear in channels, so they
may change places. Each of the nine taps is a 1x1 convolution on the coarse grid; enlarging and shifting are two small
matrix products, one along each axis. For a map enlarged twice that is a quarter of the products of channels.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from embedcache.heads._layers import grid_of


def conv_of_resized(x: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return ``conv2d(interpolate(x, grid, bilinear, align_corners=True), weight, padding=1)``, to rounding.

    Parameters
    ----------
    x
        ``(b, channel, y, x)``.
    weight
        ``(out, channel, 3, 3)``.
    grid
        Height and width of the result.
    """
    if grid_of(x) == grid:
        return F.conv2d(x, weight, padding=1)
    batch, channels, height, width = x.shape
    out = weight.shape[0]
    taps = F.conv2d(x, weight.permute(2, 3, 0, 1).reshape(9 * out, channels, 1, 1))
    plain = (
        torch.autocast(x.device.type, enabled=False)
        if torch.amp.is_autocast_available(x.device.type)
        else nullcontext()
    )
    with plain:  # sums of nine terms: in float32 they stay as exact as cuDNN's
        terms = taps.float().view(batch, 3, 3, out, height, width).permute(0, 1, 3, 4, 2, 5)
        rows, columns = _enlarge_and_shift(height, grid[0], x.device), _enlarge_and_shift(width, grid[1], x.device)
        terms = terms.reshape(batch, 3, out, height, 3 * width) @ columns
        terms = terms.permute(0, 2, 1, 3, 4).reshape(batch, out, 3 * height, grid[1])
        return (rows.T @ terms).to(taps.dtype)


def _enlarge_and_shift(small: int, large: int, device: torch.device) -> Tensor:
    """Matrix ``(3 * small, large)``: bilinear enlargement, then what each of three taps sees with a border of zeros."""
    unit = torch.eye(small, device=device)[None, :, :, None]
    enlarge = F.interpolate(unit, size=(large, 1), mode="bilinear", align_corners=True)[0, :, :, 0]  # (small, large)
    seen = torch.zeros(3, small, large, device=device)
    seen[0, :, 1:] = enlarge[:, :-1]  # the tap before a position
    seen[1] = enlarge
    seen[2, :, :-1] = enlarge[:, 1:]
    return seen.reshape(3 * small, large)
