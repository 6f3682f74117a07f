"""Applies a trained head to stored features, or to images with the backbones in the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedcache.dense_data import Maps
from embedcache.ensemble import Ensemble, open_ensemble
from embedcache.errors import DatasetError, SampleError, SettingError
from embedcache.evaluation.record import RunRecord
from embedcache.extraction_plan import ExtractionPlan
from embedcache.feature_loader import FeatureLoader
from embedcache.live_features import Arrays, LiveEncoder, difference, stream
from embedcache.preprocessing import resize_mask
from embedcache.rerun import open_recorded
from embedcache.train_config import TrainConfig, channel_range, default_batch_size
from embedcache.trained_head import TrainedHead
from embedcache_stores.errors import StoreNotFoundError
from embedcache_stores.place import Location
from embedcache_stores.schema import SKIPPED

_VECTORS_BYTES = 256 << 20


@dataclass(frozen=True)
class Answers:
    """What a head says of some samples."""

    sample_ids: list[str]
    splits: list[str]
    logits: torch.Tensor
    """``(b, class)``, or ``(b, class, y, x)``; float32 on the CPU."""
    targets: list[Any]
    """Class index, 0/1 per class, or mask on the grid of the logits; None where it is not known."""


def features_for(
    record: RunRecord,
    head: TrainedHead,
    cache: Location,
    dataset: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Ensemble:
    """Open the features that a head was trained on, or another dataset's from the same backbones.

    ``on_note`` is told where the record's own stores are not there to compare the other dataset's with.

    Raises
    ------
    SettingError
        If the record's own stores changed, or the other dataset's were made by other weights or otherwise, or have
        other channels or grids.
    StoreNotFoundError
        If there are none.
    """
    if dataset is None or dataset == record.dataset:
        return open_recorded(record, cache)
    features = open_ensemble(cache, dataset, record.features)
    if head.reads_maps:
        for store, levels in zip(features.stores, head.members, strict=True):
            has = {x.name: [x.channels, x.height, x.width] for x in store.levels}
            for level in levels:
                wanted = [level.channels, level.height, level.width]
                if has.get(level.name) != wanted:
                    raise SettingError(
                        f"the head reads {level.name} of {store.name!r} as {wanted} (channels, height, width); store "
                        f"{store.name!r} of {dataset!r} has {has.get(level.name, 'no such level')}. Extract it with "
                        "the same --input-size and --what."
                    )
    else:
        found = {k: [v.start, v.stop] for k, v in _channels(features, head.config).items()}
        if found != {k: list(v) for k, v in record.channels.items()}:
            raise SettingError(
                f"the head reads channels {dict(record.channels)} of {record.features!r}; the stores of {dataset!r} "
                f"have {found}."
            )
    _refuse_other_recipe(record, features, cache, on_note)
    return features


def rows_of(split: Sequence[str] | npt.NDArray[Any], wanted: str, name: str) -> npt.NDArray[np.int64]:
    """Return the rows of one split, or of ``all`` but skipped ones.

    Raises
    ------
    DatasetError
        If there are none.
    """
    splits = np.asarray(split, dtype=object)
    rows = np.flatnonzero(splits != SKIPPED if wanted == "all" else splits == wanted)
    if not len(rows):
        there = sorted({str(s) for s in splits})
        raise DatasetError(f"{name!r} has no {wanted!r} samples; it has {', '.join(there) or 'none at all'}.")
    return rows


def answer_stored(
    record: RunRecord, head: TrainedHead, features: Ensemble, rows: npt.NDArray[np.int64]
) -> Iterator[Answers]:
    """Yield what a head says of rows of a store or ensemble, in order.

    Batches are those in which training scored, so that on the same machine the answers are the same.
    """
    labelled = knows_targets(record, features.task, features.class_names)
    ids, splits = features.sample_ids, features.split
    for some, logits in logits_of(record, head, features, rows):
        targets: list[Any] = [None] * len(some)
        if labelled and head.reads_maps:
            targets = list(features.stores[0].read("mask", some))
        elif labelled:
            targets = list(features.label[some])
        yield Answers([str(i) for i in ids[some]], [str(s) for s in splits[some]], logits.cpu(), targets)


def logits_of(
    record: RunRecord, head: TrainedHead, features: Ensemble, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
    """Yield rows and logits, batch by batch."""
    if not head.reads_maps:
        step = max(1, _VECTORS_BYTES // (4 * max(head.channels, len(record.class_names))))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            yield some, head.logits(_vectors(head.config, features.read_pooled(head.config.pooled, some)))
        return
    size = grid_of(features.stores[0].manifest.provenance)
    batch = head.config.batch_size or default_batch_size(int(record.samples["train"]), maps=True)
    names = [level.name for level in head.members[0]]
    loader = FeatureLoader(
        features, names, rows, batch_size=batch, shuffle=False, device=head.device, mode="streaming", native=True
    )
    for read in loader.epoch(0):
        maps = [[read.x[f"{store.name}/{name}"] for name in names] for store in features.stores]
        lost = [int(r) for m in maps for x in m for r in read.rows[(~x.isfinite().flatten(1).all(1)).cpu().numpy()]]
        if lost:
            raise SettingError(f"feature maps of row {lost[0]} ({features.sample_ids[lost[0]]!r}) are not finite.")
        yield read.rows, head.map_logits(maps, size)


def answer_images(
    record: RunRecord, head: TrainedHead, plans: Sequence[ExtractionPlan], rows: Sequence[int]
) -> Iterator[Answers | SampleError]:
    """Yield what a head says of images, encoded here; an image that cannot be read is yielded as its error.

    Parameters
    ----------
    record, head
        Of :func:`embedcache.trained_head.load_head`.
    plans
        Of :func:`embedcache.live_features.plan_like`, one a store that the head reads, in order.
    rows
        Of the plans.
    """
    config = head.config
    arrays = [[x.name for x in levels] for levels in head.members] or [[f"pooled_{config.pooled}"]] * len(plans)
    encoders = [LiveEncoder(plan, names) for plan, names in zip(plans, arrays, strict=True)]
    source, size = plans[0].source, grid_of(plans[0].spec.provenance)
    labelled = knows_targets(record, source.info.task, source.info.class_names)
    for piece, read, encoded in stream(encoders, rows, max(p.batch_size for p in plans)):
        bad = {i: r for one in read for i, r in enumerate(one) if isinstance(r, SampleError)}
        yield from bad.values()
        good = [i for i in range(len(piece)) if i not in bad]
        if not good:
            continue
        logits = head.map_logits(_maps(encoded, arrays, good), size) if head.reads_maps else None
        if logits is None:
            joined = np.concatenate([e[a[0]][good] for e, a in zip(encoded, arrays, strict=True)], axis=1)
            logits = head.logits(_vectors(config, joined))
        targets: list[Any] = [None if isinstance(r := read[0][i], SampleError) else r.target for i in good]
        if not labelled:
            targets = [None] * len(good)
        elif head.reads_maps:
            targets = [None if t is None else resize_mask(np.asarray(t), size[0]) for t in targets]
        indices = [plans[0].indices[piece[i]] for i in good]
        yield Answers(
            [source.sample_ids[i] for i in indices], [source.splits[i] for i in indices], logits.cpu(), targets
        )


def knows_targets(record: RunRecord, task: str, class_names: Sequence[str]) -> bool:
    """Whether the targets at hand are of the classes that the head learned."""
    return task == record.task and list(class_names) == list(record.class_names)


def grid_of(provenance: Any) -> tuple[int, int]:
    """Height and width of the masks that belong to a store: its input's."""
    size = int(provenance["preprocessing"]["input_size"])
    return size, size


