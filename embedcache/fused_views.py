"""Members of an ensemble aligned, standardised and fused otherwise than by concatenation, as lazy arrays."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.ensemble import Ensemble, resized
from embedcache.errors import SettingError
from embedcache_stores.feature_store import FeatureStore

if TYPE_CHECKING:
    import dask.array as da

FUSIONS: Final = ("concat", "average", "weighted", "product")
"""How pooled vectors of members become one vector."""

ROWS_AT_ONCE: Final = 8192
"""Rows read at a time when statistics are computed."""

Folder = str | os.PathLike[str] | None
Floats = npt.NDArray[np.float64]


def aligned_level(features: Ensemble, index: int, to: str | tuple[int, int] = "finest") -> da.Array:
    """Return level ``index`` of all members on one grid, concatenated, ``(sample, channel, y, x)``, lazily.

    Parameters
    ----------
    to
        ``finest``; the name of the member whose grid is taken; or a grid ``(height, width)``. Maps are resized
        bilinearly as by torch's ``interpolate`` (``align_corners=False``), also where that makes them smaller.

    Raises
    ------
    SettingError
        If there is no such level, no such member, or the grid is not two positive numbers.
    """
    import dask.array as da

    levels = features.levels
    if not 0 <= index < len(levels):
        raise SettingError(f"level {index} does not exist; {features.name!r} has levels 0 to {len(levels) - 1}.")
    name = levels[index].name
    if to == "finest":
        height, width = levels[index].height, levels[index].width
    elif isinstance(to, str):
        known = {s.name: s for s in features.stores}
        if to not in known:
            raise SettingError(f"cannot align to {to!r}: the members are {', '.join(known)}; or say 'finest'.")
        height, width = known[to].spec(name).shape[1:]
    else:
        height, width = to
        if min(height, width) < 1:
            raise SettingError(f"cannot align to a grid of {height} x {width}; both must be 1 or more.")
    return da.concatenate([resized(s.to_dask(name), height, width) for s in features.stores], axis=1)


def standardised(features: Ensemble, kind: str = "mean", *, folder: Folder = None) -> list[da.Array]:
    """Return members' pooled vectors less train's mean, over its deviation, each ``(sample, channel)`` float32.

    Nothing is read until a result is computed. A channel that is constant on train is only centred.

    Parameters
    ----------
    folder
        Where statistics are kept, keyed by fingerprint, array and train rows; None keeps none.
    """
    rows = _train_rows(features)
    return [_scaled(features, store, kind, rows, folder) for store in features.stores]


def principal(features: Ensemble, components: int, kind: str = "mean", *, folder: Folder = None) -> list[da.Array]:
    """Return each member's leading principal components, ``(sample, components)`` float32; PCA is fitted on train only.

    Members are centred, not scaled. Of each axis, the sign is such that its largest coefficient is positive.

    Raises
    ------
    SettingError
        If a member has fewer channels, or train fewer rows, than components.
    """
    rows = _train_rows(features)
    out = []
    for store in features.stores:
        lazy = Ensemble([store]).pooled(kind).astype(np.float32)
        channels = int(lazy.shape[1])
        if not 1 <= components <= min(channels, len(rows)):
            raise SettingError(
                f"{components} principal components of {store.name!r} are not to be had: it has {channels} channels "
                f"and the train split {len(rows)} rows; ask for 1 to {min(channels, len(rows))}."
            )
        fitted = _lazily(partial(fit_pca, store, kind, rows, folder), (channels + 1, channels))
        out.append((lazy - fitted[0]) @ fitted[1 : components + 1].T)
    return out


def fused(
    features: Ensemble,
    how: str,
    kind: str = "mean",
    *,
    weights: Sequence[float] | None = None,
    components: int | None = None,
    folder: Folder = None,
) -> da.Array:
    """Return pooled vectors fused into one, ``(sample, channel)`` float32, lazily.

    Parameters
    ----------
    how
        ``concat``, ``average``, ``weighted`` (the sum of ``weights`` times members) or ``product`` (elementwise).
    weights
        One a member, for ``weighted``.
    components
        None: members are standardised by the train split, and but for ``concat`` must have equally many channels. A
        number: so many principal components of each member instead.
    folder
        As for :func:`standardised`.

    Raises
    ------
    SettingError
        If the fusion is not known, the widths differ, or weights are missing, too many or not wanted.
    """
    import dask.array as da

    if how not in FUSIONS:
        raise SettingError(f"fusion {how!r} is not known; choose {', '.join(FUSIONS)}.")
    if (weights is not None) != (how == "weighted"):
        raise SettingError("fusion 'weighted' needs weights, one a member; no other fusion takes them.")
    if weights is not None and (len(weights) != len(features.stores) or not np.isfinite(weights).all()):
        raise SettingError(f"{len(weights)} weights for {len(features.stores)} members; give a finite one for each.")
    if components is None:
        parts = standardised(features, kind, folder=folder)
    else:
        parts = principal(features, components, kind, folder=folder)
    if how == "concat":
        return da.concatenate(parts, axis=1)
    if len({p.shape[1] for p in parts}) > 1:
        widths = ", ".join(f"{s.name} {p.shape[1]}" for s, p in zip(features.stores, parts, strict=True))
        raise SettingError(f"fusion {how!r} needs equally many channels, not {widths}; give components for a PCA.")
    if how == "product":
        out = parts[0]
        for part in parts[1:]:
            out = out * part
        return out
    shares = weights if weights is not None else [1 / len(parts)] * len(parts)
    return sum(
        (np.float32(w) * p for w, p in zip(shares[1:], parts[1:], strict=True)), np.float32(shares[0]) * parts[0]
    )


def fit_moments(store: FeatureStore, kind: str, rows: npt.NDArray[np.int64], folder: Folder = None) -> Floats:
    """Return mean and standard deviation (population) of rows, ``(2, channel)`` float64, read piece by piece."""

    def fit() -> Floats:
        mean = _mean(store, kind, rows)
        squares = sum(((x - mean) ** 2).sum(axis=0) for x in _pieces(store, kind, rows))
        return np.stack([mean, np.sqrt(squares / len(rows))])

    return _kept(fit, "moments", store, kind, rows, folder)


def fit_pca(store: FeatureStore, kind: str, rows: npt.NDArray[np.int64], folder: Folder = None) -> Floats:
    """Return the mean and all principal axes, by falling variance, ``(1 + channel, channel)`` float64."""

    def fit() -> Floats:
        mean = _mean(store, kind, rows)
        scatter = sum((x - mean).T @ (x - mean) for x in _pieces(store, kind, rows))
        axes = np.linalg.eigh(scatter)[1].T[::-1]
        largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
        return np.concatenate([mean[None], axes * np.sign(largest)[:, None]])

    return _kept(fit, "pca", store, kind, rows, folder)


def _scaled(
    features: Ensemble, store: FeatureStore, kind: str, rows: npt.NDArray[np.int64], folder: Folder
) -> da.Array:
    import dask.array as da

    lazy = Ensemble([store]).pooled(kind).astype(np.float32)
    fitted = _lazily(partial(fit_moments, store, kind, rows, folder), (2, int(lazy.shape[1])))
    return (lazy - fitted[0]) / da.where(fitted[1] > 0, fitted[1], np.float32(1))


def _lazily(fit: Callable[[], Floats], shape: tuple[int, int]) -> da.Array:
    import dask
    import dask.array as da

    return da.from_delayed(dask.delayed(fit, pure=False)(), shape, dtype=np.float64).astype(np.float32)


def _train_rows(features: Ensemble) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(features.split == "train")
    if not len(rows):
        raise SettingError(f"{features.name!r} has no train rows to take statistics from; choose another split.")
    return rows


def _pieces(store: FeatureStore, kind: str, rows: npt.NDArray[np.int64]) -> Any:
    for at in range(0, len(rows), ROWS_AT_ONCE):
        yield store.read(f"pooled_{kind}", rows[at : at + ROWS_AT_ONCE]).astype(np.float64)


def _mean(store: FeatureStore, kind: str, rows: npt.NDArray[np.int64]) -> Floats:
    total: Floats = sum(x.sum(axis=0) for x in _pieces(store, kind, rows))
    return total / len(rows)


def _kept(
    fit: Callable[[], Floats], what: str, store: FeatureStore, kind: str, rows: npt.NDArray[np.int64], folder: Folder
) -> Floats:
    """Return what is kept, or fit and keep it; the file appears whole or not at all."""
    if folder is None:
        return fit()
    key = f"{what}|{store.manifest.fingerprint}|{kind}|".encode() + rows.astype("<i8").tobytes()
    path = Path(folder) / f"{what}-{hashlib.sha256(key).hexdigest()[:32]}.npy"
    if path.is_file():
        with suppress(ValueError, EOFError):  # a damaged file is made again, like one that is not there
            kept: Floats = np.load(path, allow_pickle=False)
            return kept
    made = fit()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    with beside.open("wb") as file:
        np.save(file, made)
    beside.replace(path)
    return made
