"""Small feature stores, built through the one writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache_stores import ArraySpec, FeatureWriter, StoreSpec


@dataclass(frozen=True)
class Small:
    """A store's spec with the content that every run must end with."""

    spec: StoreSpec
    arrays: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]

    def group(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        rows = self.spec.group_rows(index)
        return {k: v[rows] for k, v in self.arrays.items()}, {k: v[rows] for k, v in self.columns.items()}

    def write(self, path: Path, groups: Iterable[int] | None = None, *, commit: bool = True) -> Path:
        with FeatureWriter(path, self.spec) as writer:
            for index in writer.missing if groups is None else groups:
                writer.write_group(index, *self.group(index))
            if commit:
                writer.commit()
        return path


def build(rows: int = 10, rows_per_group: int = 4, dtype: str = "float16", seed: int = 0, **provenance: Any) -> Small:
    rng = np.random.default_rng(seed)
    spec = StoreSpec(
        sample_ids=tuple(f"sample/é_{i}.tif" for i in range(rows)),
        arrays=(
            ArraySpec(name="pooled_mean", dims=("channel",), shape=(5,), dtype=dtype),
            ArraySpec(name="level_0", dims=("channel_0", "y_0", "x_0"), shape=(3, 4, 2), dtype=dtype),
            ArraySpec(name="mask", dims=("y", "x"), shape=(6, 6), dtype="int16"),
        ),
        columns=(
            ArraySpec(name="split", dtype="string"),
            ArraySpec(name="label", dims=("class",), shape=(3,), dtype="uint8"),
            ArraySpec(name="lat", dtype="float64"),
        ),
        provenance={"backbone": {"name": "b", "weights": {"kind": "file", "sha256": "1"}}, **provenance},
        rows_per_group=rows_per_group,
        attrs={"title": "small", "levels": [], "task": "multilabel"},
    )
    lat = rng.normal(size=rows)
    lat[::3] = np.nan
    return Small(
        spec,
        {a.name: (100 * rng.normal(size=(rows, *a.shape))).astype(a.dtype) for a in spec.arrays},
        {
            "split": np.array([("train", "val", "test")[i % 3] for i in range(rows)], dtype=object),
            "label": rng.integers(0, 2, (rows, 3)).astype(np.uint8),
            "lat": lat,
        },
    )


@pytest.fixture(scope="session")
def small() -> Callable[..., Small]:
    return build


def files_of(path: Path) -> dict[str, bytes]:
    """Every file of a store; the root's time of creation taken out."""
    import json

    out = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    if "zarr.json" in out:
        root = json.loads(out["zarr.json"])
        root["attributes"]["embedcache"].pop("created")
        out["zarr.json"] = json.dumps(root).encode()
    return out


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    return files_of
