"""Which combination: the protocol on every subset of stored backbones, what each adds, and at what cost."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from embedcache.ensemble import Ensemble, open_ensemble
from embedcache.errors import SettingError
from embedcache.evaluation.metrics import PRIMARY, evaluate
from embedcache.evaluation.record import RunRecord
from embedcache.protocol import ProtocolResult, run_protocol
from embedcache.train_config import TrainConfig
from embedcache.trials import TrialOptions
from embedcache_stores.place import Location

MOST_EXHAUSTIVE: Final = 6
"""Backbones of which all subsets (63) are trained; more are searched greedily unless asked otherwise."""

Subset = frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Combination:
    """The protocol's result on one subset of backbones."""

    members: tuple[str, ...]
    metric: str
    val: float
    """Mean over seeds on the validation split: what a choice may look at."""
    test: float
    """Mean over seeds on the test split."""
    std: float
    """Standard deviation of that over seeds."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval over test samples, mean over seeds of its ends."""
    parameters_m: float
    """Millions of parameters of all backbones: extraction time grows with it."""
    bytes_per_sample: int
    """Bytes of the features that the head reads."""
    channels: int
    random_members: tuple[str, ...]
    pareto: bool = False
    """Whether no subset with fewer parameters has as good a validation score."""

    @property
    def name(self) -> str:
        """Members joined by ``+``."""
        return "+".join(self.members)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "name": self.name}


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one backbone adds."""

    member: str
    alone: float
    """Test score of it alone."""
    gain: float | None
    """Best test score with it minus the best without it, both chosen on validation; None for a single backbone."""
    shapley: float | None
    """Its Shapley value on the test score: the mean gain over all orders of adding backbones; all of them sum to the
    score of the whole minus that of no backbone. None where not all subsets were trained."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """All subsets that were trained."""

    dataset: str
    combinations: list[Combination]
    """Best validation score first."""
    contributions: list[Contribution]
    floor: float
    """Test score of a head that knows only how frequent the classes are: the value of no backbone at all."""
    exhaustive: bool
    records: list[RunRecord]
    split: Mapping[str, Any] | None = None
    """The named split in use; None is the stores' own."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form, without the records."""
        return {
            "dataset": self.dataset,
            "combinations": [c.to_json() for c in self.combinations],
            "contributions": [c.to_json() for c in self.contributions],
            "split": self.split,
            "floor": self.floor,
            "exhaustive": self.exhaustive,
        }


Train = Callable[[Ensemble], ProtocolResult]


