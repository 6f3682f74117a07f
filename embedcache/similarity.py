"""How alike representations are: linear CKA, biased and debiased, and shared neighbours.

**CKA** (Kornblith, Norouzi, Lee and Hinton 2019, arXiv 1905.00414), of Gram matrices K = XX' and L = YY':
HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). *Biased* takes HSIC = tr(KHLH), H the centring matrix. *Debiased* takes the
unbiased estimate of Song, Smola, Gretton, Bedo and Borgwardt (2012), HSIC_1, as Nguyen, Raghu and Kornblith (2021,
arXiv 2010.15327) do: with few samples and many channels the biased one is near 1 whatever is compared.

No Gram matrix of samples is ever made: both are sums over samples of products of channels, so the samples are read in
pieces, two passes, and memory depends on channels only. Pieces are Dask tasks, a few at a time, added in a fixed order:
every scheduler gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.neighbours import nearest
from embedcache.representations import Representation, Rows, finite, pieces

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
_PRODUCT_BYTES: Final = 512 << 20
"""Of the products of channels that are summed at a time; where all pairs need more, the samples are read again."""
_QUERIES: Final = 1000


@dataclass(frozen=True)
class Similarity:
    """CKA of every pair."""

    names: tuple[str, ...]
    samples: int
    """Rows compared: samples, or positions of all samples."""
    biased: Floats
    """``(k, k)``, 0 to 1."""
    debiased: Floats
    """``(k, k)``, about 0 for unrelated ones (may be below), 1 for equal ones."""
    hsic: Floats
    """``(k, k)``: HSIC_1 itself. Gram matrices of joined channels add, so it tells the CKA of ensembles."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form; None where a representation never varies."""
        return {
            "names": list(self.names),
            "samples": self.samples,
            "biased": _plain(self.biased),
            "debiased": _plain(self.debiased),
        }


def heat_map(result: Similarity, title: str) -> Figure:
    """Draw debiased CKA as a matrix, values written in where there is room."""
    from matplotlib.figure import Figure

    k = len(result.names)
    side = 2.4 + 0.62 * k
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(result.debiased, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(k), result.names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(k), result.names, fontsize=8)
    for i in range(k if k <= 16 else 0):
        for j in range(k):
            value = result.debiased[i, j]
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if value < 0.6 else "k")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8, label="debiased linear CKA")
    return figure


def _plain(matrix: Floats) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in row] for row in matrix]


def cka(representations: Sequence[Representation], rows: Rows, *, standardise: bool = False) -> Similarity:
    """Compare every pair by linear CKA over the same rows.

    Parameters
    ----------
    representations
        Of :func:`embedcache.representations.open_representations`.
    rows
        Of the stores; four or more.
    standardise
        Divide each channel by its spread over these rows first, as heads do. Without (as published), channels count by
        their variance.

    Raises
    ------
    FeatureError
        If a value is not finite.
    """
    k = len(representations)
    mean, factor, n = _moments(representations, rows, standardise=standardise)
    biased, unbiased = np.zeros((k, k)), np.zeros((k, k))
    for pairs in _affordable(representations):
        used = sorted({i for pair in pairs for i in pair})
        total: _Sums | None = None
        for part in _in_waves(representations, rows, _Task(pairs, used, mean, factor)):
            total = part if total is None else total + part
        assert total is not None
        for number, (i, j) in enumerate(pairs):
            biased[i, j] = biased[j, i] = np.square(total.products[number]).sum()
            unbiased[i, j] = unbiased[j, i] = _hsic_1(total, number, n)
    return Similarity(tuple(r.name for r in representations), n, _normalised(biased), _normalised(unbiased), unbiased)


def union_cka(hsic: Floats, left: Sequence[int], right: Sequence[int]) -> float:
    """Return the debiased CKA of two ensembles, each the joined channels of some representations.

    Parameters
    ----------
    hsic
        Of :class:`Similarity`.
    left, right
        Indices of their members.
    """
    between, own, other = (float(hsic[np.ix_(a, b)].sum()) for a, b in ((left, right), (left, left), (right, right)))
    return between / float(np.sqrt(own * other))


def shared_neighbours(
    representations: Sequence[Representation], rows: Rows, k: int = 10, *, queries: int = _QUERIES, seed: int = 0
) -> Floats:
    """Return the mean share of the k nearest neighbours (cosine, centred) that each pair has in common, ``(r, r)``.

    Known as mutual k-nearest-neighbour alignment (Huh, Cheung, Wang and Isola 2024, arXiv 2405.07987). By chance it is
    k / (n - 1).

    Parameters
    ----------
    representations, rows
        As for :func:`cka`, with one point a sample.
    k
        Neighbours of each query.
    queries
        Rows whose neighbours are looked for, at most, drawn by ``seed``; among all rows.
    """
    chosen = rows if len(rows) <= queries else np.sort(np.random.default_rng(seed).choice(rows, queries, replace=False))
    k = min(k, len(rows) - 1)
    found = []
    for one in representations:
        mean = _moments([one], rows, standardise=False)[0][0]
        asked = np.concatenate([finite(x, one.name) - mean for _, (x,) in _computed([one], chosen)])
        keys = ((some, finite(x, one.name) - mean) for some, (x,) in _computed([one], rows))
        found.append(nearest(asked, keys, k, own=chosen)[0])
    out = np.eye(len(found))
    for i, a in enumerate(found):
        for j in range(i + 1, len(found)):
            out[i, j] = out[j, i] = (a[:, :, None] == found[j][:, None, :]).any(axis=2).mean()
    return out


