"""Works out what a model gives from one run: tokens or maps, how many levels, on which grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from embedcache.backbones._spec import Features
from embedcache.backbones._vit import four_blocks
from embedcache.errors import SettingError

if TYPE_CHECKING:
    import torch

_MOST_PREFIX = 17
"""Tokens before those of the image: a class token, and up to 16 registers."""


@dataclass(frozen=True)
class Output:
    """One output of a model that is a square feature map, in some layout."""

    number: int
    """Which of the model's outputs, from 0."""
    kind: Literal["tokens", "channels first", "channels last"]
    prefix: int
    """Tokens before those of the image; the first of them is taken for the class token."""
    channels: int
    grid: int


@dataclass(frozen=True)
class Layout:
    """Which outputs of a model are its levels, and how to read them."""

    levels: tuple[Output, ...]
    """Finest first."""
    count: int
    """Outputs that are feature maps."""
    pyramid: bool

    @property
    def pooled(self) -> tuple[str, ...]:
        """Kinds of pooled vectors that the last level has."""
        return ("cls", "mean") if self.levels[-1].prefix else ("mean",)

    def describe(self) -> str:
        """One line for people."""
        last = self.levels[-1]
        how: str = last.kind
        if last.kind == "tokens":
            how = "tokens, the first a class token" if last.prefix else "tokens without a class token"
            how += f" and {last.prefix - 1} registers" if last.prefix > 1 else ""
        shapes = ", ".join(dict.fromkeys(f"{o.channels}x{o.grid}x{o.grid}" for o in self.levels))
        numbers = ", ".join(str(o.number + 1) for o in self.levels)
        what = "a pyramid" if self.pyramid else "one grid"
        return f"of {self.count} outputs ({how}; {what}) the levels are {numbers}: {shapes}"

    def features(self, outputs: Any) -> Features:
        """Read a model's outputs as levels and pooled vectors."""
        found = tensors_of(outputs)
        maps = []
        pooled: dict[str, torch.Tensor] = {}
        for output in self.levels:
            tensor = found[output.number]
            if output.kind == "tokens":
                image = tensor[:, output.prefix :].transpose(1, 2).unflatten(2, (output.grid, output.grid))
            else:
                image = tensor if output.kind == "channels first" else tensor.permute(0, 3, 1, 2)
            maps.append(image)
        if self.levels[-1].prefix:
            pooled["cls"] = found[self.levels[-1].number][:, 0].float()
        pooled["mean"] = maps[-1].float().mean(dim=(2, 3))
        return Features(pooled=pooled, levels=maps)


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """Return a model's outputs as a flat list, whether it gave a tensor, a sequence, a mapping, or these nested."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, list | tuple):
        return [tensor for part in outputs for tensor in tensors_of(part)]
    return [outputs] if hasattr(outputs, "shape") else []


def work_out(outputs: Any, batch: int, input_size: int, channels: Sequence[int] = ()) -> Layout:
    """Work out levels from the outputs for a batch of square images.

    Parameters
    ----------
    outputs
        What the model returned.
    batch
        How many images it was given.
    input_size
        Their height and width in px.
    channels
        What the model says of its channels; used only where shapes leave a doubt.

    Raises
    ------
    SettingError
        If there is no feature map among them, or one does not divide the input evenly.
    """
    shapes = [tuple(t.shape) for t in tensors_of(outputs)]
    found = [
        output
        for number, shape in enumerate(shapes)
        if shape and shape[0] == batch and (output := _read(number, shape[1:], input_size, channels))
    ]
    if not found:
        said = ", ".join(str(s) for s in shapes[:4]) or "no tensor"
        raise SettingError(
            f"for {batch} images of {input_size} px it gives {said}, in which no square feature map is found whose "
            "pixels are whole numbers of input pixels; another --input-size may help."
        )
    grids = sorted({o.grid for o in found}, reverse=True)
    if len(grids) == 1:
        chosen = found if len(found) < 4 else [found[i] for i in four_blocks(len(found))]
        return Layout(tuple(chosen), len(found), pyramid=False)
    last = {o.grid: o for o in found}  # of several outputs on one grid, the deepest
    return Layout(tuple(last[g] for g in grids[-4:]), len(found), pyramid=True)


def _read(number: int, shape: tuple[int, ...], input_size: int, channels: Sequence[int]) -> Output | None:
    if len(shape) == 2:
        tokens, width = shape
        for prefix in range(min(_MOST_PREFIX + 1, tokens)):
            grid = math.isqrt(tokens - prefix)
            if grid * grid == tokens - prefix and input_size % grid == 0 and grid > 1:
                return Output(number, "tokens", prefix, width, grid)
        return None
    if len(shape) != 3:
        return None
    first = Output(number, "channels first", 0, shape[0], shape[1])
    final = Output(number, "channels last", 0, shape[2], shape[0])
    square = [o for o, sides in ((first, shape[1:]), (final, shape[:2])) if sides[0] == sides[1]]
    fits = [o for o in square if input_size % o.grid == 0]
    if square and not fits:
        raise SettingError(
            f"it makes a map of {square[0].grid} px from {input_size} px, which is no whole number of input pixels "
            "each; another --input-size (a multiple of 32) may do."
        )
    if len(fits) == 2 and fits[0].channels not in channels and fits[1].channels in channels:
        return fits[1]
    return fits[0] if fits else None
