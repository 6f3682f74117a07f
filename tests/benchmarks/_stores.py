"""Feature stores, and the same features as other tools keep them, for the benchmarks of reading and writing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embedcache_stores import ArraySpec, FeatureStore, FeatureWriter, LevelSpec, StoreSpec
from embedcache_stores.encodings import DTYPES
from embedcache_stores.schema import level_arrays

HIERA_L_224 = ((144, 56), (288, 28), (576, 14), (1152, 7))
"""(channels, side) of the four levels of Hiera-Large at 224 px: 1.69 MB per sample in float16."""


def maps(samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random features of the size of Hiera-Large's levels; their values do not matter to copying."""
    rng = np.random.default_rng(seed)
    block = rng.normal(size=1 << 22).astype(np.float16)
    out = {}
    for i, (channels, side) in enumerate(HIERA_L_224):
        count = samples * channels * side * side
        out[f"level_{i}"] = np.resize(block, count).reshape(samples, channels, side, side)
    return out


def write_store(
    path: Path, arrays: Mapping[str, np.ndarray], rows_per_group: int, dtype: str = "float16", **layout: Any
) -> FeatureStore:
    """Write arrays through the one writer."""
    rows = len(next(iter(arrays.values())))
    on_disk, encoding = DTYPES[dtype]
    specs = [
        LevelSpec(
            index=int(k[-1]), channels=v.shape[1], reduction=224 / v.shape[2], height=v.shape[2], width=v.shape[3]
        )
        for k, v in arrays.items()
        if v.ndim == 4
    ]
    pooled = [
        ArraySpec(name=k, dims=("channel",), shape=v.shape[1:], dtype=on_disk, encoding=encoding)
        for k, v in arrays.items()
        if v.ndim == 2
    ]
    spec = StoreSpec(
        sample_ids=tuple(map(str, range(rows))),
        arrays=(*pooled, *level_arrays(specs, on_disk, encoding)),
        columns=(ArraySpec(name="split", dtype="string"), ArraySpec(name="label", dtype="int64")),
        provenance={"benchmark": path.name},
        rows_per_group=rows_per_group,
        attrs={"task": "classification", "class_names": ["a", "b"], "levels": [x.to_json() for x in specs]},
        **layout,
    )
    with FeatureWriter(path, spec) as writer:
        for group in writer.missing:
            here = spec.group_rows(group)
            count = here.stop - here.start
            values = {k: v[here] if encoding is None else v[here].astype(np.float32) for k, v in arrays.items()}
            columns = {"split": np.full(count, "train", dtype=object), "label": np.zeros(count, dtype=np.int64)}
            writer.write_group(group, values, columns)
        writer.commit()
    return FeatureStore(path)
