"""A store as lazy Dask and xarray objects, for analysis; nothing is read by making them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.storage import StorePath

from embedcache_stores.encodings import decode
from embedcache_stores.schema import ArraySpec

if TYPE_CHECKING:
    from embedcache_stores.feature_store import FeatureStore


def to_dask(store: FeatureStore, name: str) -> da.Array:
    """Return one array, all views, with one chunk per row group (per chunk, where they are shards), decoded."""
    spec, array = store.spec(name), store.array(name)
    key = f"{store.manifest.fingerprint[:16]}-{name}"
    lazy: da.Array = da.from_array(array, chunks=array.chunks, name=key)
    if spec.encoding is None:
        return lazy
    if spec.encoding == "bfloat16":
        return lazy.map_blocks(decode, spec, dtype=np.float32)
    scales, step = store.scale_array(name), store.manifest.rows_per_group
    return lazy.map_blocks(_decode_int8, spec, scales, step, dtype=np.float32, meta=np.empty((0,) * lazy.ndim, "f4"))


def to_xarray(store: FeatureStore) -> xr.Dataset:
    """Return the whole store as ``xr.open_zarr`` does, encoded arrays decoded."""
    root, path = store.place.zarr_store()
    # Not as `group=`, for which xarray opens the bucket's root, where there is no group.
    dataset: xr.Dataset = xr.open_zarr(StorePath(root, path) if path else root)
    for spec in store.manifest.arrays:
        if spec.encoding is not None:
            old = dataset[spec.stored_name]
            attrs = {k: v for k, v in old.attrs.items() if k not in {"encoding", "comment"}}
            dataset = dataset.drop_vars([spec.stored_name, *([spec.scale_name] if spec.encoding == "int8" else [])])
            dataset[spec.name] = (old.dims, to_dask(store, spec.name), attrs)
    return dataset


def _decode_int8(
    data: npt.NDArray[Any], spec: ArraySpec, scales: zarr.Array[Any], rows_per_group: int, block_info: Any = None
) -> npt.NDArray[Any]:
    """Decode one Dask block; blocks never straddle row groups."""
    first = block_info[0]["array-location"][0][0]
    return decode(data, spec, np.asarray(scales[first // rows_per_group]))
