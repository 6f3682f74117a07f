"""Cached equals live: the same head, data and seed, from the store and with the frozen backbone in the loop.

Two things are measured against stated bounds.

**Features**: no value may be farther from the live one than :mod:`embedcache.rounding` explains.

**Logits.** Training amplifies roundings, by how much depends on the head, the data and the number of steps (an AdamW
step is the same size however small the gradient is, so a gradient near 0 may change its sign). No number fits all, so
it is measured: the head is trained ``CONTROLS`` = 3 times more on the cached features with other rounding errors,
drawn evenly from -1..1 times that bound (a 64th of it for arithmetic), which is about what storage and arithmetic do.
Had they fallen so, logits would differ by that much. Cached and live must not differ by more than ``AMPLIFICATION`` = 4
times the largest of the three. One control is not enough: for a small convolutional head, eight were seen to differ by
a factor of ten, for UPerNet by two.

Features from other images, bytes that were tampered with, another preprocessing or weights exceed the first bound by
orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from embedcache.dense_data import DenseData
from embedcache.ensemble import Ensemble
from embedcache.errors import SettingError
from embedcache.extraction_plan import ExtractionPlan
from embedcache.heads._registry import get_head
from embedcache.live_features import LiveEncoder, ValuesStore
from embedcache.loading import SPLITS, rows_of_split
from embedcache.rounding import Deviation, RoundingBound, compare
from embedcache.train_config import TrainConfig
from embedcache.trained_head import head_from_state
from embedcache.training import TrainResult, head_for, load_data, train_head
from embedcache_stores.feature_store import FeatureStore

AMPLIFICATION: Final = 4.0
CONTROLS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was compared, and what came of it."""

    dataset: str
    features: str
    head: str
    seed: int
    rows: dict[str, int]
    epochs: int
    """Epochs trained; fewer than asked where the roundings chose different epochs as the best."""
    images_encoded: int
    """Images that went through a backbone, each as often as it did."""
    features_deviate: dict[str, Deviation]
    """By ``<store>/<array>``."""
    logits_deviate: float
    """Largest difference of test logits, cached and live, in standard deviations of the live logits."""
    logits_bound: float
    changed: float
    """Share of test samples (pixels) whose predicted class (or any class, of several) is another."""
    metric: str
    cached: float
    live: float
    notes: tuple[str, ...]

    @property
    def features_exceed(self) -> bool:
        """Whether any value is farther from the live one than rounding explains."""
        return any(not d.of_bound <= 1 for d in self.features_deviate.values())

    @property
    def logits_exceed(self) -> bool:
        """Whether the trained heads differ by more than rounding explains."""
        return not self.logits_deviate <= self.logits_bound

    @property
    def holds(self) -> bool:
        """Whether cached equals live within the bounds."""
        return not self.features_exceed and not self.logits_exceed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            **asdict(self),
            "features_exceed": self.features_exceed,
            "logits_exceed": self.logits_exceed,
            "holds": self.holds,
        }


class Part(Ensemble):
    """An ensemble of which only some rows are in a split."""

    def __init__(self, stores: Sequence[FeatureStore], rows: npt.NDArray[np.int64]) -> None:
        """Keep the splits of these rows; the others are ``left out``."""
        super().__init__(stores)
        self._rows = rows

    @cached_property
    def split(self) -> npt.NDArray[Any]:
        """Split of each row."""
        whole = Ensemble(self.stores).split
        kept = np.full(len(whole), "left out", dtype=object)
        kept[self._rows] = whole[self._rows]
        return kept


def certify(
    features: Ensemble,
    plans: Sequence[ExtractionPlan],
    config: TrainConfig,
    seed: int = 0,
    *,
    limit: int = 200,
    device: str = "cpu",
    on_step: Callable[[str], None] | None = None,
) -> Certificate:
    """Train a head from the cache and with the backbones in the loop, and compare.

    The live side holds no feature: every batch of every epoch is encoded from the images when the training asks for it.
    A head that is computed at once (``logistic``) sees every image once, and holds what it needs at once.

    Parameters
    ----------
    features
        A store or ensemble.
    plans
        Of :func:`embedcache.verification.plan_again`, one a store, in order.
    config
        Head and hyperparameters; ``patience`` must be 0.
    seed
        Of the run.
    limit
        Rows in all, evenly spaced in each split.
    device
        Torch device of the heads; the plans say where backbones run.
    on_step
        Told what is done next.

    Raises
    ------
    SettingError
        For ``knn``, which trains nothing, or too few rows.
    """
    spec = head_for(features, config)
    if spec.name == "knn":
        raise SettingError("'knn' trains nothing and votes jump: certify a head that learns, such as linear.")
    tell = on_step or (lambda text: None)
    rows = choose_rows(features, limit)
    arrays = _arrays(features, config)
    encoders = [LiveEncoder(plan, arrays) for plan in plans]
    live_stores = [ValuesStore(s.place, arrays, e.take) for s, e in zip(features.stores, encoders, strict=True)]
    cached, live = Part(features.stores, rows), Part(live_stores, rows)
    tell(f"comparing the features of {len(rows)} rows with live ones")
    bounds = [RoundingBound(store, plan) for store, plan in zip(features.stores, plans, strict=True)]
    deviations = {
        f"{store.name}/{name}": compare(store, now, name, rows, bound)
        for store, now, bound in zip(features.stores, live_stores, bounds, strict=True)
        for name in arrays
    }
    sides = {"cached": cached, "live": live}
    for number in range(CONTROLS):
        stores = [
            ValuesStore(s.place, arrays, b.moved(s, number)) for s, b in zip(features.stores, bounds, strict=True)
        ]
        sides[f"control {number + 1}"] = Part(stores, rows)
    results, epochs = _train(sides, config, seed, device, tell)
    tell("comparing the test logits")
    differ, changed = _logits(sides, results, config.with_(epochs=epochs), device)
    stale = sum(len(set(plan.stale) & set(rows.tolist())) for plan in plans)
    metric = "miou" if features.task == "segmentation" else "f1_micro" if features.task == "multilabel" else "accuracy"
    return Certificate(
        dataset=features.dataset,
        features=features.name,
        head=config.head,
        seed=seed,
        rows={name: len(rows_of_split(cached, name)) for name in SPLITS},
        epochs=epochs,
        images_encoded=sum(e.encoded for e in encoders),
        features_deviate=deviations,
        logits_deviate=differ["cached"],
        logits_bound=AMPLIFICATION * max(v for k, v in differ.items() if k.startswith("control")),
        changed=changed,
        metric=metric,
        cached=results["cached"].test[metric],
        live=results["live"].test[metric],
        notes=(f"{stale} of the images changed since they were encoded",) if stale else (),
    )


