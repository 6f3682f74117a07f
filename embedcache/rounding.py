"""How far stored features may be from live ones by rounding alone, and how far they are.

A stored value differs from the live one by two roundings. Storage: a dtype with p significant bits rounds
to the nearest, by at most u = 2^-p of the value: 2^-11 for float16 (and 2^-25 below its normal range), 2^-8 for
bfloat16, half a step of its scale for int8, nothing for float32. Arithmetic: a row encoded in other company runs
through other kernels, whose sums of up to some thousand float32 products per layer end up to about 2^-24 * sqrt(4096)
= 2^-18 of the row's largest magnitude away, and a few dozen layers add up: ``ARITHMETIC`` grants 2^-14. A store made by
another kind of device or another torch gets ``ARITHMETIC_BOUND`` of :mod:`embedcache.verification`, and so does bf16
arithmetic, of which the bound is so wide (0.05) that it proves little. So for every value

    |cached - live| <= u * |live| + a * max |row|
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.extraction_plan import ExtractionPlan
from embedcache.verification import ARITHMETIC_BOUND
from embedcache_stores.feature_store import FeatureStore

ROUNDING: Final = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 0.0}
"""Largest relative rounding of a stored value; int8 rounds by half a step instead."""
ARITHMETIC: Final = 2.0**-14
_SUBNORMAL: Final = {"float16": 2.0**-25}
_TYPICAL: Final = 1 / 64
_BLOCK = 16


@dataclass(frozen=True)
class Deviation:
    """Cached against live features of one array."""

    of_spread: float
    """Largest deviation, in standard deviations of its channel over the rows looked at."""
    bound_of_spread: float
    """The bound of the value that comes nearest to its bound (or exceeds it most), in the same unit."""
    of_bound: float
    """Largest deviation in units of its bound; above 1 exceeds it."""


class RoundingBound:
    """How far roundings may move the values of one store."""

    def __init__(self, store: FeatureStore, plan: ExtractionPlan) -> None:
        self._dtype = str(store.manifest.provenance["dtype"])
        made = store.manifest.environment
        here = {"device": plan.device.split(":")[0], "torch": importlib.metadata.version("torch")}
        there = {"device": str(made.get("device")).split(":")[0], "torch": made.get("torch")}
        strict = plan.precision == "fp32" and here == there
        self.arithmetic = ARITHMETIC if strict else ARITHMETIC_BOUND[plan.precision]

    def of(
        self, store: FeatureStore, name: str, rows: npt.NDArray[np.int64], values: npt.NDArray[Any], share: float = 1.0
    ) -> npt.NDArray[np.float64]:
        """Return the bound of each value of ``values``, ``(n, *shape)``; ``share`` of it for arithmetic."""
        size = np.abs(values.astype(np.float64))
        largest = size.reshape(len(size), -1).max(axis=1).reshape(-1, *(1 for _ in size.shape[1:]))
        bound = ROUNDING[self._dtype] * size + _SUBNORMAL.get(self._dtype, 0.0) + share * self.arithmetic * largest
        scale = store.scale(name, rows)
        if scale is not None:
            bound += scale.reshape(*scale.shape, *(1 for _ in size.shape[2:])) / 2
        return np.asarray(bound)

    def moved(
        self, store: FeatureStore, seed: int
    ) -> Callable[[str, npt.NDArray[np.int64], list[str]], npt.NDArray[Any]]:
        """Return a reader of the values with other rounding errors, always the same of one row, view and seed."""

        def read(name: str, rows: npt.NDArray[np.int64], views: list[str]) -> npt.NDArray[Any]:
            places = np.array([store.views.index(view) for view in views], dtype=np.int64)
            values = store.read(name, rows, places).astype(np.float64)
            bound = self.of(store, name, rows, values, _TYPICAL)
            for i, (row, view) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
                rng = np.random.default_rng([seed, row * len(store.views) + view, *name.encode()])
                values[i] += rng.uniform(-1, 1, values[i].shape) * bound[i]
            return values.astype(np.float32)

        return read


def compare(
    store: FeatureStore, live: FeatureStore, name: str, rows: npt.NDArray[np.int64], bound: RoundingBound
) -> Deviation:
    """Compare all values of an array, in blocks; two passes, the first for the spread of each channel."""
    total = power = np.zeros(store.spec(name).shape[0])
    count = 0
    for start in range(0, len(rows), _BLOCK):
        values = _by_channel(store.read(name, rows[start : start + _BLOCK]))
        total, power = total + values.sum(axis=(0, 2)), power + (values**2).sum(axis=(0, 2))
        count += values.shape[0] * values.shape[2]
    spread = np.sqrt(np.maximum(power / count - (total / count) ** 2, 0))[None, :, None]
    spread = np.maximum(spread, 1e-6 * max(float(spread.max()), 1e-12))
    of_spread, of_bound, bound_of_spread = 0.0, -1.0, 0.0
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        now = live.read(name, some)
        allowed = _by_channel(bound.of(store, name, some, now))
        differ = np.abs(_by_channel(store.read(name, some)) - _by_channel(now))
        share = np.nan_to_num(differ / allowed, nan=np.inf)
        at = np.unravel_index(int(share.argmax()), share.shape)
        of_spread = max(of_spread, float(np.nan_to_num(differ / spread, nan=np.inf).max()))
        if share[at] > of_bound:
            of_bound, bound_of_spread = float(share[at]), float((allowed / spread)[at])
    return Deviation(of_spread, bound_of_spread, of_bound)


def _by_channel(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return values.astype(np.float64).reshape(values.shape[0], values.shape[1], -1)