@dataclass(frozen=True)
class _Sums:
    """What HSIC needs of some rows, for each pair of representations."""

    products: list[Floats]
    """X'Y."""
    squares: Floats
    """Sum of |x|^2 |y|^2 over rows."""
    left: list[Floats]
    """Sum of |y|^2 x."""
    right: list[Floats]
    """Sum of |x|^2 y."""
    norms: Floats
    """``(pair, 2)``: sum of |x|^2, and of |y|^2."""
    totals: list[tuple[Floats, Floats]]
    """Sum of x, and of y: 0 but for rounding, as they are centred."""

    def __add__(self, other: _Sums) -> _Sums:
        def added(a: list[Floats], b: list[Floats]) -> list[Floats]:
            return [x + y for x, y in zip(a, b, strict=True)]

        return _Sums(
            added(self.products, other.products),
            self.squares + other.squares,
            added(self.left, other.left),
            added(self.right, other.right),
            self.norms + other.norms,
            [(a + c, b + d) for (a, b), (c, d) in zip(self.totals, other.totals, strict=True)],
        )


@dataclass(frozen=True)
class _Task:
    """Turns one piece of the representations in use into its sums."""

    pairs: Sequence[tuple[int, int]]
    used: Sequence[int]
    mean: Sequence[Floats]
    factor: Sequence[Floats]

    def __call__(self, names: Sequence[str], *values: npt.NDArray[Any]) -> _Sums:
        x = {
            i: (finite(block, name) - self.mean[i]) * self.factor[i]
            for i, name, block in zip(self.used, names, values, strict=True)
        }
        norm = {i: np.einsum("nc,nc->n", v, v) for i, v in x.items()}
        return _Sums(
            [x[i].T @ x[j] for i, j in self.pairs],
            np.array([norm[i] @ norm[j] for i, j in self.pairs]),
            [norm[j] @ x[i] for i, j in self.pairs],
            [norm[i] @ x[j] for i, j in self.pairs],
            np.array([(norm[i].sum(), norm[j].sum()) for i, j in self.pairs]),
            [(x[i].sum(axis=0), x[j].sum(axis=0)) for i, j in self.pairs],
        )


def _hsic_1(sums: _Sums, at: int, n: int) -> float:
    """HSIC_1 of Song et al. 2012, equation 5, of K and L without their diagonals, from sums over rows."""
    s, t = sums.totals[at]
    a, b = sums.norms[at]
    product, squares = sums.products[at], float(sums.squares[at])
    trace = float(np.square(product).sum()) - squares
    ones_k, ones_l = float(s @ s - a), float(t @ t - b)
    across = float(s @ product @ t - s @ sums.left[at] - t @ sums.right[at] + squares)  # 1'KL1
    return (trace + ones_k * ones_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * across) / (n * (n - 3))


def _normalised(hsic: Floats) -> Floats:
    own = np.sqrt(np.maximum(np.diag(hsic), 0))
    with np.errstate(invalid="ignore", divide="ignore"):  # a representation that never varies is like nothing: NaN
        return np.asarray(hsic / np.outer(own, own))


def _moments(
    representations: Sequence[Representation], rows: Rows, *, standardise: bool
) -> tuple[list[Floats], list[Floats], int]:
    """Mean of each channel and the factor it is multiplied with, and the number of rows."""
    total: list[Floats] = [np.zeros(r.channels) for r in representations]
    power: list[Floats] = [np.zeros(r.channels) for r in representations]
    shift: list[Floats] | None = None
    n = 0
    for _, values in _computed(representations, rows):
        flat = [finite(v, r.name) for v, r in zip(values, representations, strict=True)]
        if shift is None:
            shift = [f.mean(axis=0) for f in flat]  # sums of squares around 0 would lose digits
        for i, f in enumerate(flat):
            moved = f - shift[i]
            total[i] += moved.sum(axis=0)
            power[i] += np.square(moved).sum(axis=0)
        n += len(flat[0])
    assert shift is not None
    mean = [s + t / n for s, t in zip(shift, total, strict=True)]
    factor: list[Floats] = [np.ones_like(m) for m in mean]
    if standardise:
        std = [np.sqrt(np.maximum(p / n - np.square(t / n), 0)) for p, t in zip(power, total, strict=True)]
        factor = [np.where(s > 1e-6 * max(float(s.max()), 1e-12), 1 / np.maximum(s, 1e-300), 0.0) for s in std]
    return mean, factor, n


def _affordable(representations: Sequence[Representation]) -> Iterator[list[tuple[int, int]]]:
    """Cut all pairs into groups whose products fit into memory; a group has one pair at least."""
    group: list[tuple[int, int]] = []
    size = 0
    for i, j in combinations_with_replacement(range(len(representations)), 2):
        need = 8 * representations[i].channels * representations[j].channels
        if group and size + need > _PRODUCT_BYTES:
            yield group
            group, size = [], 0
        group.append((i, j))
        size += need
    yield group


def _in_waves(
    representations: Sequence[Representation],
    rows: Rows,
    task: _Task,
) -> Iterator[_Sums]:
    """Compute the sums of every piece, few at a time so that memory stays bounded, in order."""
    import dask

    some = [representations[i] for i in task.used]
    names = [r.name for r in some]
    size = sum(8 * representations[i].channels * representations[j].channels for i, j in task.pairs)
    turn = dask.delayed(task, pure=False)
    tasks = (turn(names, *values) for _, values in pieces(some, rows))
    for wave in _batched(tasks, int(max(1, min(8, _PRODUCT_BYTES // max(size, 1))))):
        yield from dask.compute(*wave)


def _computed(representations: Sequence[Representation], rows: Rows) -> Iterator[tuple[Rows, tuple[Any, ...]]]:
    """Compute pieces one after the other, all representations of a piece at once."""
    import dask

    for some, values in pieces(representations, rows):
        yield some, dask.compute(*values)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
