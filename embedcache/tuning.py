"""Which encoding of features is the smallest that a head does not notice: measured on a pilot, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt
import torch

from embedcache.ensemble import Ensemble
from embedcache.errors import DatasetError, SettingError
from embedcache.evaluation.metrics import PRIMARY, primary_scores
from embedcache.loading import SPLITS, PooledData, Vectors
from embedcache.train_config import Run, TrainConfig
from embedcache.training import train
from embedcache_stores.chunks import ArrayFiles
from embedcache_stores.encodings import DTYPES, decode, encode
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.schema import ArraySpec, Compression, StoreSpec

_RESAMPLES: Final = 500
_POSITIONS: Final = 16
"""Positions taken from each map where the targets are masks."""


@dataclass(frozen=True, kw_only=True)
class EncodingResult:
    """One way to store features, against float32."""

    dtype: str
    compression: str
    bytes_per_sample: float
    error: float
    """Relative root mean square error of the values."""
    saturated: int
    metric: str
    mean: float
    """Test metric, mean over seeds."""
    difference: float
    """Test metric minus that of float32, mean over seeds."""
    low: float
    high: float
    """95 % interval of the difference: seeds and test samples resampled together."""
    margin: float
    """Half the 95 % interval of float32's own metric: what this pilot cannot tell from no difference."""

    @property
    def equivalent(self) -> bool:
        """Whether the whole interval of the difference lies within the margin, and nothing saturated."""
        return self.saturated == 0 and -self.margin <= self.low and self.high <= self.margin

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "equivalent": self.equivalent}


def tune_store(
    pilot: FeatureStore,
    seeds: Sequence[int],
    config: TrainConfig,
    on_result: Callable[[EncodingResult], None] | None = None,
) -> list[EncodingResult]:
    """Train a head on a pilot's features in every encoding, and weigh bytes against the metric.

    What the head sees: pooled vectors; beside them, or alone, the means of each feature map; where the targets are
    masks, the features at random positions, one class each. Compression loses nothing, so it is only weighed.

    Parameters
    ----------
    pilot
        A store of float32 features with train, val and test.
    seeds
        Heads per encoding; every encoding gets the same.
    config
        Head and hyperparameters.
    on_result
        Called with each result.

    Raises
    ------
    SettingError
        If the pilot is not stored as float32.
    DatasetError
        If a split is empty.
    """
    arrays = [a for a in pilot.manifest.arrays if a.name != "mask"]
    if any(a.dtype != "float32" for a in arrays):
        raise SettingError(f"store {pilot.name!r} is not float32; what it lost already cannot be measured.")
    sizes = {(d, c): _bytes_per_sample(pilot, d, c) for d in DTYPES for c in get_args(Compression)}
    base: tuple[npt.NDArray[Any], float] | None = None
    results = []
    for dtype in ("float32", *(d for d in DTYPES if d != "float32")):
        data, error, saturated = _probe_data(pilot, dtype)
        scores = _resampled_scores(data, config, seeds)
        if base is None:
            base = scores, float(np.diff(np.quantile(scores, (0.025, 0.975)))[0]) / 2
        difference = scores - base[0]
        for compression in get_args(Compression):
            low, high = np.quantile(difference, (0.025, 0.975))
            result = EncodingResult(
                dtype=dtype,
                compression=compression,
                bytes_per_sample=sizes[dtype, compression],
                error=error,
                saturated=saturated,
                metric=PRIMARY[data.task],
                mean=float(scores.mean()),
                difference=float(difference.mean()),
                low=float(low),
                high=float(high),
                margin=base[1],
            )
            results.append(result)
            if on_result is not None:
                on_result(result)
    return results


def recommended(results: Sequence[EncodingResult], *, compressed: bool = False) -> EncodingResult:
    """Return the smallest equivalent encoding; uncompressed unless asked, since compression costs reading speed."""
    fitting = [r for r in results if r.equivalent and (compressed or r.compression == "none")]
    return min(fitting, key=lambda r: r.bytes_per_sample)


def _encoded_groups(pilot: FeatureStore, spec: ArraySpec, dtype: str) -> Iterator[tuple[slice, Any, ArraySpec]]:
    """Yield each row group of an array, encoded."""
    on_disk, encoding = DTYPES[dtype]
    other = ArraySpec(name=spec.name, dims=spec.dims, shape=spec.shape, dtype=on_disk, encoding=encoding)
    for group in range(pilot.manifest.groups):
        rows = pilot.manifest.group_rows(group)
        yield rows, encode(pilot.read(spec.name, np.arange(rows.start, rows.stop)), other), other


