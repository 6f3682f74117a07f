"""Pooled vectors for heads, split by split: resident where they fit, else read batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.ensemble import Ensemble
from embedcache.errors import DatasetError, FeatureError, SettingError
from embedcache.feature_loader import free_bytes
from embedcache.train_config import channel_range

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")
_BLOCK_BYTES = 64 << 20

ReadVectors = Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]


class Vectors:
    """One split's pooled vectors and targets, on one device."""

    def __init__(
        self, y: torch.Tensor, sample_ids: npt.NDArray[Any], read: ReadVectors, rows: npt.NDArray[np.int64], device: str
    ) -> None:
        """Describe a split; nothing is read.

        Parameters
        ----------
        y
            ``(n,)`` int64 class indices, or ``(n, class)`` float32 of 0/1.
        sample_ids
            ``(n,)``.
        read
            Returns ``(m, channel)`` of rows of the store.
        rows
            ``(n,)`` rows of the store.
        device
            Torch device of targets and batches.
        """
        self.y = y.to(device)
        self.sample_ids, self.rows, self.device = sample_ids, rows, device
        self._read = read
        self._resident: torch.Tensor | None = None

    @classmethod
    def held(cls, x: torch.Tensor, y: torch.Tensor, sample_ids: npt.NDArray[Any]) -> Vectors:
        """Wrap vectors ``(n, channel)`` float32 that are in memory already."""
        vectors = cls(y, sample_ids, _nothing_to_read, np.arange(len(y)), str(x.device))
        vectors._resident = x
        return vectors

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def channels(self) -> int:
        """Length of a vector."""
        if self._resident is not None:
            return int(self._resident.shape[1])
        return int(self._read(self.rows[:1]).shape[1])

    @property
    def is_resident(self) -> bool:
        """Whether the vectors are held in memory."""
        return self._resident is not None

    @property
    def x(self) -> torch.Tensor:
        """All vectors, ``(n, channel)`` float32 as stored (not standardised)."""
        return self.take(np.arange(len(self)))

    def hold(self) -> None:
        """Read all vectors into the device's memory."""
        import torch

        if self._resident is None:
            whole = torch.empty((len(self), self.channels), device=self.device)
            for start, block in self.blocks():
                whole[start : start + len(block)] = block
            self._resident = whole

    def take(self, at: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return vectors by their place in the split: ``(*at.shape, channel)`` float32."""
        import torch

        if self._resident is not None:
            places = torch.from_numpy(at.reshape(-1)).to(self.device)
            return self._resident.index_select(0, places).view(*at.shape, -1)
        values = self._read(self.rows[at.reshape(-1)])
        return torch.from_numpy(values.astype(np.float32, copy=False)).to(self.device).view(*at.shape, -1)

    def blocks(self) -> Any:
        """Yield ``(start, (m, channel) float32)`` over the split in order, in pieces of bounded size."""
        step = max(1, _BLOCK_BYTES // (4 * self.channels))
        for start in range(0, len(self), step):
            yield start, self.take(np.arange(start, min(start + step, len(self))))


def _nothing_to_read(rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    raise AssertionError("these vectors are in memory")


@dataclass(frozen=True)
class PooledData:
    """Pooled vectors of all three splits, with what a head must know."""

    train: Vectors
    val: Vectors
    test: Vectors
    task: str
    num_classes: int
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Length of a pooled vector."""
        return self.train.channels

    @cached_property
    def scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel over the training split, ``(channel,)`` float32.

        Channels that never vary are only centred.
        """
        import torch

        total = torch.zeros(self.channels, dtype=torch.float64, device=self.train.device)
        for _, block in self.train.blocks():
            total += block.sum(dim=0, dtype=torch.float64)
        mean = total / len(self.train)
        power = torch.zeros_like(mean)
        for _, block in self.train.blocks():
            power += (block - mean.to(torch.float32)).square().sum(dim=0, dtype=torch.float64)
        std = (power / len(self.train)).sqrt()
        std = torch.where(std > 1e-6 * std.max().clamp_min(1e-12), std, torch.ones_like(std))
        return mean.to(torch.float32), std.to(torch.float32)

    def take(self, split: Vectors, at: npt.NDArray[np.int64], *, standardise: bool, bf16: bool = False) -> torch.Tensor:
        """Return vectors by place, ``(*at.shape, channel)``, as a head reads them.

        Where the split is resident, all of it is made ready once and kept.
        """
        import torch

        dtype = torch.bfloat16 if bf16 else torch.float32
        if not standardise and not bf16:
            return split.take(at)
        if not split.is_resident:
            return self._ready(split.take(at), standardise).to(dtype)
        key = (id(split), standardise, bf16)
        if key not in self._kept:
            self._kept.clear() if len(self._kept) >= len(SPLITS) else None
            self._kept[key] = self._ready(split.x, standardise).to(dtype)
        places = torch.from_numpy(at.reshape(-1)).to(split.device)
        return self._kept[key].index_select(0, places).view(*at.shape, -1)

    def _ready(self, x: torch.Tensor, standardise: bool) -> torch.Tensor:
        mean, std = self.scale
        return (x - mean) / std if standardise else x

    @cached_property
    def _kept(self) -> dict[tuple[int, bool, bool], torch.Tensor]:
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors as float32, held twice: as stored, and as a head reads them."""
        return 8 * self.channels * (len(self.train) + len(self.val) + len(self.test))


def load_pooled(
    features: Ensemble,
    kind: str = "mean",
    device: str = "cpu",
    *,
    channels: str | None = None,
    budget_bytes: int | None = None,
) -> PooledData:
    """Load the pooled vectors of a store or ensemble, split by split.

    Parameters
    ----------
    features
        A store or ensemble.
    kind
        ``mean``, ``cls`` ...
    device
        Torch device to train on.
    channels
        ``START:STOP`` of the joined channels; None is all.
    budget_bytes
        Memory the vectors may take; None is half of what is free on the device. Where they do not fit, they are read
        from the store batch by batch, which gives the same numbers.

    Raises
    ------
    SettingError
        If the targets are masks, or the channels are not there.
    DatasetError
        If a split is empty, or the training split knows only one class.
    FeatureError
        If a vector is not finite; the sample is named.
    """
    if features.task == "segmentation":
        raise SettingError(
            f"{features.name!r} of {features.dataset!r} has masks as targets; a head on pooled vectors needs class "
            "labels. Heads on maps are upernet, linear-seg and fcn."
        )
    rows = {name: rows_of_split(features, name) for name in SPLITS}
    read = _reader(features, kind, channels)
    splits = {name: _open_split(features, read, rows[name], device) for name in SPLITS}
    num_classes = len(features.class_names)
    notes = _check_classes(features, splits, num_classes)
    data = PooledData(**splits, task=features.task, num_classes=num_classes, notes=tuple(notes))
    budget = free_bytes(device) // 2 if budget_bytes is None else budget_bytes
    if data.nbytes <= budget:
        for split in splits.values():
            split.hold()
    _check_finite(features, splits)
    return data


def _reader(features: Ensemble, kind: str, channels: str | None) -> ReadVectors:
    if channels is None:
        return lambda rows: features.read_pooled(kind, rows)
    here = channel_range(channels)
    width = features.read_pooled(kind, np.zeros(1, dtype=np.int64)).shape[1]
    if here.start >= width or (here.stop or width) > width or here.start >= (here.stop or width):
        raise SettingError(f"--channels {channels} is not within the {width} channels of {features.name!r}.")
    return lambda rows: features.read_pooled(kind, rows)[:, here]


def rows_of_split(features: Ensemble, name: str) -> npt.NDArray[np.int64]:
    """Return the rows of a split, in order.

    Raises
    ------
    DatasetError
        If it has none; the message says what the splits hold.
    """
    rows = np.flatnonzero(features.split == name)
    if not len(rows):
        found, counted = np.unique(features.split.astype(str), return_counts=True)
        counts = {str(s): int(n) for s, n in zip(found, counted, strict=True)}
        raise DatasetError(
            f"dataset {features.dataset!r} has no {name!r} samples in the cache (it has {counts}); training "
            "needs train, val and test."
        )
    return rows


def _open_split(features: Ensemble, read: ReadVectors, rows: npt.NDArray[np.int64], device: str) -> Vectors:
    import torch

    labels = features.label[rows]
    y = torch.from_numpy(labels.astype(np.float32 if labels.ndim == 2 else np.int64))
    return Vectors(y, features.sample_ids[rows], read, rows, device)


def _check_finite(features: Ensemble, splits: dict[str, Vectors]) -> None:
    bad: list[tuple[int, str]] = []
    for split in splits.values():
        for start, block in split.blocks():
            found = (~block.isfinite().all(dim=1)).nonzero().flatten().tolist()
            bad += [(int(split.rows[start + i]), str(split.sample_ids[start + i])) for i in found]
    if bad:
        row, sample_id = min(bad)
        count = (
            f"{len(bad)} feature vectors of {features.name!r} are"
            if len(bad) > 1
            else f"a feature vector of {features.name!r} is"
        )
        raise FeatureError(f"{count} not finite, the first is row {row} ({sample_id!r}); extract the store again.")


def _check_classes(features: Ensemble, splits: dict[str, Vectors], num_classes: int) -> list[str]:
    names = features.class_names
    present = {k: _classes_of(v) for k, v in splits.items()}
    outside = sorted(c for found in present.values() for c in found if not 0 <= c < num_classes)
    if outside:
        raise DatasetError(f"label {outside[0]} of {features.dataset!r} is outside its {num_classes} classes.")
    if features.task == "classification" and len(present["train"]) < 2:
        only = names[next(iter(present["train"]))]
        raise DatasetError(
            f"the training split of {features.dataset!r} holds a single class, {only!r}; a head cannot learn from that."
        )
    if features.task == "multilabel" and not present["train"]:
        raise DatasetError(
            f"no class is there in any sample of the training split of {features.dataset!r}; a head cannot learn from "
            "that."
        )
    unseen = sorted((present["val"] | present["test"]) - present["train"])
    if unseen:
        return [f"classes missing from train: {', '.join(names[c] for c in unseen)}"]
    return []


def _classes_of(data: Vectors) -> set[int]:
    if data.y.ndim == 2:
        return {int(c) for c in data.y.any(dim=0).nonzero().flatten().tolist()}
    return {int(c) for c in data.y.unique().tolist()}
