"""Makes splits of stored samples: by chance, by class, by blocks of ground, by regions left out; and label budgets.

Nothing is extracted, and no store is touched: a split is a small file of sample ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from embedcache.earth import blocks, grid_regions, kmeans_regions, nearest_km
from embedcache.ensemble import Ensemble
from embedcache.errors import DatasetError, SettingError
from embedcache.named_split import PARTS, UNUSED, NamedSplit
from embedcache.split_tables import read_parts, read_regions
from embedcache.stratification import Rows, budget_rows, random_parts, stratified_parts, units_parts
from embedcache_stores.schema import SKIPPED

Method = Literal["random", "stratified", "blocks", "regions", "stored", "file"]
NAMES: Final = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How a split is made; flags of ``embedcache split`` map to the fields one to one."""

    by: Method = "stratified"
    seed: int = 0
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Of train, val and test."""
    block_km: float | None = None
    """Side of a block of ground."""
    buffer_km: float = 0.0
    """Training samples nearer than this to a test or validation sample, and validation samples nearer to a test sample,
    take no part."""
    regions: str | None = None
    """``kmeans:K``, ``grid:DEGREES``, or a CSV with ``sample_id`` and ``region``."""
    test_regions: tuple[str, ...] = ()
    """Regions to leave out for test; none: some by chance, until the fraction is reached."""
    val_regions: tuple[str, ...] = ()
    """Regions for validation; none: a stratified share of the training regions."""
    file: str | None = None
    """For ``by="file"``: a CSV with ``sample_id`` and ``split``, or a GEO-Bench partition."""
    train_fraction: float | None = None
    per_class: int | None = None

    def __post_init__(self) -> None:
        if self.by not in get_args(Method):
            raise SettingError(f"--by must be one of {', '.join(get_args(Method))}, got {self.by!r}.")
        if self.seed < 0:
            raise SettingError(f"--seed must not be below 0, got {self.seed}.")
        if len(self.fractions) != 3 or not all(0 < f < 1 for f in self.fractions):
            raise SettingError(f"--fractions are three numbers above 0 for train, val and test, got {self.fractions}.")
        if not math.isclose(sum(self.fractions), 1, abs_tol=1e-6):
            raise SettingError(f"--fractions must sum to 1, got {self.fractions}, which is {sum(self.fractions):g}.")
        if not (self.buffer_km >= 0 and math.isfinite(self.buffer_km)):
            raise SettingError(f"--buffer-km must be a number not below 0, got {self.buffer_km}.")
        needs = {"blocks": "block_km", "regions": "regions", "file": "file"}
        for method, name in needs.items():
            flag = "--" + name.replace("_", "-")
            if self.by == method and getattr(self, name) is None:
                raise SettingError(f"--by {method} needs {flag}.")
            if self.by != method and getattr(self, name) is not None:
                raise SettingError(f"{flag} is for --by {method}, not for --by {self.by}.")
        if self.by != "regions" and (self.test_regions or self.val_regions):
            raise SettingError(f"--test-region and --val-region are for --by regions, not for --by {self.by}.")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form, without what says nothing."""
        out: dict[str, Any] = {"by": self.by, "seed": self.seed}
        if self.by not in {"stored", "file"}:
            out["fractions"] = list(self.fractions)
        for name in ("block_km", "regions", "file", "train_fraction", "per_class"):
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        if self.buffer_km:
            out["buffer_km"] = self.buffer_km
        for name in ("test_regions", "val_regions"):
            if getattr(self, name):
                out[name] = list(getattr(self, name))
        return out


