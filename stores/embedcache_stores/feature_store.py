"""The read side of a committed feature store."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr

from embedcache_stores.errors import StoreNotFoundError
from embedcache_stores.manifest import SUFFIX, StoreManifest, find_stores, read_manifest
from embedcache_stores.schema import LevelSpec

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr


class FeatureStore:
    """Read-only view of one committed store; opening it reads one small file.

    Arrays are ``(sample, channel)`` for pooled vectors and ``(sample, channel, y, x)`` for levels. The same store opens
    without embedcache: ``xr.open_zarr(path)``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the store at ``path``.

        Raises
        ------
        StoreNotFoundError, NotAStoreError, IncompleteStoreError
            With what was found and what to do.
        """
        self.path = Path(path)
        self.manifest: StoreManifest = read_manifest(self.path)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{a.name}{list(a.shape)}" for a in self.manifest.arrays)
        return f"<FeatureStore {self.manifest.dataset}/{self.name}: {self.rows} rows, {arrays}>"

    @property
    def name(self) -> str:
        """Name on the command line, e.g. ``sam2_hiera_tiny``."""
        return self.manifest.name

    @property
    def rows(self) -> int:
        """Number of samples."""
        return self.manifest.rows

    @property
    def levels(self) -> tuple[LevelSpec, ...]:
        """Feature maps in the store, finest first."""
        return self.manifest.levels

    @cached_property
    def _group(self) -> zarr.Group:
        return zarr.open_group(str(self.path), mode="r")

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one array as Zarr, nothing read yet.

        Raises
        ------
        StoreNotFoundError
            If the store has no such array; the message lists those it has.
        """
        names = ["sample_id", *(a.name for a in (*self.manifest.columns, *self.manifest.arrays))]
        if name not in names:
            raise StoreNotFoundError(f"store {self.name!r} has no array {name!r}; it has {', '.join(names)}.")
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise StoreNotFoundError(f"{name!r} in store {self.name!r} is not an array.")
        return array

    def has(self, name: str) -> bool:
        """Whether the store has an array or column of that name."""
        return any(a.name == name for a in (*self.manifest.columns, *self.manifest.arrays))

    def column(self, name: str) -> npt.NDArray[Any]:
        """Read a whole small column: ``sample_id``, ``split``, ``label``, ``lat`` ... Strings come as object arrays."""
        values = np.asarray(self.array(name)[:])
        return values.astype(object) if values.dtype.kind == "T" else values

    @cached_property
    def sample_ids(self) -> npt.NDArray[Any]:
        """Sample ids in row order, ``(sample,)``."""
        return self.column("sample_id")

    @cached_property
    def split(self) -> npt.NDArray[Any]:
        """Split of each row, ``(sample,)``: ``train``, ``val``, ``test``, or ``skipped`` for unreadable images."""
        return self.column("split")

    def read(self, name: str, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        """Read chosen rows of one array, each chunk once, in the order asked: ``(len(rows), ...)``."""
        array = self.array(name)
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"rows must be in 0..{self.rows - 1}, got {rows.min()}..{rows.max()}")
        out = np.empty((len(rows), *array.shape[1:]), dtype=array.dtype)
        step = array.chunks[0]
        groups = rows // step
        for group in np.unique(groups):
            here = np.flatnonzero(groups == group)
            # zarr takes a chunk that is not there for one of zeros; our writer writes every one.
            chunk = self.path / name / ".".join(["c", str(group), *("0" for _ in array.shape[1:])])
            if not chunk.exists():
                raise StoreNotFoundError(
                    f"store {self.name!r} has lost the file {str(chunk)!r} (rows {group * step} on of {name!r}); "
                    "extract it again with --rebuild."
                )
            block = np.asarray(array[group * step : min((group + 1) * step, self.rows)])
            out[here] = block[rows[here] - group * step]
        return out

    def to_dask(self, name: str) -> da.Array:
        """Return one array as a lazy Dask array with one chunk per row group; nothing is read."""
        import dask.array as da

        array = self.array(name)
        lazy: da.Array = da.from_array(array, chunks=array.chunks, name=f"{self.manifest.fingerprint[:16]}-{name}")
        return lazy

    def to_xarray(self) -> xr.Dataset:
        """Return the whole store as a lazy ``xarray.Dataset``, as ``xr.open_zarr(path)`` does."""
        import xarray as xr

        dataset: xr.Dataset = xr.open_zarr(str(self.path))
        return dataset


def open_store(cache: str | os.PathLike[str], dataset: str, name: str) -> FeatureStore:
    """Open ``CACHE/<dataset>/<name>.zarr``.

    Raises
    ------
    StoreNotFoundError
        If it is not there; the message lists the stores that the cache has for the dataset.
    """
    path = Path(cache) / dataset / f"{name}{SUFFIX}"
    if not path.exists():
        stores = list(find_stores(cache))
        names = [m.name for m in stores if m.dataset == dataset]
        if names:
            found = f"for {dataset!r} it has {', '.join(names)}"
        elif stores:
            found = f"it has stores of {', '.join(sorted({m.dataset for m in stores}))}"
        else:
            found = "it holds no feature store at all"
        raise StoreNotFoundError(
            f"no features {name!r} of dataset {dataset!r} in cache {str(cache)!r}: {found}. "
            "'embedcache extract' makes them."
        )
    return FeatureStore(path)
