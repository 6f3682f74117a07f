"""How independent the parts of a split are, by stored pooled vectors and by place.

A test sample that has a twin in the training split measures memory, not generalisation. Vectors are standardised
channel by channel over the training split, as heads read them, and compared by cosine. Memory is bounded: queries are a
sample of at most ``sample`` rows of a part, training vectors are read in pieces, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.earth import nearest_km
from embedcache.ensemble import Ensemble
from embedcache.errors import FeatureError, SettingError
from embedcache.loading import rows_of_split
from embedcache.named_split import STORED
from embedcache.neighbours import Rows, nearest
from embedcache_stores.schema import CONTENT

CLOSE: Final = 0.05
"""A test sample is closer than usual where its distance to the nearest training sample is below this quantile of the
distances within the training split. Were test samples drawn like training samples, this share of them would be."""
_PIECE_BYTES: Final = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A sample and the training sample that looks most like it."""

    part: str
    sample_id: str
    train_id: str
    similarity: float
    """Cosine of the standardised vectors."""
    same_files: bool
    """Whether the files of both are equal byte by byte (false where their hashes are not known)."""
    km: float | None = None


@dataclass(frozen=True, kw_only=True)
class PartLeakage:
    """One part against the training split. Distances are 1 - cosine, 0 to 2."""

    part: str
    samples: int
    compared: int
    """Samples looked at."""
    distance: float
    """Median distance to the nearest training sample."""
    closer_share: float
    """Share nearer to a training sample than all but 5 % of the training samples are to each other."""
    nearness: float
    """Chance that a sample of the part is nearer to the training split than a training sample is to the others: 0.5
    where it was drawn like them, near 0 where it lies apart, near 1 where it repeats them."""
    near_duplicates: int
    """Samples whose nearest training sample is at least as similar as the bound."""
    same_files: int
    """Samples whose files equal a training sample's byte by byte, among all samples of the part."""
    km: dict[str, float] | None
    """Great-circle distances to the nearest training sample: smallest, 5 % quantile, median; None without places."""


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """The report."""

    dataset: str
    features: str
    split: str
    train: int
    train_distance: float
    """Median distance from a training sample to the nearest other."""
    near: float
    """Similarity from which a pair counts as a near-duplicate."""
    parts: tuple[PartLeakage, ...]
    train_km: dict[str, float] | None
    pairs: tuple[Pair, ...]
    """The most similar pairs that count as near-duplicates, at most as many as asked."""
    random_members: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def measure_leakage(
    view: Ensemble, kind: str = "mean", *, near: float = 0.99, sample: int = 4096, pairs: int = 20, seed: int = 0
) -> Leakage:
    """Compare validation and test samples with the training split.

    Parameters
    ----------
    view
        A store or ensemble, with the split to look at.
    kind
        Pooled vectors: ``mean`` ...
    near
        Cosine of standardised vectors from which a pair is a near-duplicate.
    sample
        Samples of each part to look at; more are drawn from by ``seed``.
    pairs
        Pairs to list.
    seed
        Of that draw.

    Raises
    ------
    SettingError
        If a number makes no sense.
    DatasetError
        If a part is empty, or the training split has fewer than two samples.
    FeatureError
        If a vector is not finite.
    """
    if not -1 <= near <= 1:
        raise SettingError(f"--near is a cosine of -1 to 1, got {near:g}.")
    if sample < 2 or pairs < 0:
        raise SettingError(f"--sample must be at least 2 and --pairs not below 0, got {sample} and {pairs}.")
    rows = {name: rows_of_split(view, name) for name in ("train", "val", "test")}
    train = rows["train"]
    if len(train) < 2:
        raise SettingError("the training split has a single sample; there is nothing to compare with.")
    scale = _scale(view, kind, train)
    _, within = _nearest_train(view, kind, scale, train, _some(train, sample, seed), same=True)
    inside = np.sort(1 - within)
    place = _places(view)
    twins = _hashes(view)
    parts, found = [], []
    for name in ("val", "test"):
        chosen = _some(rows[name], sample, seed)
        at, similarity = _nearest_train(view, kind, scale, train, chosen, same=False)
        outside = 1 - similarity
        km_all = None
        if place is not None:
            km_all, _ = nearest_km(*(c[rows[name]] for c in place), *(c[train] for c in place))
        is_near = similarity >= near
        same = np.isin(twins[rows[name]], twins[train]) if twins is not None else np.zeros(0, dtype=bool)
        parts.append(
            PartLeakage(
                part=name,
                samples=len(rows[name]),
                compared=len(chosen),
                distance=float(np.median(outside)),
                closer_share=float((outside < np.quantile(inside, CLOSE)).mean()),
                nearness=_chance_of_less(outside, inside),
                near_duplicates=int(is_near.sum()),
                same_files=int(same.sum()),
                km=None if km_all is None else _summary(km_all),
            )
        )
        for i in np.flatnonzero(is_near):
            here, there = int(chosen[i]), int(at[i])
            found.append(
                Pair(
                    part=name,
                    sample_id=str(view.sample_ids[here]),
                    train_id=str(view.sample_ids[there]),
                    similarity=float(similarity[i]),
                    same_files=bool(twins is not None and twins[here] == twins[there]),
                    km=None if place is None else _km_between(place, here, there),
                )
            )
    return Leakage(
        dataset=view.dataset,
        features=view.name,
        split=view.assigned.name if view.assigned else STORED,
        train=len(train),
        train_distance=float(np.median(inside)),
        near=near,
        parts=tuple(parts),
        train_km=None if place is None else _summary(_apart(place, train)),
        pairs=tuple(sorted(found, key=lambda p: (-p.similarity, p.sample_id))[:pairs]),
        random_members=view.random_members,
    )


