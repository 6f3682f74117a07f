"""Stores of vectors and maps with known content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from embedcache_stores import ArraySpec, FeatureWriter, LevelSpec, StoreSpec


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return ``make(name, pooled, levels, ...)``: a store of dataset ``m-x`` in ``tmp_path / "cache"``."""

    def build(
        name: str,
        pooled: np.ndarray,
        levels: Sequence[np.ndarray] = (),
        *,
        label: np.ndarray | None = None,
        split: Sequence[str] | None = None,
        rows_per_group: int = 16,
        classes: int = 3,
        dataset: str = "m-x",
        weights: str = "file",
    ) -> Path:
        rows = len(pooled)
        arrays = {"pooled_mean": pooled} | {f"level_{i}": x for i, x in enumerate(levels)}
        dims = {f"level_{i}": (f"channel_{i}", f"y_{i}", f"x_{i}") for i in range(len(levels))}
        spec = StoreSpec(
            sample_ids=tuple(f"s{i}" for i in range(rows)),
            arrays=tuple(
                ArraySpec(name=k, dims=dims.get(k, ("channel",)), shape=v.shape[1:], dtype=str(v.dtype))
                for k, v in arrays.items()
            ),
            columns=(ArraySpec(name="split", dtype="string"), ArraySpec(name="label", dtype="int64")),
            provenance={
                "backbone": {"name": name, "weights": {"kind": weights}},
                "sum": float(np.nan_to_num(pooled.astype(np.float64)).sum()),
            },
            rows_per_group=rows_per_group,
            attrs={
                "task": "classification",
                "class_names": [f"class {i}" for i in range(classes)],
                "levels": [
                    LevelSpec(
                        index=i, channels=x.shape[1], reduction=64 / x.shape[2], height=x.shape[2], width=x.shape[3]
                    ).to_json()
                    for i, x in enumerate(levels)
                ],
            },
        )
        columns = {
            "split": np.array(split or [("train", "train", "val", "test")[i % 4] for i in range(rows)], dtype=object),
            "label": np.arange(rows) % classes if label is None else label,
        }
        path = tmp_path / "cache" / dataset / f"{name}.zarr"
        with FeatureWriter(path, spec) as writer:
            for group in range(spec.groups):
                here = spec.group_rows(group)
                some = {k: v[here] for k, v in columns.items()}
                writer.write_group(group, {k: v[here] for k, v in arrays.items()}, some)
            writer.commit()
        return tmp_path / "cache"

    return build
