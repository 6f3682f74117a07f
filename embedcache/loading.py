"""The only bridge from stored arrays to torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.ensemble import Ensemble
from embedcache.errors import DatasetError, FeatureError, SettingError

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitData:
    """One split, resident in memory."""

    x: torch.Tensor
    """``(n, channel)`` float32, as stored (not standardised)."""
    y: torch.Tensor
    """``(n,)`` int64 class indices, or ``(n, class)`` float32 of 0/1."""
    sample_ids: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class PooledData:
    """Pooled vectors of all three splits, with what a head must know."""

    train: SplitData
    val: SplitData
    test: SplitData
    task: str
    num_classes: int
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Length of a pooled vector."""
        return int(self.train.x.shape[1])


def load_pooled(features: Ensemble, kind: str = "mean", device: str = "cpu") -> PooledData:
    """Load the pooled vectors of a store or ensemble, split by split.

    Raises
    ------
    SettingError
        If the targets are masks.
    DatasetError
        If a split is empty, or the training split knows only one class.
    FeatureError
        If a vector is not finite; the sample is named.
    """
    if features.task == "segmentation":
        raise SettingError(
            f"{features.name!r} of {features.dataset!r} has masks as targets; this head needs class labels."
        )
    splits = {name: _load_split(features, kind, name, device) for name in SPLITS}
    num_classes = len(features.class_names)
    notes = _check_classes(features, splits, num_classes)
    return PooledData(**splits, task=features.task, num_classes=num_classes, notes=tuple(notes))


def _load_split(features: Ensemble, kind: str, name: str, device: str) -> SplitData:
    import torch

    rows = np.flatnonzero(features.split == name)
    if not len(rows):
        counts = {
            str(s): int(n) for s, n in zip(*np.unique(features.split.astype(str), return_counts=True), strict=True)
        }
        raise DatasetError(
            f"dataset {features.dataset!r} has no {name!r} samples in the cache (it has {counts}); training "
            "needs train, val and test."
        )
    values = features.read_pooled(kind, rows).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise FeatureError(
            f"{len(bad)} feature vectors of {features.name!r} are not finite, the first is row {rows[bad[0]]} "
            f"({features.sample_ids[rows[bad[0]]]!r}); extract the store again."
        )
    labels = features.label[rows]
    y = torch.from_numpy(labels.astype(np.float32 if labels.ndim == 2 else np.int64))
    return SplitData(torch.from_numpy(values).to(device), y.to(device), features.sample_ids[rows])


def _check_classes(features: Ensemble, splits: dict[str, SplitData], num_classes: int) -> list[str]:
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
    unseen = sorted((present["val"] | present["test"]) - present["train"])
    if unseen:
        return [f"classes missing from train: {', '.join(names[c] for c in unseen)}"]
    return []


def _classes_of(data: SplitData) -> set[int]:
    if data.y.ndim == 2:
        return {int(c) for c in data.y.any(dim=0).nonzero().flatten().tolist()}
    return {int(c) for c in data.y.unique().tolist()}