@dataclass(frozen=True)
class Samples:
    """What a split may go by; rows whose images were skipped are left out."""

    view: Ensemble
    rows: Rows
    """Of the stores."""

    @property
    def ids(self) -> list[str]:
        """Sample ids, in row order."""
        return [str(i) for i in self.view.sample_ids[self.rows]]

    @cached_property
    def label(self) -> npt.NDArray[Any]:
        """``(n,)`` class indices, or ``(n, class)`` of 0/1: of masks, which classes are in the image."""
        if self.view.task != "segmentation":
            return self.view.label[self.rows]
        store, classes = self.view.stores[0], len(self.view.class_names)
        ignore = store.manifest.attrs.get("ignore_index")
        there = np.zeros((len(self.rows), classes), dtype=bool)
        for start in range(0, len(self.rows), 256):
            masks = store.read("mask", self.rows[start : start + 256])
            for at, mask in enumerate(masks):
                found = np.unique(mask)
                found = found[(found >= 0) & (found < classes)]
                there[start + at, found[found != ignore] if ignore is not None else found] = True
        return there

    @cached_property
    def places(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Latitude and longitude in degrees, ``(n,)`` each.

        Raises
        ------
        DatasetError
            If the stores do not know them for every sample.
        """
        store = self.view.stores[0]
        if not (store.has("lat") and store.has("lon")):
            raise DatasetError(
                f"store {store.name!r} of {self.view.dataset!r} records no latitude and longitude, so there is no "
                "split by place; --by regions with a CSV of sample_id and region needs none."
            )
        lat, lon = (store.column(c)[self.rows].astype(np.float64) for c in ("lat", "lon"))
        lost = np.flatnonzero(~(np.isfinite(lat) & np.isfinite(lon)))
        if len(lost):
            raise DatasetError(
                f"{len(lost)} of {len(lat)} samples of {self.view.dataset!r} have no latitude and longitude, the first "
                f"is {self.ids[int(lost[0])]!r}; a split by place needs all of them."
            )
        return lat, lon


def samples_of(view: Ensemble) -> Samples:
    """Return the samples of a store or ensemble that can take part."""
    return Samples(view, np.flatnonzero(view.split != SKIPPED))


def make_split(view: Ensemble, name: str, options: SplitOptions) -> NamedSplit:
    """Divide the samples of a store or ensemble; the result is the same for the same samples, options and seed.

    Raises
    ------
    SettingError
        If the options make no sense for these samples, or leave a part empty.
    DatasetError
        If labels or places that the method needs are not known, or a table does not know the samples.
    """
    samples = samples_of(view)
    rng = np.random.default_rng(options.seed)
    parts = np.full(len(samples.rows), UNUSED, dtype=object)
    facts: dict[str, Any] = {}
    if options.by == "stored":
        parts[:] = view.stores[0].split[samples.rows]
        parts[~np.isin(parts, NAMES)] = UNUSED
    elif options.by == "file":
        known = read_parts(Path(str(options.file)), samples.ids)
        parts[:] = [known[i] for i in samples.ids]
    else:
        parts[:] = np.array(NAMES, dtype=object)[_numbers(samples, options, rng, facts)]
    if options.buffer_km:
        facts["in_buffer"] = _keep_apart(samples, parts, options.buffer_km)
    train = np.flatnonzero(parts == "train")
    if options.train_fraction is not None or options.per_class is not None:
        needs_label = options.per_class is not None or view.task != "segmentation"
        kept = budget_rows(
            samples.label if needs_label else None,
            train,
            np.random.default_rng([options.seed, 1]),
            fraction=options.train_fraction,
            per_class=options.per_class,
        )
        parts[np.setdiff1d(train, kept)] = UNUSED
    _refuse_empty(parts, options)
    every = np.full(view.rows, UNUSED, dtype=object)
    every[samples.rows] = parts
    store = view.stores[0]
    made = {**options.to_json(), **facts, "from": {store.name: store.manifest.fingerprint}}
    return NamedSplit(
        name=name,
        dataset=view.dataset,
        sample_ids=tuple(str(i) for i in view.sample_ids),
        parts=tuple(every),
        made=made,
    )


def class_counts(view: Ensemble, split: NamedSplit | None) -> dict[str, dict[str, int]]:
    """Count the samples (of masks: images) of each class in each part: part -> class -> count."""
    named = view if split is None else view.with_split(split)
    samples = samples_of(named)
    part = named.split[samples.rows]
    out = {}
    for name in PARTS:
        here = samples.label[part == name]
        count = here.sum(axis=0) if here.ndim == 2 else np.bincount(here, minlength=len(view.class_names))
        out[name] = {c: int(n) for c, n in zip(view.class_names, count, strict=True)}
    return out


def _numbers(samples: Samples, options: SplitOptions, rng: np.random.Generator, facts: dict[str, Any]) -> Rows:
    """Return 0, 1, 2 for train, val, test of each sample."""
    if options.by == "random":
        return random_parts(len(samples.rows), options.fractions, rng)
    if options.by == "stratified":
        return stratified_parts(samples.label, options.fractions, rng)
    if options.by == "blocks":
        unit = blocks(*samples.places, float(options.block_km or 0))
        facts["blocks"] = int(unit.max()) + 1
        return units_parts(unit, options.fractions, rng)
    return _by_regions(samples, options, rng, facts)


def _by_regions(samples: Samples, options: SplitOptions, rng: np.random.Generator, facts: dict[str, Any]) -> Rows:
    names, unit = np.unique(_regions(samples, options).astype(str), return_inverse=True)
    unit = unit.reshape(-1).astype(np.int64)
    known = [str(n) for n in names]
    for flag, asked in (("--test-region", options.test_regions), ("--val-region", options.val_regions)):
        if strange := [r for r in asked if r not in known]:
            shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
            raise SettingError(f"{flag} {strange[0]!r} is no region; there are {shown}.")
    if both := set(options.test_regions) & set(options.val_regions):
        raise SettingError(f"region {min(both)!r} cannot be for test and for validation.")
    train, val, test = options.fractions
    out = np.zeros(len(unit), dtype=np.int64)
    if options.test_regions:
        out[np.isin(unit, [known.index(r) for r in options.test_regions])] = 2
    else:
        free = np.flatnonzero(~np.isin(unit, [known.index(r) for r in options.val_regions]))
        out[free[units_parts(unit[free], (1 - test, test), rng) == 1]] = 2
    if options.val_regions:
        out[np.isin(unit, [known.index(r) for r in options.val_regions])] = 1
    else:
        rest = np.flatnonzero(out == 0)
        out[rest] = stratified_parts(samples.label[rest], (train / (train + val), val / (train + val)), rng)
    facts["regions_of"] = {
        part: [known[u] for u in np.unique(unit[out == number])] for number, part in enumerate(NAMES)
    }
    return out


def _regions(samples: Samples, options: SplitOptions) -> npt.NDArray[Any]:
    kind, _, value = str(options.regions).partition(":")
    if kind == "kmeans":
        if not value.isdigit():
            raise SettingError(f"--regions kmeans:K needs a whole number, such as kmeans:5, got {options.regions!r}.")
        return kmeans_regions(*samples.places, int(value), options.seed)
    if kind == "grid":
        try:
            degrees = float(value)
        except ValueError as error:
            raise SettingError(f"--regions grid:DEGREES needs a number, got {options.regions!r}.") from error
        return grid_regions(*samples.places, degrees)
    known: Mapping[str, str] = read_regions(Path(str(options.regions)), samples.ids)
    return np.array([known[i] for i in samples.ids], dtype=object)


def _keep_apart(samples: Samples, parts: npt.NDArray[Any], buffer_km: float) -> int:
    """Take samples near a later part out of use, in place: of train near val or test, of val near test."""
    lat, lon = samples.places
    taken = 0
    for part, against in (("val", ("test",)), ("train", ("val", "test"))):
        own, other = np.flatnonzero(parts == part), np.flatnonzero(np.isin(parts, against))
        if len(own) and len(other):
            km, _ = nearest_km(lat[own], lon[own], lat[other], lon[other])
            near = own[km < buffer_km]
            parts[near] = UNUSED
            taken += len(near)
    return taken


def _refuse_empty(parts: npt.NDArray[Any], options: SplitOptions) -> None:
    counts: dict[str, int] = {name: int((parts == name).sum()) for name in NAMES}
    empty: Sequence[str] = [name for name, count in counts.items() if not count]
    if empty:
        advice = {
            "blocks": "Take smaller blocks, or a smaller buffer.",
            "regions": "Take more or smaller regions, or name --test-region and --val-region.",
        }.get(options.by, "Take other fractions, or more samples.")
        raise SettingError(f"this leaves no {empty[0]} sample ({counts}). {advice}")
