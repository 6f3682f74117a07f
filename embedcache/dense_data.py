"""Feature maps and masks for heads that label pixels, split by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.ensemble import Ensemble
from embedcache.errors import DatasetError, FeatureError, SettingError
from embedcache.feature_loader import Batch, FeatureLoader
from embedcache.loading import SPLITS, rows_of_split
from embedcache.train_config import TrainConfig, default_batch_size
from embedcache_stores.errors import StoreNotFoundError
from embedcache_stores.schema import LevelSpec

if TYPE_CHECKING:
    import torch

_SCALE_ROWS = 256
"""Training samples that decide a channel's mean and spread: with thousands of positions each, more change nothing."""

Maps = list[list["torch.Tensor"]]
"""Feature maps, member by member, level by level, finest first."""


@dataclass(frozen=True)
class DenseData:
    """Maps and masks of all three splits, with what a head must know."""

    features: Ensemble
    members: tuple[tuple[LevelSpec, ...], ...]
    """Each store's levels that the head reads."""
    rows: dict[str, npt.NDArray[np.int64]]
    class_pixels: npt.NDArray[np.int64]
    """``(class,)``: labelled pixels of the training split."""
    batch_size: int
    device: str
    budget_bytes: int | None
    standardise: bool = True
    notes: tuple[str, ...] = ()
    task: str = "segmentation"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_pixels)

    @property
    def ignore_index(self) -> int:
        """Value of pixels without a label; negative values never have one."""
        value = self.features.stores[0].manifest.attrs.get("ignore_index")
        return -1 if value is None else int(value)

    def loader(self, split: str, *, shuffle: bool = False, seed: int = 0) -> FeatureLoader:
        """Return batches of one split, each member on its native grid."""
        return FeatureLoader(
            self.features,
            [level.name for level in self.members[0]],
            self.rows[split],
            batch_size=self.batch_size,
            seed=seed,
            shuffle=shuffle,
            device=self.device,
            budget_bytes=self._budgets[split],
            native=True,
        )

    @cached_property
    def _budgets(self) -> dict[str, int | None]:
        """Memory for each split: all of it to the training split first, which is visited most."""
        if self.budget_bytes is None:
            return dict.fromkeys(SPLITS)
        left, out = self.budget_bytes, dict[str, int | None]()
        for name in SPLITS:
            need = len(self.rows[name]) * self.row_bytes
            out[name] = need if need <= left else 0
            left -= need if need <= left else 0
        return out

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample in memory."""
        one = FeatureLoader(
            self.features,
            [level.name for level in self.members[0]],
            self.rows["train"][:1],
            batch_size=1,
            native=True,
            mode="streaming",
        )
        return one.nbytes

    def maps(self, batch: Batch) -> Maps:
        """Arrange a batch for a head: standardised where the scale is known, float32."""
        return [
            [self._ready(batch.x[f"{store.name}/{level.name}"], store.name, level.name) for level in levels]
            for store, levels in zip(self.features.stores, self.members, strict=True)
        ]

    def _ready(self, maps: torch.Tensor, store: str, level: str) -> torch.Tensor:
        import torch

        x = maps.to(torch.float32)
        if self.scale is None:
            return x
        mean, factor = self.scale[f"{store}/{level}"]
        return x.sub_(mean).mul_(factor) if x is not maps else (x - mean) * factor

    @property
    def scale(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]] | None:
        """Mean and inverse spread of each channel, each ``(1, channel, 1, 1)``, by ``<store>/<level>``."""
        return self._scale if self.standardise else None

    @cached_property
    def _scale(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        import torch

        train = self.rows["train"]
        chosen = train[np.arange(min(len(train), _SCALE_ROWS)) * len(train) // min(len(train), _SCALE_ROWS)]
        out = {}
        for store, levels in zip(self.features.stores, self.members, strict=True):
            for level in levels:
                total = torch.zeros(level.channels, dtype=torch.float64)
                power, count = torch.zeros_like(total), 0
                for start in range(0, len(chosen), 32):
                    some = chosen[start : start + 32]
                    maps = torch.from_numpy(store.read(level.name, some).astype(np.float32))
                    _refuse_lost(maps, some, store.name, store.sample_ids)
                    total += maps.sum(dim=(0, 2, 3), dtype=torch.float64)
                    power += maps.square().sum(dim=(0, 2, 3), dtype=torch.float64)
                    count += maps.shape[0] * maps.shape[2] * maps.shape[3]
                mean = total / count
                std = (power / count - mean**2).clamp_min(0).sqrt()
                std = torch.where(std > 1e-6 * std.max().clamp_min(1e-12), std, torch.ones_like(std))
                wide = (1, -1, 1, 1)
                out[f"{store.name}/{level.name}"] = (
                    mean.to(torch.float32).view(wide).to(self.device),
                    (1 / std).to(torch.float32).view(wide).to(self.device),
                )
        return out

    def refuse_lost(self, batch: Batch) -> None:
        """Raise where features of a batch are not finite.

        Raises
        ------
        FeatureError
            Naming the row.
        """
        for key, maps in batch.x.items():
            _refuse_lost(maps, batch.rows, key, self.features.sample_ids)


def open_dense(
    features: Ensemble, config: TrainConfig, device: str = "cpu", *, budget_bytes: int | None = None
) -> DenseData:
    """Plan how a head on maps is fed; of the store only the masks are read.

    Parameters
    ----------
    features
        A store or ensemble with maps and masks.
    config
        Levels, batch size, standardisation.
    device
        Torch device to train on.
    budget_bytes
        Memory for maps that stay in memory; None lets the loader decide. What does not fit is streamed.

    Raises
    ------
    StoreNotFoundError
        If a member holds no maps, or not the levels asked for.
    DatasetError
        If a split is empty, no pixel of one is labelled, or labels are outside the classes.
    """
    members = tuple(_levels_of(store, config.levels) for store in features.stores)
    if len({len(m) for m in members}) > 1:
        raise SettingError(f"the members of {features.name!r} have different numbers of levels.")
    rows = {name: rows_of_split(features, name) for name in SPLITS}
    counts = {name: _count_pixels(features, rows[name], name) for name in SPLITS}
    names = features.class_names
    unseen = np.flatnonzero((counts["train"] == 0) & (counts["val"] + counts["test"] > 0))
    if (counts["train"] > 0).sum() < 2:
        only = names[int(counts["train"].argmax())]
        raise DatasetError(
            f"the training masks of {features.dataset!r} hold a single class, {only!r}; a head cannot learn from that."
        )
    return DenseData(
        features=features,
        members=members,
        rows=rows,
        class_pixels=counts["train"],
        batch_size=config.batch_size or default_batch_size(len(rows["train"]), maps=True),
        device=device,
        budget_bytes=budget_bytes,
        notes=(f"classes missing from train: {', '.join(names[c] for c in unseen)}",) if len(unseen) else (),
        standardise=config.standardise,
    )


def _levels_of(store: Any, wanted: Sequence[int] | None) -> tuple[LevelSpec, ...]:
    if not store.levels:
        raise StoreNotFoundError(
            f"store {store.name!r} holds no feature maps; extract it with --what both (and --tag or --rebuild)."
        )
    if not store.has("mask"):
        raise SettingError(f"store {store.name!r} holds no masks; heads on maps label pixels.")
    if wanted is None:
        return tuple(store.levels)
    if unknown := [i for i in wanted if not 0 <= i < len(store.levels)]:
        raise SettingError(
            f"level {unknown[0]} does not exist; {store.name!r} has levels 0 to {len(store.levels) - 1} (0 is the "
            "finest)."
        )
    return tuple(store.levels[i] for i in sorted(set(wanted)))


def _count_pixels(features: Ensemble, rows: npt.NDArray[np.int64], split: str) -> npt.NDArray[np.int64]:
    """Count labelled pixels of each class, ``(class,)``."""
    store, classes = features.stores[0], len(features.class_names)
    ignore = store.manifest.attrs.get("ignore_index")
    total = np.zeros(classes, dtype=np.int64)
    for start in range(0, len(rows), 256):
        masks = store.read("mask", rows[start : start + 256])
        labelled = masks[(masks >= 0) if ignore is None else (masks >= 0) & (masks != ignore)]
        counted = np.bincount(labelled.ravel(), minlength=classes)
        if len(counted) > classes:
            raise DatasetError(
                f"label {len(counted) - 1} in the masks of {features.dataset!r} is outside its {classes} classes."
            )
        total += counted
    if not total.any():
        raise DatasetError(
            f"every pixel of the {split!r} masks of {features.dataset!r} is ignored; a head cannot learn from that."
        )
    return total


def _refuse_lost(maps: torch.Tensor, rows: npt.NDArray[np.int64], where: str, sample_ids: npt.NDArray[Any]) -> None:
    lost = (~maps.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if lost:
        raise FeatureError(
            f"feature maps of {where!r} are not finite, the first is row {rows[lost[0]]} "
            f"({sample_ids[rows[lost[0]]]!r}); extract the store again."
        )