def _bytes_per_sample(pilot: FeatureStore, dtype: str, compression: Compression) -> float:
    """Bytes on disk a sample, from encoding the pilot as the writer would."""
    m, total = pilot.manifest, 0
    on_disk, encoding = DTYPES[dtype]
    for spec in (a for a in m.arrays if a.name != "mask"):
        other = ArraySpec(name=spec.name, dims=spec.dims, shape=spec.shape, dtype=on_disk, encoding=encoding)
        store = StoreSpec(
            sample_ids=tuple(str(i) for i in range(m.rows)),
            arrays=(other,),
            columns=(),
            provenance={},
            rows_per_group=m.rows_per_group,
            compression=compression,
        )
        files = ArrayFiles(other, store)
        for group, (rows, encoded, _) in enumerate(_encoded_groups(pilot, spec, dtype)):
            whole = sum(len(part) for part in files.of_group(group, encoded.data)[1])
            # The last row group is filled up on disk; that is no property of the encoding.
            total += whole * (rows.stop - rows.start) // m.rows_per_group if compression == "none" else whole
            total += encoded.scale.nbytes if encoded.scale is not None else 0
    return total / m.rows


def _probe_data(pilot: FeatureStore, dtype: str) -> tuple[PooledData, float, int]:
    """Make what the head sees out of decoded features, with the relative error and the saturated values."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    wrong = power = 0.0
    saturated = 0
    positions = _positions(pilot)
    for spec in (a for a in pilot.manifest.arrays if a.name != "mask"):
        for rows, encoded, other in _encoded_groups(pilot, spec, dtype):
            values = decode(encoded.data, other, encoded.scale).astype(np.float32)
            live = pilot.read(spec.name, np.arange(rows.start, rows.stop))
            ok = np.isfinite(live)
            wrong += float(((values - live)[ok].astype(np.float64) ** 2).sum())
            power += float((live[ok].astype(np.float64) ** 2).sum())
            saturated += encoded.saturated
            if positions is not None and values.ndim == 4:
                parts.setdefault(spec.name, []).append(_at(values, positions[rows]))
            elif positions is None:
                parts.setdefault(spec.name, []).append(values.reshape(*values.shape[:2], -1).mean(axis=2))
    x = np.concatenate([np.concatenate(groups) for groups in parts.values()], axis=-1)
    return _split(pilot, x, positions), float(np.sqrt(wrong / max(power, 1e-30))), saturated


def _positions(pilot: FeatureStore) -> npt.NDArray[np.float64] | None:
    """Random positions in each mask, ``(row, position, 2)`` in 0..1; None where the targets are not masks."""
    if not pilot.has("mask"):
        return None
    return np.random.default_rng(0).random((pilot.rows, _POSITIONS, 2))


def _at(maps: npt.NDArray[Any], where: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Take features at positions: ``(row, channel, y, x)`` -> ``(row, position, channel)``."""
    y = (where[..., 0] * maps.shape[2]).astype(int)
    x = (where[..., 1] * maps.shape[3]).astype(int)
    return np.stack([m[:, a, b].T for m, a, b in zip(maps, y, x, strict=True)])


def _split(pilot: FeatureStore, x: npt.NDArray[Any], positions: npt.NDArray[np.float64] | None) -> PooledData:
    view = Ensemble([pilot])
    if positions is None:
        task, label = view.task, view.label
        target: npt.NDArray[Any] = label.astype(np.float32 if label.ndim == 2 else np.int64)
    else:
        task = "classification"
        masks = pilot.read("mask", np.arange(pilot.rows))
        target = _at(masks[:, None], positions)[..., 0].astype(np.int64)
    ignore = pilot.manifest.attrs.get("ignore_index")
    splits: dict[str, Vectors] = {}
    for name in SPLITS:
        rows = np.flatnonzero(pilot.split == name)
        features, y, ids = x[rows], target[rows], pilot.sample_ids[rows]
        if positions is not None:
            keep = (y >= 0) & (y != (-1 if ignore is None else ignore))
            ids, features, y = np.repeat(ids, keep.sum(axis=1)), features[keep], y[keep]
        if not len(y):
            raise DatasetError(f"the pilot has no {name!r} samples; take more with --limit.")
        splits[name] = Vectors.held(torch.from_numpy(features), torch.from_numpy(y), ids)
    return PooledData(
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        task=task,
        num_classes=len(view.class_names),
    )


def _resampled_scores(data: PooledData, config: TrainConfig, seeds: Sequence[int]) -> npt.NDArray[np.float64]:
    """Test metric in many resamples of seeds and test samples; equal resamples for every encoding, so they pair up."""
    logits = []
    for result in train(data, [Run(config, seed) for seed in seeds]):
        if result.test_logits is None:
            raise SettingError(f"a head of the pilot could not be trained: {result.failed}.")
        logits.append(result.test_logits)
    stacked = np.stack(logits)
    rng, target = np.random.default_rng(0), data.test.y.numpy()
    groups = np.unique(data.test.sample_ids, return_inverse=True)[1]  # positions of one mask stay together
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    scores = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        taken = rng.integers(0, len(seeds), len(seeds))
        each = primary_scores(data.task, stacked[taken][:, drawn], target[drawn])
        scores.append(float(each.mean()))
    return np.array(scores)
