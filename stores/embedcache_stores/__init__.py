"""Feature stores on disk: plain Zarr groups with an identity, written all or nothing. Knows arrays, never models.

Importing this needs numpy and zarr only.
"""

from embedcache_stores.errors import (
    DamagedStoreError,
    EmbedcacheError,
    FingerprintMismatchError,
    IncompleteStoreError,
    NotAStoreError,
    SampleIdMismatchError,
    SaturatedError,
    StoreChangedError,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
    StoreUnreachableError,
    StoreWriteError,
)
from embedcache_stores.feature_store import FeatureStore, open_store
from embedcache_stores.group_writer import GroupWriter
from embedcache_stores.manifest import StoreManifest, find_stores, peek_manifest, read_manifest
from embedcache_stores.ownership import discard
from embedcache_stores.place import Place, open_place
from embedcache_stores.schema import ArraySpec, LevelSpec, StoreSpec, fingerprint, ids_digest
from embedcache_stores.tree import open_cache_tree
from embedcache_stores.writer import FeatureWriter

__all__ = [
    "ArraySpec",
    "DamagedStoreError",
    "EmbedcacheError",
    "FeatureStore",
    "FeatureWriter",
    "FingerprintMismatchError",
    "GroupWriter",
    "IncompleteStoreError",
    "LevelSpec",
    "NotAStoreError",
    "Place",
    "SampleIdMismatchError",
    "SaturatedError",
    "StoreChangedError",
    "StoreError",
    "StoreLockedError",
    "StoreManifest",
    "StoreNotFoundError",
    "StoreSpec",
    "StoreUnreachableError",
    "StoreWriteError",
    "discard",
    "find_stores",
    "fingerprint",
    "ids_digest",
    "open_cache_tree",
    "open_place",
    "open_store",
    "peek_manifest",
    "read_manifest",
]
