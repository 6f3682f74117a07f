"""Several feature stores of the same samples seen as one, without copying a byte."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import SettingError
from embedcache.named_split import STORED, NamedSplit, load_split
from embedcache_stores.errors import SampleIdMismatchError, StoreNotFoundError
from embedcache_stores.feature_store import FeatureStore, open_store
from embedcache_stores.place import Location
from embedcache_stores.schema import CONTENT, SKIPPED, LevelSpec

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr


class Ensemble:
    """A lazy view over one or more stores with equal sample ids, concatenated on the channel axis.

    Building one reads no array. Pooled vectors are ``(sample, channel)``; levels ``(sample, channel, y, x)``, level i
    of every member resized (bilinear) to the finest grid among the members' levels i. An ensemble of one is a plain
    view.
    """

    assigned: NamedSplit | None = None
    """The named split in use; None is the one that the stores hold."""

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        """Join stores.

        Raises
        ------
        SettingError
            If there is none, or one twice.
        SampleIdMismatchError
            If their samples, splits or labels differ; equal numbers of rows are no proof.
        """
        if not stores:
            raise SettingError("an ensemble needs at least one store.")
        names = [s.name for s in stores]
        if len(set(names)) != len(names):
            raise SettingError(f"ensemble {'+'.join(names)!r} names a store twice; each member adds channels once.")
        self.stores = tuple(stores)
        for other in self.stores[1:]:
            _check_same_samples(self.stores[0], other)

    def __repr__(self) -> str:
        return f"<Ensemble {self.name} of {self.stores[0].manifest.dataset}: {self.rows} rows>"

    @property
    def name(self) -> str:
        """The members' names joined by ``+``."""
        return "+".join(s.name for s in self.stores)

    @property
    def cache(self) -> str:
        """Path or URL of the cache that the first member lies in."""
        return self.stores[0].place.url.rsplit("/", 2)[0]

    @property
    def rows(self) -> int:
        """Number of samples."""
        return self.stores[0].rows

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.stores[0].manifest.dataset

    @property
    def task(self) -> str:
        """``classification``, ``multilabel`` or ``segmentation``."""
        return str(self.stores[0].manifest.attrs["task"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in index order."""
        return tuple(self.stores[0].manifest.attrs["class_names"])

    @property
    def sample_ids(self) -> npt.NDArray[Any]:
        """Sample ids in row order, ``(sample,)``."""
        return self.stores[0].sample_ids

    @cached_property
    def split(self) -> npt.NDArray[Any]:
        """Split of each row, ``(sample,)``, stored or named; ``skipped`` where any member skipped the row."""
        named = self.assigned
        split = self.stores[0].split.copy() if named is None else named.of(self.sample_ids, self.name)
        for store in self.stores if named is not None else self.stores[1:]:
            split[store.split == SKIPPED] = SKIPPED
        return split

    @cached_property
    def label(self) -> npt.NDArray[Any]:
        """Targets: ``(sample,)`` class indices, or ``(sample, class)`` of 0/1."""
        labels = self.stores[0].column("label")
        for store in self.stores[1:]:  # a row that the first member skipped has no label; it is excluded by `split`
            if not np.array_equal(labels[self.split != SKIPPED], store.column("label")[self.split != SKIPPED]):
                raise SampleIdMismatchError(
                    f"{self.stores[0].name!r} and {store.name!r} hold different labels for the same samples; extract "
                    "one of them again (--rebuild)."
                )
        return labels

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each member by name."""
        return {s.name: s.manifest.fingerprint for s in self.stores}

    def with_split(self, split: NamedSplit | None) -> Ensemble:
        """Return the same view with a named split instead of the stored one.

        Raises
        ------
        SampleIdMismatchError
            If the split was made for other samples.
        """
        view = copy.copy(self)
        view.__dict__.pop("split", None)
        view.assigned = split
        _ = view.split  # refuse other samples now, not in the middle of a training
        return view

    @property
    def random_members(self) -> tuple[str, ...]:
        """Members whose backbone was never trained."""
        return tuple(s.name for s in self.stores if s.manifest.random_weights)

    @cached_property
    def levels(self) -> tuple[LevelSpec, ...]:
        """Levels of the view, finest first.

        Raises
        ------
        StoreNotFoundError
            If a member has no maps.
        SettingError
            If the members have different numbers of levels.
        """
        for store in self.stores:
            if not store.levels:
                raise StoreNotFoundError(
                    f"store {store.name!r} holds no feature maps; extract it with --what both (and --tag or --rebuild)."
                )
        if len({len(s.levels) for s in self.stores}) > 1:
            raise SettingError(f"the members of {self.name!r} have different numbers of levels.")
        joined = []
        for members in zip(*(s.levels for s in self.stores), strict=True):
            finest = max(members, key=lambda level: level.height)
            joined.append(
                LevelSpec(
                    index=finest.index,
                    channels=sum(m.channels for m in members),
                    reduction=finest.reduction,
                    height=finest.height,
                    width=finest.width,
                )
            )
        return tuple(joined)

    def channels(self, array: str) -> dict[str, slice]:
        """Return which channels of ``pooled_*`` or ``level_*`` came from which member."""
        out, start = {}, 0
        for store in self.stores:
            stop = start + int(store.spec(array).shape[0])
            out[store.name] = slice(start, stop)
            start = stop
        return out

    def pooled(self, kind: str = "mean") -> da.Array:
        """Return pooled vectors ``(sample, channel)`` as a lazy Dask array.

        Raises
        ------
        StoreNotFoundError
            If a member has no pooled vectors of that kind; the message lists those it has.
        """
        return self._joined([s.to_dask(self._pooled_name(s, kind)) for s in self.stores])

    def level(self, index: int) -> da.Array:
        """Return level ``index`` of the view ``(sample, channel, y, x)`` as a lazy Dask array."""
        if not 0 <= index < len(self.levels):
            raise SettingError(f"level {index} does not exist; {self.name!r} has levels 0 to {len(self.levels) - 1}.")
        target = self.levels[index]
        return self._joined([resized(s.to_dask(target.name), target.height, target.width) for s in self.stores])

    def read_pooled(self, kind: str, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        """Read pooled vectors of chosen rows, ``(len(rows), channel)``: what ``pooled(kind)[rows]`` computes."""
        parts = [s.read(self._pooled_name(s, kind), rows) for s in self.stores]
        out = np.empty((len(rows), sum(p.shape[1] for p in parts)), dtype=np.result_type(*parts))
        np.concatenate(parts, axis=1, out=out)
        return out

    def to_xarray(self) -> xr.Dataset:
        """Return the view as a lazy ``xarray.Dataset`` with the stores' coordinates and a ``member`` per channel."""
        base = self.stores[0].to_xarray()
        keep = [v for v in base.variables if str(v) in {"label", "mask", "problem"} or v in base.coords]
        out = base[keep]
        kinds = [k for k in self.stores[0].manifest.pooled if all(k in s.manifest.pooled for s in self.stores)]
        variables: dict[str, Any] = {f"pooled_{k}": (("sample", "channel"), self.pooled(k)) for k in kinds}
        if all(s.levels for s in self.stores):
            for level in self.levels:
                i = level.index
                dims = ("sample", f"channel_{i}", f"y_{i}", f"x_{i}")
                variables[level.name] = (dims, self.level(i))
                out = out.assign_coords({f"member_{i}": (f"channel_{i}", self._members(level.name))})
        if kinds:
            out = out.assign_coords(member=("channel", self._members(f"pooled_{kinds[0]}")))
        out = out.assign(variables).assign_coords(split=("sample", self.split))
        out.attrs = {
            "title": f"{self.name} features of {self.dataset}",
            "members": list(self.fingerprints),
            "fingerprints": list(self.fingerprints.values()),
        }
        return out

    def _members(self, array: str) -> list[str]:
        return [name for name, here in self.channels(array).items() for _ in range(here.stop - here.start)]

    @staticmethod
    def _pooled_name(store: FeatureStore, kind: str) -> str:
        if kind not in store.manifest.pooled:
            has = ", ".join(store.manifest.pooled)
            raise StoreNotFoundError(
                f"store {store.name!r} has no pooled vectors {kind!r}: "
                + (
                    f"it has {has}; choose one with --pooled."
                    if has
                    else "it holds maps only (--what pooled makes them)."
                )
            )
        return f"pooled_{kind}"

    @staticmethod
    def _joined(parts: Sequence[da.Array]) -> da.Array:
        import dask.array as da

        return parts[0] if len(parts) == 1 else da.concatenate(parts, axis=1)


def open_ensemble(cache: Location, dataset: str, features: str, split: str | None = None) -> Ensemble:
    """Open ``a+b`` of a dataset from a cache, with a named split where one is given.

    Raises
    ------
    EmbedcacheError
        If a store is missing or incomplete, or the members do not hold the same samples.
    """
    names = [n.strip() for n in features.split("+")]
    if "" in names:
        raise SettingError(f"features {features!r} hold an empty name; write them as backbone or backbone+backbone.")
    view = Ensemble([open_store(cache, dataset, name) for name in names])
    return view if split is None or split == STORED else view.with_split(load_split(cache, dataset, split))


def _check_same_samples(left: FeatureStore, right: FeatureStore) -> None:
    if left.manifest.ids_digest == right.manifest.ids_digest:
        ours, theirs = (_dataset_digests(s) for s in (left, right))
        changed = [k for k in ("splits", "labels") if ours.get(k) != theirs.get(k)]
        if changed:
            raise SampleIdMismatchError(
                f"cannot ensemble {left.name!r} and {right.name!r}: the dataset's {' and '.join(changed)} changed "
                "between their extractions. Extract the older one again (--rebuild)."
            )
        _check_same_images(left, right)
        return
    a, b = left.sample_ids, right.sample_ids
    n = min(len(a), len(b))
    unequal = np.flatnonzero(a[:n] != b[:n])
    at = int(unequal[0]) if len(unequal) else n
    pair = " / ".join(repr(str(ids[at])) if at < len(ids) else "no row" for ids in (a, b))
    raise SampleIdMismatchError(
        f"cannot ensemble {left.name!r} and {right.name!r}: their sample ids differ ({len(a)} and {len(b)} rows, first "
        f"difference at row {at}: {pair}). Extract both from the same dataset with the same --limit."
    )


def _check_same_images(left: FeatureStore, right: FeatureStore) -> None:
    """Refuse stores whose images, or masks, changed between their extractions, where both know the content."""
    if not (left.has(CONTENT) and right.has(CONTENT)):
        return
    both = (left.split != SKIPPED) & (right.split != SKIPPED)
    changed = np.flatnonzero((left.column(CONTENT) != right.column(CONTENT)) & both)
    if len(changed):
        raise SampleIdMismatchError(
            f"cannot ensemble {left.name!r} and {right.name!r}: {len(changed)} images or masks changed between their "
            f"extractions, the first is {str(left.sample_ids[changed[0]])!r}. Extract the older one again; only those "
            "are encoded anew."
        )


def _dataset_digests(store: FeatureStore) -> Mapping[str, Any]:
    digests: Mapping[str, Any] = store.manifest.provenance.get("dataset", {})
    return digests


def resized(array: da.Array, height: int, width: int) -> da.Array:
    """Resize maps block by block; sample chunks stay, so a block never resizes rows that nobody asked for."""
    if array.shape[2:] == (height, width):
        return array
    whole = array.rechunk({1: -1, 2: -1, 3: -1})
    chunks = (whole.chunks[0], whole.chunks[1], (height,), (width,))
    lazy: da.Array = whole.map_blocks(resize_block, height, width, dtype=array.dtype, chunks=chunks, meta=array._meta)
    return lazy


def resize_block(block: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Resize ``(b, c, y, x)`` bilinearly as torch does (``align_corners=False``), in float32; same dtype out."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    maps = torch.from_numpy(np.ascontiguousarray(block)).to(torch.float32)
    out = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False).numpy()
    return out.astype(block.dtype)