def search_combinations(
    cache: Location,
    dataset: str,
    names: Sequence[str],
    config: TrainConfig,
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    *,
    trials: TrialOptions | None = None,
    greedy: bool | None = None,
    beam: int = 1,
    largest: int | None = None,
    split: str | None = None,
    device: str = "cpu",
    train: Train | None = None,
) -> SearchResult:
    """Run the protocol on subsets of stored backbones.

    Every result is kept as by ``train-head``, so a search that was interrupted goes on, and one more backbone costs
    only the subsets that have it.

    Parameters
    ----------
    cache, dataset
        Where the stores are.
    names
        Stores, two or more.
    config, seeds, out, trials, device
        As for :func:`embedcache.protocol.run_protocol`; each subset has trials of its own.
    greedy
        True: start with the best backbone and add the one that helps validation most, until none helps. None: where
        there are more than six, or a beam is asked for.
    beam
        How many of the best combinations of each size a greedy search goes on from; 1 is plain greedy.
    largest
        Backbones in a subset at most.
    split
        Name of a split; None is the stores' own.
    train
        Runs the protocol on one view; None is :func:`run_protocol` itself.

    Raises
    ------
    SettingError
        If there are fewer than two names, or one twice.
    SampleIdMismatchError, StoreNotFoundError
        If a store has other samples than the first, or not what the head reads; nothing is trained then.
    """
    if len(set(names)) != len(names):
        raise SettingError(f"a search names each store once, got {', '.join(names)}.")
    if len(names) < 2:
        raise SettingError("a search needs two stores or more; 'embedcache ls' lists what is there.")
    if largest is not None and largest < 1:
        raise SettingError(f"--largest must be at least 1, got {largest}.")
    if beam < 1:
        raise SettingError(f"--beam must be at least 1, got {beam}.")
    if beam > 1 and greedy is False:
        raise SettingError("--beam is for a greedy search; with --exhaustive every subset is trained anyway.")
    most = min(len(names), largest or len(names))
    if greedy is None:
        greedy = beam > 1 or len(names) > MOST_EXHAUSTIVE

    def protocol(view: Ensemble) -> ProtocolResult:
        return run_protocol(view, config, seeds, out, trials=trials, device=device)

    run = train or protocol
    done: dict[Subset, Combination] = {}
    records: list[RunRecord] = []

    def evaluated(members: Sequence[str]) -> Combination:
        key = frozenset(members)
        if key not in done:
            view = open_ensemble(cache, dataset, "+".join(members), split)
            result = run(view)
            records.extend(result.records)
            done[key] = _combination(view, config, result.records)
        return done[key]

    if most > 1:
        _refuse_what_cannot_be_joined(open_ensemble(cache, dataset, "+".join(names), split), config)
    singles = [evaluated([n]) for n in names]
    if greedy:
        grow(names, singles, most, evaluated, beam)
    else:
        for size in range(2, most + 1):
            for members in itertools.combinations(names, size):
                evaluated(members)
    whole = not greedy and most == len(names)
    floor = _floor(open_ensemble(cache, dataset, names[0], split))
    ranked = sorted(with_pareto(list(done.values())), key=lambda c: -c.val)
    return SearchResult(
        dataset=dataset,
        combinations=ranked,
        contributions=contributions(names, done, floor if whole else None),
        floor=floor,
        exhaustive=whole,
        records=records,
        split=records[0].split if records else None,
    )


def _refuse_what_cannot_be_joined(whole: Ensemble, config: TrainConfig) -> None:
    """Raise now what would otherwise come up in the middle of the search; opening all has compared their samples."""
    if whole.task == "segmentation":
        _ = whole.levels
    else:
        whole.read_pooled(config.pooled, np.zeros(0, dtype=np.int64))


def grow(
    names: Sequence[str],
    singles: Sequence[Combination],
    most: int,
    evaluated: Callable[[Sequence[str]], Combination],
    beam: int = 1,
) -> None:
    """Evaluate ever larger subsets, by one backbone more of the ``beam`` best; stop at ``most``, or where none gains.

    A gain is a validation score above the best of all smaller subsets; ties go to what is named first.
    """
    front = sorted(singles, key=lambda c: -c.val)[:beam]
    while len(front[0].members) < most:
        wider = {frozenset((*c.members, n)): None for c in front for n in names if n not in c.members}
        steps = [evaluated(sorted(members, key=list(names).index)) for members in wider]
        best, front = front[0], sorted(steps, key=lambda c: -c.val)[:beam]
        if front[0].val <= best.val:
            return


def _combination(view: Ensemble, config: TrainConfig, records: Sequence[RunRecord]) -> Combination:
    finished = [r for r in records if r.failed is None]
    if not finished:
        raise SettingError(f"every run on {view.name!r} was given up: {records[0].failed}.")
    metric = finished[0].metric
    scores = [r.score for r in finished]
    ends = [r.interval for r in finished if r.interval is not None]
    arrays = _arrays(view, config, finished[0])
    return Combination(
        members=tuple(s.name for s in view.stores),
        metric=metric,
        val=float(np.mean([r.val[metric] for r in finished])),
        test=float(np.mean(scores)),
        std=float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        interval=(float(np.mean([e[0] for e in ends])), float(np.mean([e[1] for e in ends]))) if ends else None,
        parameters_m=sum(
            float(s.manifest.attrs.get("backbone", {}).get("parameters_m", math.nan)) for s in view.stores
        ),
        bytes_per_sample=sum(s.spec(a).row_bytes for s in view.stores for a in arrays),
        channels=sum(int(s.spec(arrays[0]).shape[0]) for s in view.stores),
        random_members=view.random_members,
    )


