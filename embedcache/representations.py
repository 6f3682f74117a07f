"""What is compared: stored vectors or maps as rows of numbers, lazily, for the same samples in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.ensemble import Ensemble, open_ensemble
from embedcache.errors import FeatureError, SettingError
from embedcache_stores.place import Location
from embedcache_stores.schema import SKIPPED

if TYPE_CHECKING:
    import dask.array as da

Rows = npt.NDArray[np.int64]
POOLED: Final = "pooled_mean"
_BLOCK_BYTES: Final = 48 << 20
"""Of the float64 values of all representations that one task holds."""
_GOLDEN: Final = (0.7548776662466927, 0.5698402909980532)
"""1/p and 1/p^2 of the plastic number p: steps of Roberts' R2 sequence, whose points fill a square evenly."""


@dataclass(frozen=True)
class Representation:
    """One array of one store or ensemble."""

    name: str
    """``features``, or ``features:array`` where it is not the pooled mean."""
    values: da.Array
    """``(sample, point, channel)``, lazy; one point but where positions of a map are compared."""

    @property
    def channels(self) -> int:
        """Channels of a row."""
        return int(self.values.shape[2])


def open_representations(
    cache: Location,
    dataset: str,
    features: Sequence[str],
    arrays: Sequence[str] = (POOLED,),
    *,
    split: str | None = None,
    positions: int = 0,
) -> tuple[list[Representation], Ensemble]:
    """Open arrays of stores and ensembles to compare; nothing is read.

    Parameters
    ----------
    cache, dataset, features
        Where the stores are, and which; ``a+b`` is an ensemble.
    arrays
        Of each: ``pooled_mean``, ``level_2`` ...; ``all`` are all that it has.
    split
        Name of a split; None is the stores' own.
    positions
        How a map becomes rows. 0: its mean over space, one row a sample. P: P positions of each sample, spread evenly,
        the same on every grid (relative to the image; each map gives the cell that a point lies in), P rows a sample.

    Returns
    -------
    representations, view
        And a view whose samples and splits they all share.

    Raises
    ------
    SettingError
        If one comes twice, or only vectors would be compared by position.
    SampleIdMismatchError
        If the stores do not hold the same samples.
    """
    if positions < 0:
        raise SettingError(f"--positions must not be below 0, got {positions}.")
    views = [open_ensemble(cache, dataset, name, split) for name in features]
    stores = {s.name: s for v in views for s in v.stores}
    view = Ensemble(list(stores.values()))  # checks that all hold the same samples
    if views[0].assigned is not None:
        view = view.with_split(views[0].assigned)
    out = []
    for name, one in zip(features, views, strict=True):
        for array in _arrays(one, arrays):
            title = name if array == POOLED and tuple(arrays) == (POOLED,) else f"{name}:{array}"
            out.append(Representation(title, _values(one, array, positions)))
    names = [r.name for r in out]
    if twice := [n for n in names if names.count(n) > 1]:
        raise SettingError(f"{twice[0]!r} would be compared with itself; name each once.")
    if positions and len({int(r.values.shape[1]) for r in out}) > 1:
        raise SettingError("--positions compares maps position by position; pooled vectors have none, so name levels.")
    return out, view


def rows_to_compare(view: Ensemble, part: str = "all", sample: int = 0, seed: int = 0) -> Rows:
    """Return rows of a part of the split, or of all but skipped ones; at most ``sample`` of them (0: all), by seed.

    Raises
    ------
    SettingError
        If there are fewer than four, with which nothing can be compared.
    """
    rows = np.flatnonzero(view.split != SKIPPED if part == "all" else view.split == part)
    if sample and len(rows) > sample:
        rows = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    if len(rows) < 4:
        raise SettingError(f"{view.dataset!r} has {len(rows)} {part} samples to compare; four are the fewest.")
    return rows


def pieces(representations: Sequence[Representation], rows: Rows) -> Iterator[tuple[Rows, list[da.Array]]]:
    """Cut all representations alike: yield rows of a piece with its values, ``(m, point, channel)`` each, still lazy.

    Pieces that hold none of the rows are left out, so their chunks are not read.
    """
    width = sum(int(np.prod(r.values.shape[1:])) for r in representations)
    step = max(16, min(4096, _BLOCK_BYTES // (8 * width)))
    total = int(representations[0].values.shape[0])
    for start in range(0, total, step):
        stop = min(start + step, total)
        some = rows[(rows >= start) & (rows < stop)]
        if len(some):
            yield some, [r.values[start:stop][some - start] for r in representations]


def finite(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    """Return ``(rows, channel)`` float64, a row for each point of each sample.

    Raises
    ------
    FeatureError
        If a value is not finite.
    """
    flat = np.asarray(values, dtype=np.float64).reshape(-1, values.shape[-1])
    if not np.isfinite(flat).all():
        raise FeatureError(f"features of {name!r} are not finite; 'embedcache verify' says which rows.")
    return flat


def _arrays(view: Ensemble, wanted: Sequence[str]) -> list[str]:
    if list(wanted) != ["all"]:
        return list(wanted)
    store = view.stores[0]
    names = [f"pooled_{k}" for k in store.manifest.pooled if all(k in s.manifest.pooled for s in view.stores)]
    if all(s.levels for s in view.stores):
        names += [level.name for level in view.levels]
    return names


def _values(view: Ensemble, array: str, positions: int) -> da.Array:
    kind, _, which = array.partition("_")
    if kind == "pooled" and which:
        return view.pooled(which)[:, None, :]
    if kind != "level" or not which.isdecimal():
        raise SettingError(f"{array!r} cannot be compared; name pooled_mean, level_0 ..., or all.")
    maps = view.level(int(which))
    maps = maps.rechunk({1: -1, 2: -1, 3: -1})
    channels = int(maps.shape[1])
    chunks = (maps.chunks[0], (max(positions, 1),), (channels,))
    meta = np.empty((0, 0, 0), dtype=np.float32)
    if not positions:
        return maps.map_blocks(_mean, drop_axis=3, chunks=chunks, dtype=np.float32, meta=meta)
    return maps.map_blocks(_at_points, positions, drop_axis=3, chunks=chunks, dtype=np.float32, meta=meta)


def _mean(block: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Mean over space, ``(b, 1, channel)``."""
    out: npt.NDArray[np.float32] = block.mean(axis=(2, 3), dtype=np.float32)[:, None, :]
    return out


def _at_points(block: npt.NDArray[Any], positions: int, block_info: Any = None) -> npt.NDArray[np.float32]:
    """Values at the points of each sample, ``(b, point, channel)``; the points depend on the row alone."""
    first = block_info[0]["array-location"][0][0]
    rows, _, height, width = block.shape
    number = (first + np.arange(rows)[:, None]) * positions + np.arange(positions)[None]
    y, x = ((0.5 + (number + 1) * g) % 1 for g in _GOLDEN)
    at = (np.minimum((y * height).astype(np.int64), height - 1), np.minimum((x * width).astype(np.int64), width - 1))
    return np.ascontiguousarray(block[np.arange(rows)[:, None], :, at[0], at[1]], dtype=np.float32)
