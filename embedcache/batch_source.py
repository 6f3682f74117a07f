"""Where the rows of one array of an ensemble lie, and how they become one tensor, each member in its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.ensemble import Ensemble
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.schema import ArraySpec

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]
Block = Mapping[tuple[str, str], npt.NDArray[Any]]
"""Rows held in memory, as on disk, by store and array."""


@dataclass(frozen=True)
class Member:
    """One store's part of an array."""

    store: FeatureStore
    spec: ArraySpec
    channels: slice

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the values before decoding, as torch names it."""
        import torch

        if self.spec.encoding == "bfloat16":
            return torch.bfloat16
        return {
            "float16": torch.float16,
            "float32": torch.float32,
            "int8": torch.int8,
            "int16": torch.int16,
            "uint8": torch.uint8,
        }[self.spec.dtype]


class BatchSource:
    """One array of an ensemble, read in batches."""

    def __init__(self, features: Ensemble, name: str, key: str | None = None) -> None:
        """Describe array ``pooled_*``, ``level_*`` or ``mask``; nothing is read. ``key`` names it in batches."""
        self.name, self.key = name, key or name
        stores = features.stores[:1] if name == "mask" else features.stores
        at, members = 0, []
        for store in stores:
            spec = store.spec(name)
            width = spec.shape[0] if spec.shape else 1
            members.append(Member(store, spec, slice(at, at + width)))
            at += width
        self.members: Sequence[Member] = tuple(members)
        level = None
        if name.startswith("level_"):
            level = next(x for x in features.levels if x.name == name)
        self.grid = (level.height, level.width) if level else None
        first = self.members[0]
        kinds = {(m.torch_dtype, m.spec.shape[1:]) for m in self.members}
        self._joined = len(kinds) == 1 and first.spec.encoding != "int8"
        self._shape = first.spec.shape if name == "mask" else (at, *first.spec.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as a tensor, decoded and resized."""
        import torch

        if self.name == "mask":
            return self.members[0].spec.row_bytes
        area = int(np.prod(self.grid)) if self.grid else 1
        channels = self.members[-1].channels.stop
        return int(channels * area * torch.empty(0, dtype=self.value_dtype).element_size())

    @property
    def value_dtype(self) -> torch.dtype:
        """Dtype of the batches: as stored where the members agree, else float32."""
        import torch

        return self.members[0].torch_dtype if self._same_dtype() else torch.float32

    def buffers(self, rows: int, *, pinned: bool) -> list[torch.Tensor]:
        """Make buffers for one batch: one where the members' rows go side by side, else one a member."""
        import torch

        if self._joined:
            return [torch.empty((rows, *self._shape), dtype=self.members[0].torch_dtype, pin_memory=pinned)]
        return [torch.empty((rows, *m.spec.shape), dtype=m.torch_dtype, pin_memory=pinned) for m in self.members]

    def fill(self, rows: Rows, buffers: Sequence[torch.Tensor], block: Block | None, at: Rows | None) -> None:
        """Copy rows into the buffers, from the stores, or from a block in memory of which ``at`` are the positions."""
        for index, member in enumerate(self.members):
            buffer = as_numpy(buffers[0] if self._joined else buffers[index])[: len(rows)]
            out = buffer[:, member.channels] if self._joined and self.name != "mask" else buffer
            if block is None:
                member.store.read_stored_into(self.name, rows, out)
            else:
                np.copyto(out, block[member.store.name, self.name][at])

    def values(self, rows: Rows, buffers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Decode, resize and join what :meth:`fill` read, on whatever device the buffers were moved to."""
        import torch

        if self._joined:
            return self._resized(buffers[0])
        parts = []
        for member, buffer in zip(self.members, buffers, strict=True):
            part = buffer
            if member.spec.encoding == "int8":
                scale = torch.from_numpy(member.store.scale(self.name, rows)).to(buffer.device)
                lost = buffer == -128
                part = buffer.to(torch.float32) * scale.reshape(*scale.shape, *(1 for _ in member.spec.shape[1:]))
                part = part.masked_fill(lost, torch.nan)
            parts.append(self._resized(part).to(self.value_dtype))
        return torch.cat(parts, dim=1)

    def _resized(self, maps: torch.Tensor) -> torch.Tensor:
        """Resize to the ensemble's grid as :func:`embedcache.ensemble.resize_block` does; in the dtype that came in."""
        import torch
        import torch.nn.functional as F  # noqa: N812

        if self.grid is None or tuple(maps.shape[2:]) == self.grid:
            return maps
        wide = F.interpolate(maps.to(torch.float32), size=self.grid, mode="bilinear", align_corners=False)
        return wide.to(maps.dtype)

    def _same_dtype(self) -> bool:
        return len({m.torch_dtype for m in self.members}) == 1 and self.members[0].spec.encoding != "int8"


def as_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """See a CPU tensor as the numpy array that a store fills: bfloat16 as its bits."""
    import torch

    if tensor.dtype == torch.bfloat16:
        bits: npt.NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    plain: npt.NDArray[Any] = tensor.numpy()
    return plain