def _arrays(view: Ensemble, config: TrainConfig, record: RunRecord) -> list[str]:
    if record.grids:
        return sorted({key.rpartition("/")[2] for key in record.grids})
    return [f"pooled_{config.pooled}"]


def with_pareto(combinations: Sequence[Combination]) -> list[Combination]:
    """Mark the front of validation score against parameters: what nothing cheaper, or as cheap, equals."""
    out = []
    for c in combinations:
        beaten = any(
            o is not c
            and (o.parameters_m <= c.parameters_m and o.val >= c.val)
            and (o.parameters_m < c.parameters_m or o.val > c.val)
            for o in combinations
        )
        out.append(Combination(**{**asdict(c), "pareto": not beaten}))
    return out


def contributions(names: Sequence[str], done: Mapping[Subset, Combination], floor: float | None) -> list[Contribution]:
    """Work out what each backbone adds; Shapley values where ``floor`` is given and all subsets are there."""
    out = []
    for name in names:
        with_it = [c for s, c in done.items() if name in s]
        without = [c for s, c in done.items() if name not in s]
        gain = None
        if without:
            best, rest = (max(cs, key=lambda c: c.val) for cs in (with_it, without))
            gain = best.test - rest.test
        value = None
        if floor is not None:
            value = shapley(name, names, {s: c.test for s, c in done.items()} | {frozenset(): floor})
        out.append(Contribution(member=name, alone=done[frozenset([name])].test, gain=gain, shapley=value))
    return out


def shapley(name: str, names: Sequence[str], values: Mapping[Subset, float]) -> float:
    """Shapley value (1953) of one player: its mean marginal value over all orders in which players may arrive.

    Parameters
    ----------
    name, names
        The player, and all players.
    values
        Worth of every subset, the empty one included.
    """
    n, others, total = len(names), [m for m in names if m != name], 0.0
    for size in range(n):
        weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
        for before in itertools.combinations(others, size):
            here = frozenset(before)
            total += weight * (values[here | {name}] - values[here])
    return total


def _floor(view: Ensemble) -> float:
    """Test score of the class frequencies of the training split, whatever the image."""
    if view.task == "segmentation":
        return _mask_floor(view)
    label, split = view.label, view.split
    target = label[split == "test"]
    train = label[split == "train"]
    if view.task == "multilabel":
        share = train.mean(axis=0)
    else:
        share = np.bincount(train, minlength=len(view.class_names)) / len(train)
    logits = np.tile(share - 0.5 if view.task == "multilabel" else share, (len(target), 1)).astype(np.float32)
    return evaluate(view.task, logits, target)[PRIMARY[view.task]]


def _mask_floor(view: Ensemble) -> float:
    from embedcache.evaluation.segmentation_metrics import SegmentationScores

    store = view.stores[0]
    ignore = store.manifest.attrs.get("ignore_index")
    counts = np.zeros(len(view.class_names), dtype=np.int64)
    for rows in _blocks(view, "train"):
        masks = store.read("mask", rows)
        counts += np.bincount(masks[(masks >= 0) & (masks != ignore)].ravel(), minlength=len(counts))
    scores = SegmentationScores(len(counts), ignore)
    for rows in _blocks(view, "test"):
        masks = store.read("mask", rows).astype(np.int64)
        scores.update(np.full(masks.shape, counts.argmax()), None, masks)
    return scores.compute()["miou"]


def _blocks(view: Ensemble, split: str) -> list[np.ndarray]:
    rows = np.flatnonzero(view.split == split)
    return [rows[i : i + 256] for i in range(0, len(rows), 256)]
