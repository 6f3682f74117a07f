"""Stores of a few hundred samples with labels and places, made by the one writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.ensemble import Ensemble
from embedcache_stores import ArraySpec, FeatureStore, FeatureWriter, StoreSpec

Make = Callable[..., Ensemble]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return ``make(pooled, label, ...)``: a view of one committed store of dataset ``m-x``."""

    def build(
        pooled: np.ndarray,
        label: np.ndarray | None = None,
        split: Sequence[str] | None = None,
        *,
        name: str = "a",
        lat: np.ndarray | None = None,
        lon: np.ndarray | None = None,
        hashes: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        mask: np.ndarray | None = None,
        classes: int = 3,
    ) -> Ensemble:
        rows = len(pooled)
        label = np.arange(rows) % classes if label is None else label
        columns: dict[str, Any] = {
            "split": np.array(split or [("train", "val", "test")[i % 3] for i in range(rows)], dtype=object)
        }
        specs = [ArraySpec(name="split", dtype="string")]
        if mask is None:
            shape = label.shape[1:]
            specs.append(ArraySpec(name="label", dims=("class",) * len(shape), shape=shape, dtype="int64"))
            columns["label"] = label.astype(np.int64)
        for column, values in (("lat", lat), ("lon", lon)):
            if values is not None:
                specs.append(ArraySpec(name=column, dtype="float64"))
                columns[column] = values.astype(np.float64)
        if hashes is not None:
            specs.append(ArraySpec(name="content_hash", dtype="string"))
            columns["content_hash"] = np.array(hashes, dtype=object)
        arrays = {"pooled_mean": pooled} | ({} if mask is None else {"mask": mask})
        dims = {"pooled_mean": ("channel",), "mask": ("y", "x")}
        spec = StoreSpec(
            sample_ids=tuple(ids or (f"s{i}" for i in range(rows))),
            arrays=tuple(
                ArraySpec(name=k, dims=dims[k], shape=v.shape[1:], dtype=str(v.dtype)) for k, v in arrays.items()
            ),
            columns=tuple(specs),
            provenance={"backbone": {"name": name, "weights": {"kind": "file"}}, "dataset": {}, "sum": float(rows)},
            rows_per_group=64,
            attrs={
                "task": "segmentation" if mask is not None else "multilabel" if label.ndim == 2 else "classification",
                "class_names": [f"class {i}" for i in range(classes)],
                "ignore_index": None if mask is None else 255,
                "levels": [],
            },
        )
        path = tmp_path / "cache" / "m-x" / f"{name}.zarr"
        with FeatureWriter(path, spec) as writer:
            for group in range(spec.groups):
                here = spec.group_rows(group)
                writer.write_group(
                    group, {k: v[here] for k, v in arrays.items()}, {k: v[here] for k, v in columns.items()}
                )
            writer.commit()
        return Ensemble([FeatureStore(path)])

    return build
