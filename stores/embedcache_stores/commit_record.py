"""What a store says of itself: the header of its progress record, and the root ``zarr.json`` that commits it."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy.typing as npt

from embedcache_stores.errors import FingerprintMismatchError
from embedcache_stores.manifest import ATTRIBUTE, StoreManifest
from embedcache_stores.schema import (
    COORDINATES,
    SCHEMA_VERSION,
    STRING,
    VIEW_DIM,
    ArraySpec,
    Json,
    StoreSpec,
    differences,
    fingerprint,
)

SAMPLE_ID = ArraySpec(name="sample_id", dtype=STRING, attrs={"long_name": "stable id of the sample"})
VIEW = ArraySpec(name=VIEW_DIM, dtype=STRING, attrs={"long_name": "flip or rotation of the image before encoding"})
_DIGEST = re.compile("[0-9a-f]{32,}")


def scale_spec(spec: ArraySpec) -> ArraySpec:
    """Return the array of scales beside an int8 array; its leading axis is the row group."""
    return ArraySpec(
        name=spec.scale_name,
        dims=spec.dims[:1],
        shape=spec.shape[:1],
        dtype="float32",
        attrs={"long_name": f"scale of {spec.stored_name}, one per row group and channel"},
    )


def layout_of(spec: StoreSpec, digest: str) -> Json:
    """Return what must be the same for a store to be continued; ``digest`` is of the sample ids."""
    return {
        "rows_per_group": spec.rows_per_group,
        "rows_per_chunk": spec.chunk_rows,
        "compression": spec.compression,
        "ids_digest": digest,
        "arrays": [a.to_json() for a in spec.arrays],
        "columns": [c.to_json() for c in spec.columns],
    }


def layout_found(found: StoreManifest) -> Json:
    """Return the same of a store that is there."""
    return {
        "rows_per_group": found.rows_per_group,
        "rows_per_chunk": found.rows_per_chunk,
        "compression": found.compression,
        "ids_digest": found.ids_digest,
        "arrays": [a.to_json() for a in found.arrays],
        "columns": [c.to_json() for c in found.columns],
    }


def header_of(spec: StoreSpec, digest: str) -> Json:
    """Return the first line of a progress record."""
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": spec.recipe,
        "recipe": spec.recipe,
        "provenance": dict(spec.provenance),
        "environment": dict(spec.environment),
        "rows": spec.rows,
        **({"views": list(spec.views)} if spec.views else {}),
        **layout_of(spec, digest),
        "attrs": dict(spec.attrs),
    }


def root_metadata(
    spec: StoreSpec,
    header: Mapping[str, Any],
    records: Collection[Mapping[str, Any]],
    arrays: Mapping[str, bytes],
    content: npt.NDArray[Any] | None,
    name: str,
) -> Json:
    """Return the root ``zarr.json``, with consolidated metadata so that opening a store reads one file.

    Parameters
    ----------
    spec, header
        Of the store.
    records
        Of its row groups.
    arrays
        Zarr metadata of each array, by its name on disk.
    content
        Content hash of each row, where they are known.
    name
        Title of a store that has none.
    """
    names = [a.name for a in spec.arrays]
    recorded = {
        **header,
        "fingerprint": fingerprint(spec.provenance, None if content is None else content.tolist()),
        "max_abs": {n: max((r["max_abs"][n] for r in records), default=0.0) for n in names},
        "saturated": {n: sum(r.get("saturated", {}).get(n, 0) for r in records) for n in names},
        # When, and on what: kept out of the fingerprint, so equal inputs stay equal.
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "Conventions": "CF-1.11",
            "title": spec.attrs.get("title", name),
            "coordinates": " ".join(n for n in COORDINATES if n in arrays),
            **spec.group_attrs,
            ATTRIBUTE: recorded,
        },
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": {n: json.loads(arrays[n]) for n in sorted(arrays)},
        },
    }


def check_fingerprint(where: object, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise :class:`FingerprintMismatchError`, naming each differing field, unless two provenances are equal."""
    found = differences(stored, asked)
    if not found:
        return
    # Causes before what follows from them, and what can be read before digests.
    found.sort(key=lambda field: (field[0].startswith("arrays"), bool(_DIGEST.fullmatch(str(field[1])))))
    shown = "; ".join(f"{name} is {short(left)}, asked {short(right)}" for name, left, right in found[:4])
    more = f" (and {len(found) - 4} more)" if len(found) > 4 else ""
    raise FingerprintMismatchError(
        f"another store is in the way at {str(where)!r}: {shown}{more}. "
        "Give the new one a name with --tag, or replace the old one with --rebuild.",
        found,
    )


def short(value: object) -> str:
    """Return a value as it fits into a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