def _pieces(view: Ensemble, kind: str, rows: Rows) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
    width = sum(c.stop - c.start for c in view.channels(f"pooled_{kind}").values())
    step = max(1, _PIECE_BYTES // (4 * width))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        x = view.read_pooled(kind, some).astype(np.float32)
        lost = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(lost):
            row = int(some[lost[0]])
            raise FeatureError(
                f"a feature vector of {view.name!r} is not finite: row {row} ({str(view.sample_ids[row])!r}); extract "
                "the store again."
            )
        yield some, x


def _scale(view: Ensemble, kind: str, rows: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and spread of each channel over the training split; channels that never vary are only centred."""
    _ = view.pooled(kind)  # says which kinds there are, if this is none
    total = power = shift = None
    for _, x in _pieces(view, kind, rows):
        if shift is None or total is None or power is None:
            shift = x.mean(axis=0, dtype=np.float64)  # sums of squares around 0 would lose digits
            total, power = np.zeros_like(shift), np.zeros_like(shift)
        moved = x - shift
        total += moved.sum(axis=0)
        power += np.square(moved).sum(axis=0)
    assert shift is not None
    assert total is not None
    assert power is not None
    mean = total / len(rows)
    std = np.sqrt(np.maximum(power / len(rows) - mean**2, 0))
    std = np.where(std > 1e-6 * max(float(std.max()), 1e-12), std, 1.0)
    return (mean + shift).astype(np.float32), std.astype(np.float32)


def _nearest_train(
    view: Ensemble,
    kind: str,
    scale: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    train: Rows,
    chosen: Rows,
    *,
    same: bool,
) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Row and similarity of the training sample nearest to each chosen row."""
    mean, std = scale
    queries = np.concatenate([(x - mean) / std for _, x in _pieces(view, kind, chosen)])
    keys = ((some, (x - mean) / std) for some, x in _pieces(view, kind, train))
    rows, similarity = nearest(queries, keys, own=chosen if same else None)
    return rows[:, 0], np.minimum(similarity[:, 0], 1)


def _some(rows: Rows, most: int, seed: int) -> Rows:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _chance_of_less(left: npt.NDArray[Any], right_sorted: npt.NDArray[Any]) -> float:
    """Chance that one of the left is less than one of the right, ties half: Mann-Whitney's U over all pairs."""
    below = np.searchsorted(right_sorted, left, side="left")
    up_to = np.searchsorted(right_sorted, left, side="right")
    return float((len(right_sorted) - (below + up_to) / 2).mean() / len(right_sorted))


def _places(view: Ensemble) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    store = view.stores[0]
    if not (store.has("lat") and store.has("lon")):
        return None
    lat, lon = store.column("lat").astype(np.float64), store.column("lon").astype(np.float64)
    used = np.isin(view.split, ("train", "val", "test"))
    return (lat, lon) if np.isfinite(lat[used]).all() and np.isfinite(lon[used]).all() else None


def _hashes(view: Ensemble) -> npt.NDArray[Any] | None:
    store = view.stores[0]
    return store.column(CONTENT).astype(str) if store.has(CONTENT) else None


def _summary(km: npt.NDArray[np.float64]) -> dict[str, float]:
    return {"smallest": float(km.min()), "q05": float(np.quantile(km, CLOSE)), "median": float(np.median(km))}


def _apart(place: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], rows: Rows) -> npt.NDArray[np.float64]:
    lat, lon = (c[rows] for c in place)
    return nearest_km(lat, lon, lat, lon, same=True)[0]


def _km_between(place: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], i: int, j: int) -> float:
    lat, lon = place
    return float(nearest_km(lat[[i]], lon[[i]], lat[[j]], lon[[j]])[0][0])
