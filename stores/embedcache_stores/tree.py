"""A whole cache as one ``xarray.DataTree``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedcache_stores.errors import StoreNotFoundError
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.manifest import find_stores
from embedcache_stores.place import Location, open_place

if TYPE_CHECKING:
    import xarray as xr


def open_cache_tree(cache: Location, dataset: str | None = None) -> xr.DataTree:
    """Open every complete store of a cache, lazily: node ``/<dataset>/<store>`` is :meth:`FeatureStore.to_xarray`.

    Each store costs its commit record and its coordinates' metadata; no array is read. Stores that are not complete
    are left out, and named in the attribute ``incomplete`` of the root.

    Parameters
    ----------
    cache
        Path or URL.
    dataset
        Open the stores of this dataset only.

    Raises
    ------
    StoreNotFoundError, NotAStoreError
        If there is no cache, or it has no store of that dataset.
    """
    import xarray as xr

    root = open_place(cache)
    every = list(find_stores(root))
    found = [m for m in every if dataset in {None, m.dataset}]
    if dataset is not None and not found:
        there = ", ".join(sorted({m.dataset for m in every})) or "none at all"
        raise StoreNotFoundError(f"cache {root.url!r} has no store of dataset {dataset!r}; it has stores of {there}.")
    complete = {f"/{m.dataset}/{m.name}": m for m in found if m.state == "complete"}
    tree: xr.DataTree = xr.DataTree.from_dict({path: FeatureStore(m.place).to_xarray() for path, m in complete.items()})
    tree.attrs["title"] = f"feature stores of {root.url}"
    tree.attrs["incomplete"] = [f"/{m.dataset}/{m.name}" for m in found if m.state != "complete"]
    for path, m in complete.items():
        tree[path].attrs["fingerprint"] = m.fingerprint
    return tree