def _maps(encoded: Sequence[Arrays], arrays: Sequence[Sequence[str]], rows: Sequence[int]) -> Maps:
    return [[torch.from_numpy(e[name][rows]) for name in names] for e, names in zip(encoded, arrays, strict=True)]


def _vectors(config: TrainConfig, joined: npt.NDArray[Any]) -> torch.Tensor:
    here = channel_range(config.channels) if config.channels else slice(None)
    return torch.from_numpy(np.ascontiguousarray(joined[:, here], dtype=np.float32))


def _channels(features: Ensemble, config: TrainConfig) -> dict[str, slice]:
    for store in features.stores:
        if config.pooled not in store.manifest.pooled:
            raise StoreNotFoundError(
                f"the head reads pooled vectors {config.pooled!r}; store {store.name!r} of {features.dataset!r} has "
                "none."
            )
    return features.channels(f"pooled_{config.pooled}")


def _refuse_other_recipe(
    record: RunRecord, features: Ensemble, cache: Location, on_note: Callable[[str], None] | None
) -> None:
    """Compare with the record's own stores, where they are at hand: equal shapes are no proof of equal features."""
    try:
        own = open_recorded(record, cache)
    except (StoreNotFoundError, SettingError) as error:
        if on_note is not None:
            on_note(
                f"whether {features.dataset!r} was encoded as {record.dataset!r}, on which the head was trained, is "
                f"not known, only that shapes are equal: {error}"
            )
        return
    for then, now in zip(own.stores, features.stores, strict=True):
        if differ := difference(then.manifest.provenance, now.manifest.provenance):
            what, x, y = differ
            raise SettingError(
                f"the head was trained on store {then.name!r} of {own.dataset!r}, whose {what} was {x}; that of "
                f"{features.dataset!r} is {y}: they are not the same features."
            )
