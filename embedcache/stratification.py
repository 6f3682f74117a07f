"""Shares of samples with every class in its proportion: for single labels, and for several labels a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import SettingError

Rows = npt.NDArray[np.int64]


def random_parts(n: int, fractions: Sequence[float], rng: np.random.Generator) -> Rows:
    """Return a part (index into ``fractions``) for each of n samples, by chance; counts are rounded."""
    counts = _whole_counts(n, fractions)
    parts = np.empty(n, dtype=np.int64)
    parts[rng.permutation(n)] = np.repeat(np.arange(len(fractions)), counts)
    return parts


def stratified_parts(label: npt.NDArray[Any], fractions: Sequence[float], rng: np.random.Generator) -> Rows:
    """Return a part for each sample, so that every class is divided like the whole.

    Parameters
    ----------
    label : (n,) int array or (n, class) array of 0/1
        With several labels a sample, by iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011); with one,
        each part gets its share of every class to within one sample.
    fractions
        Sum to 1.
    rng
        All chance.
    """
    if label.ndim == 2:
        return _iterative(label.astype(bool), np.asarray(fractions), rng)
    share = np.asarray(fractions, dtype=np.float64)
    parts = np.full(len(label), -1, dtype=np.int64)
    owed = np.zeros(len(share))
    for value in rng.permutation(np.unique(label)):
        members = rng.permutation(np.flatnonzero(label == value))
        wanted = share * len(members)
        counts = np.floor(wanted + 1e-9).astype(np.int64)
        owed += wanted - counts
        able = wanted - counts > 1e-9  # a share that came out whole is right already
        for _ in range(len(members) - int(counts.sum())):
            # What the part is short of over all classes so far decides; a part gets one more of a class at most.
            best = int(np.argmax(np.where(able, owed, -np.inf)))
            counts[best] += 1
            owed[best] -= 1
            able[best] = False
        parts[members] = np.repeat(np.arange(len(share)), counts)
    return parts


def units_parts(unit: Rows, fractions: Sequence[float], rng: np.random.Generator) -> Rows:
    """Return a part for each sample, so that samples of one unit (block, region) stay together.

    Units go in random order to the part that is farthest below its share.
    """
    sizes = np.bincount(unit)
    target = np.asarray(fractions, dtype=np.float64) * len(unit)
    given = np.zeros(len(target))
    where = np.zeros(len(sizes), dtype=np.int64)
    for one in rng.permutation(len(sizes)):
        where[one] = int(np.argmax((target - given) / np.maximum(target, 1e-12)))
        given[where[one]] += sizes[one]
    return where[unit]


def budget_rows(
    label: npt.NDArray[Any] | None,
    rows: Rows,
    rng: np.random.Generator,
    *,
    fraction: float | None = None,
    per_class: int | None = None,
) -> Rows:
    """Return which of some rows a label budget keeps, sorted.

    With one label a sample, a smaller budget of the same seed is a part of a larger one.

    Parameters
    ----------
    label : (n,) or (n, class) array, or None
        Of all samples; None keeps a fraction by chance alone.
    rows
        Among which to choose.
    rng
        All chance.
    fraction
        Of the rows of each class, at least one of each. With several labels a sample, of the rows.
    per_class
        Rows of each class, or all where there are fewer; with several labels a sample, a class that is frequent beside
        rare ones may get more.

    Raises
    ------
    SettingError
        If not exactly one budget is given, or it makes no sense.
    """
    if (fraction is None) == (per_class is None):
        raise SettingError("a label budget is a fraction of the training samples, or a number per class, not both.")
    if fraction is not None and not 0 < fraction < 1:
        raise SettingError(f"a label budget's fraction must be above 0 and below 1, got {fraction:g}.")
    if per_class is not None and per_class < 1:
        raise SettingError(f"a label budget must keep at least 1 sample of each class, got {per_class}.")
    order = rng.permutation(rows)
    if per_class is not None and label is None:
        raise SettingError("a label budget per class needs labels, and these features have none.")
    if label is None or (fraction is not None and label.ndim == 2):
        assert fraction is not None
        return np.sort(order[: max(1, round(fraction * len(order)))])
    if label.ndim == 2:
        assert per_class is not None
        return np.sort(_cover(label.astype(bool), order, per_class))
    kept = []
    for value in np.unique(label[rows]):
        members = order[label[order] == value]
        kept.append(members[: per_class if per_class is not None else max(1, round((fraction or 0) * len(members)))])
    return np.sort(np.concatenate(kept))


def _cover(label: npt.NDArray[np.bool_], order: Rows, per_class: int) -> Rows:
    """Take rows in order, rarest class first, until each class has so many (or all it has)."""
    chosen = np.zeros(len(label), dtype=bool)
    for value in np.argsort(label[order].sum(axis=0), kind="stable"):
        members = order[label[order, value]]
        missing = per_class - int(chosen[members].sum())
        if missing > 0:
            chosen[members[~chosen[members]][:missing]] = True
    return np.flatnonzero(chosen)


def _whole_counts(n: int, fractions: Sequence[float]) -> Rows:
    wanted = np.asarray(fractions, dtype=np.float64) * n
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    for part in np.argsort(-(wanted - counts), kind="stable")[: n - int(counts.sum())]:
        counts[part] += 1
    return counts


def _iterative(label: npt.NDArray[np.bool_], share: npt.NDArray[np.float64], rng: np.random.Generator) -> Rows:
    n, classes = label.shape
    parts = np.full(n, -1, dtype=np.int64)
    desired = share * n
    of_class = share[None, :] * label.sum(axis=0)[:, None]
    left = label.sum(axis=0).astype(np.int64)
    while left.any():
        rarest = int(np.argmin(np.where(left > 0, left, n + 1)))
        for row in rng.permutation(np.flatnonzero(label[:, rarest] & (parts < 0))):
            best = _most(of_class[rarest], desired, rng)
            parts[row] = best
            desired[best] -= 1
            of_class[label[row], best] -= 1
            left -= label[row]
    for row in rng.permutation(np.flatnonzero(parts < 0)):  # without any class
        parts[row] = best = _most(desired, desired, rng)
        desired[best] -= 1
    assert classes == len(left)
    return parts


def _most(first: npt.NDArray[np.float64], then: npt.NDArray[np.float64], rng: np.random.Generator) -> int:
    """Return the part with the largest first number, of equal ones the largest second, of those one by chance."""
    able = np.flatnonzero(first >= first.max() - 1e-9)
    able = able[then[able] >= then[able].max() - 1e-9]
    return int(able[0] if len(able) == 1 else rng.choice(able))
