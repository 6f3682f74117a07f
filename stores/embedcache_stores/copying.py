"""Copies a store to another root or bucket, in the layout that suits it there; the values and the identity stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from embedcache_stores.chunks import layout_for
from embedcache_stores.encodings import FLOAT16_MOST, Encoded
from embedcache_stores.errors import StoreError
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.manifest import ATTRIBUTE, COMMIT_FILE, peek_manifest
from embedcache_stores.place import Location, Place, open_place
from embedcache_stores.schema import ArraySpec, Compression, StoreSpec
from embedcache_stores.writer import FeatureWriter


def copy_store(
    source: FeatureStore,
    to: Location,
    *,
    compression: Compression | None = None,
    on_rows: Callable[[int, int], None] | None = None,
) -> Place:
    """Write a committed store's values to another place, all or nothing; stopped, the same call continues.

    Checksums are compared while reading. Row groups keep their size where they must (int8, whose scales span them) or
    where both places are local.

    Parameters
    ----------
    source
        The store.
    to
        Place of the copy itself, ``.../<dataset>/<name>.zarr``.
    compression
        None keeps the source's.
    on_rows
        Called with the rows done and the rows in all.

    Raises
    ------
    StoreError
        If the copy is there already (complete), or anything that the writer refuses.
    DamagedStoreError
        If the source is damaged.
    """
    place, m = open_place(to), source.manifest
    if place.url == source.place.url:
        raise StoreError(f"store {place.url!r} would be copied onto itself.")
    spec = _spec(source, place, compression or m.compression)
    columns = {c.name: source.column(c.name) for c in m.columns}
    with FeatureWriter(place, spec) as writer:
        for group in writer.missing:
            rows = spec.group_rows(group)
            arrays = {a.name: _encoded(source, a, rows, group) for a in m.arrays}
            writer.write_group(group, arrays, {name: values[rows] for name, values in columns.items()})
            if on_rows is not None:
                on_rows(rows.stop, spec.rows)
        writer.commit()
    return place


def is_copied(source: FeatureStore, to: Location) -> bool:
    """Whether a complete store of the same fingerprint is there."""
    try:
        found = peek_manifest(to)
    except StoreError:
        return False
    return found.state == "complete" and found.fingerprint == source.manifest.fingerprint


def _spec(source: FeatureStore, place: Place, compression: Compression) -> StoreSpec:
    m = source.manifest
    attributes: dict[str, Any] = json.loads(source.place.read(COMMIT_FILE))["attributes"]
    ours = {"Conventions", "title", "coordinates", ATTRIBUTE}
    row_bytes = sum(a.row_bytes for a in m.arrays)
    group, chunk = m.rows_per_group, None
    if not place.is_local:
        group, chunk = layout_for(row_bytes, m.rows, local=False, views=len(m.views))
        if any(a.encoding == "int8" for a in m.arrays):
            group, chunk = m.rows_per_group, min(chunk or m.rows_per_group, m.rows_per_group)
    return StoreSpec(
        sample_ids=tuple(source.sample_ids.tolist()),
        arrays=m.arrays,
        columns=m.columns,
        provenance=m.provenance,
        views=m.views if len(m.views) > 1 else (),
        rows_per_group=group,
        rows_per_chunk=chunk,
        compression=compression,
        max_saturation=1.0,  # what was allowed once is copied
        environment=m.environment,
        attrs=m.attrs,
        group_attrs={k: v for k, v in attributes.items() if k not in ours},
    )


def _encoded(source: FeatureStore, spec: ArraySpec, rows: slice, group: int) -> Encoded:
    raw = source.read_whole(spec.name, rows)
    scale = source.scales(spec.name)[group] if spec.encoding == "int8" else None
    cut = bool(source.manifest.saturated.get(spec.name))
    saturated = int((np.abs(raw) == FLOAT16_MOST).sum()) if cut and spec.dtype == "float16" else 0
    return Encoded(raw, scale, saturated)
