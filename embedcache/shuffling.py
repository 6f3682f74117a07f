"""Orders in which rows are visited: uniform, or aware of chunks, and how far the second is from the first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def shuffled(rows: Rows, seed: int, epoch: int, *, rows_per_group: int = 1, window_groups: int | None = None) -> Rows:
    """Return the rows of one epoch in the order of their visit: every row once, a function of seed and epoch only.

    Parameters
    ----------
    rows
        ``(n,)`` distinct rows of a store.
    seed, epoch
        Equal numbers give equal orders.
    rows_per_group, window_groups
        None visits them in a uniformly random order. A number takes the row groups in a random order, so many at a
        time, and mixes the rows of those: all that has to be at hand at once is one such window.
    """
    rng = np.random.default_rng([seed, epoch])
    if window_groups is None:
        return rng.permutation(rows)
    groups = rows // rows_per_group
    by_group = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[by_group], return_index=True)
    parts = np.split(rows[by_group], starts[1:])
    taken = [parts[i] for i in rng.permutation(len(parts))]
    windows = [np.concatenate(taken[i : i + window_groups]) for i in range(0, len(taken), window_groups)]
    return np.concatenate([rng.permutation(window) for window in windows]) if windows else rows


def windows_of(order: Rows, rows_per_group: int, window_groups: int) -> list[Rows]:
    """Cut an order made by :func:`shuffled` back into its windows."""
    out: list[Rows] = []
    start, seen = 0, set[int]()
    for at, group in enumerate((order // rows_per_group).tolist()):
        if group not in seen and len(seen) == window_groups:
            out.append(order[start:at])
            start, seen = at, set()
        seen.add(group)
    return [*out, order[start:]] if len(order) else out


@dataclass(frozen=True)
class ShuffleReport:
    """How well an order mixes, as what matters to a gradient: how related the samples of one batch are."""

    same_group: float
    """Share of pairs of samples of one batch that lie in one row group, over an epoch."""
    same_group_uniform: float
    """The share that a uniformly random order has on average."""

    @property
    def ratio(self) -> float:
        """How many times likelier such a pair is than under a uniform shuffle; 1 is perfect."""
        return self.same_group / self.same_group_uniform if self.same_group_uniform else 1.0

    def __str__(self) -> str:
        return (
            f"two samples of a batch come from one row group {self.ratio:.1f} times as often as in a uniform shuffle "
            f"({100 * self.same_group:.2f} % of pairs, {100 * self.same_group_uniform:.2f} %)"
        )


def mixing(order: Rows, batch_size: int, rows_per_group: int) -> ShuffleReport:
    """Measure one epoch's order."""
    groups = order // rows_per_group
    pairs = same = 0
    for start in range(0, len(groups), batch_size):
        counts = np.unique(groups[start : start + batch_size], return_counts=True)[1]
        size = int(counts.sum())
        pairs += size * (size - 1)
        same += int((counts * (counts - 1)).sum())
    whole = np.unique(groups, return_counts=True)[1].astype(np.float64)
    n = whole.sum()
    uniform = float((whole * (whole - 1)).sum() / (n * (n - 1))) if n > 1 else 0.0
    return ShuffleReport(same / pairs if pairs else 0.0, uniform)
