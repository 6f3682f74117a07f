"""Nearest neighbours among stored vectors: exact, one pass over the keys in pieces, whatever their number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_BLOCK_BYTES: Final = 32 << 20
"""Of the similarities held at once."""


def unit_rows(x: npt.NDArray[Any]) -> Floats:
    """Return rows scaled to length 1, float32; a row of zeros stays one."""
    values = np.asarray(x, dtype=np.float32)
    length = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    out: Floats = values / np.maximum(length, 1e-20)[:, None].astype(np.float32)
    return out


def nearest(
    queries: npt.NDArray[Any],
    keys: Iterable[tuple[Rows, npt.NDArray[Any]]],
    k: int = 1,
    *,
    own: Rows | None = None,
) -> tuple[Rows, Floats]:
    """Return the k keys of highest cosine similarity to each query, most similar first; of equal ones the lower row.

    Parameters
    ----------
    queries : (q, channel) array
        Held in memory.
    keys
        Pairs of rows ``(m,)``, ascending over all pieces, and their vectors ``(m, channel)``.
    k
        Neighbours of each query.
    own : (q,) int array, optional
        Row of each query, which is not its own neighbour.

    Returns
    -------
    rows : (q, k) int64 array
        -1 where there are fewer keys.
    similarity : (q, k) float32 array
        Cosine, -1 to 1; -inf where there are fewer keys.
    """
    asked = unit_rows(queries)
    rows = np.full((len(asked), k), -1, dtype=np.int64)
    best = np.full((len(asked), k), -np.inf, dtype=np.float32)
    step = max(1, _BLOCK_BYTES // max(1, 4 * len(asked)))
    for key_rows, vectors in keys:
        for start in range(0, len(key_rows), step):
            here = key_rows[start : start + step]
            similarity = asked @ unit_rows(vectors[start : start + step]).T
            if own is not None:
                at = np.searchsorted(here, own)
                found = (at < len(here)) & (here[np.minimum(at, len(here) - 1)] == own)
                similarity[np.flatnonzero(found), at[found]] = -np.inf
            _merge(rows, best, here, similarity)
    rows[~np.isfinite(best)] = -1
    return rows, best


def _merge(rows: Rows, best: Floats, here: Rows, similarity: Floats) -> None:
    """Put a piece's candidates among the best so far, in place; earlier (lower) rows win ties."""
    k = rows.shape[1]
    if k == 1:
        at = similarity.argmax(axis=1)
        value = similarity[np.arange(len(at)), at]
        better = value > best[:, 0]
        best[better, 0], rows[better, 0] = value[better], here[at[better]]
        return
    values = np.concatenate([best, similarity], axis=1)
    names = np.concatenate([rows, np.broadcast_to(here, similarity.shape)], axis=1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    best[:] = np.take_along_axis(values, order, axis=1)
    rows[:] = np.take_along_axis(names, order, axis=1)