def choose_rows(features: Ensemble, limit: int) -> npt.NDArray[np.int64]:
    """Pick about ``limit`` rows, evenly spaced in each split, each split with its share and at least two."""
    if limit < 6:
        raise SettingError(f"--limit must be at least 6, two rows a split, got {limit}.")
    every = [rows_of_split(features, name) for name in SPLITS]
    total = sum(len(r) for r in every)
    chosen = []
    for rows in every:
        count = min(len(rows), max(2, round(limit * len(rows) / total))) if limit < total else len(rows)
        chosen.append(rows[np.arange(count) * len(rows) // count])
    return np.sort(np.concatenate(chosen))


def _arrays(features: Ensemble, config: TrainConfig) -> list[str]:
    """Return the arrays that the head reads, after the checks that loading makes."""
    data = load_data(features, config, budget_bytes=0)
    members = getattr(data, "members", None)
    return [level.name for level in members[0]] if members else [f"pooled_{config.pooled}"]


def _train(
    sides: dict[str, Part], config: TrainConfig, seed: int, device: str, tell: Callable[[str], None]
) -> tuple[dict[str, TrainResult], int]:
    """Train every side until all agree on the best epoch: heads of different epochs cannot be compared."""
    epochs = config.epochs
    fitted = get_head(config.head).fit is not None
    while True:
        results = {}
        for name, side in sides.items():
            tell(f"training {name}, {epochs} epochs")
            data = load_data(side, config, device, budget_bytes=None if fitted else 0)
            results[name] = train_head(data, config.with_(epochs=epochs), seed)
            if lost := results[name].failed:
                raise SettingError(f"the {name} run was given up: {lost}.")
        best = {r.best_epoch for r in results.values()}
        if len(best) == 1:
            return results, epochs
        epochs = min(best)


def _logits(
    sides: dict[str, Part], results: dict[str, TrainResult], config: TrainConfig, device: str
) -> tuple[dict[str, float], float]:
    """Return how far each side's test logits are from the reference (in its spread), and how many decisions changed.

    Cached is compared with live, the controls with cached.
    """
    count, total, power = 0, 0.0, 0.0
    most = {name: 0.0 for name in sides if name != "live"}
    changed, decisions = 0, 0
    multi = sides["live"].task == "multilabel"
    for each in zip(*(_test_logits(sides[n], results[n], config, device) for n in sides), strict=True):
        by_name: dict[str, torch.Tensor] = dict(zip(sides, each, strict=True))
        live, cached = by_name["live"].double(), by_name["cached"].double()
        total, power, count = total + float(live.sum()), power + float((live**2).sum()), count + live.numel()
        for name, so_far in most.items():
            against = live if name == "cached" else cached
            most[name] = max(so_far, float((by_name[name].double() - against).abs().max()))
        flips = ((live > 0) != (cached > 0)).any(1) if multi else live.argmax(1) != cached.argmax(1)
        changed, decisions = changed + int(flips.sum()), decisions + flips.numel()
    spread = max(np.sqrt(max(power / count - (total / count) ** 2, 0.0)), 1e-12)
    return {name: value / spread for name, value in most.items()}, changed / decisions


def _test_logits(features: Ensemble, result: TrainResult, config: TrainConfig, device: str) -> Iterator[torch.Tensor]:
    """Yield ``(b, class)`` all at once, or ``(b, class, y, x)`` of batches whose maps are read now."""
    if result.test_logits is not None:
        yield torch.from_numpy(result.test_logits)
        return
    data = load_data(features, config, device, budget_bytes=0)
    assert isinstance(data, DenseData)
    names = [s.name for s in features.stores]
    head = head_from_state(config, result.state, names, features.class_names, members=data.members, device=device)
    for batch in data.loader("test").epoch(0):
        maps = [[batch.x[f"{n}/{x.name}"] for x in levels] for n, levels in zip(names, data.members, strict=True)]
        assert batch.y is not None
        yield head.map_logits(maps, batch.y.shape[1:])
