"""Feature stores with known content, made by the one writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedcache.loading import PooledData, Vectors
from embedcache_stores import ArraySpec, FeatureStore, FeatureWriter, LevelSpec, StoreSpec

Make = Callable[..., FeatureStore]

torch.set_num_threads(1)  # tiny products; threads would only wait for each other


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return ``make(name, pooled, label, split, ...)``: a committed store of dataset ``m-x``."""

    def build(
        name: str,
        pooled: np.ndarray,
        label: np.ndarray | None = None,
        split: Sequence[str] | None = None,
        *,
        ids: Sequence[str] | None = None,
        levels: Sequence[np.ndarray] = (),
        rows_per_group: int = 8,
        task: str = "classification",
        classes: int = 3,
        digests: dict[str, str] | None = None,
        weights: str = "file",
    ) -> FeatureStore:
        rows = len(pooled)
        label = np.arange(rows) % classes if label is None else label
        split = [("train", "val", "test")[i % 3] for i in range(rows)] if split is None else split
        specs = tuple(
            LevelSpec(index=i, channels=x.shape[1], reduction=64 / x.shape[2], height=x.shape[2], width=x.shape[3])
            for i, x in enumerate(levels)
        )
        arrays = {"pooled_mean": pooled} | {f"level_{i}": x for i, x in enumerate(levels)}
        spec = StoreSpec(
            sample_ids=tuple(ids or (f"s{i}" for i in range(rows))),
            arrays=tuple(
                ArraySpec(
                    name=k,
                    dims=("channel",) if v.ndim == 2 else (f"channel_{k[-1]}", f"y_{k[-1]}", f"x_{k[-1]}"),
                    shape=v.shape[1:],
                    dtype=str(v.dtype),
                )
                for k, v in arrays.items()
            ),
            columns=(
                ArraySpec(name="split", dtype="string"),
                ArraySpec(name="problem", dtype="string"),
                ArraySpec(
                    name="label",
                    dims=("class",) if label.ndim == 2 else (),
                    shape=label.shape[1:],
                    dtype="uint8" if label.ndim == 2 else "int64",
                ),
            ),
            provenance={
                "backbone": {"name": name, "weights": {"kind": weights}},
                "dataset": digests or {"splits": "s", "labels": "l"},
                "content": float(np.nan_to_num(pooled.astype(np.float64)).sum()),
            },
            rows_per_group=rows_per_group,
            attrs={
                "task": task,
                "class_names": [f"class {i}" for i in range(classes)],
                "levels": [s.to_json() for s in specs],
            },
        )
        columns: dict[str, Any] = {
            "split": np.array(split, dtype=object),
            "problem": np.array([""] * rows, dtype=object),
            "label": label.astype(np.uint8 if label.ndim == 2 else np.int64),
        }
        path = tmp_path / "cache" / "m-x" / f"{name}.zarr"
        with FeatureWriter(path, spec) as writer:
            for group in range(spec.groups):
                here = spec.group_rows(group)
                writer.write_group(
                    group, {k: v[here] for k, v in arrays.items()}, {k: v[here] for k, v in columns.items()}
                )
            writer.commit()
        return FeatureStore(path)

    return build


@pytest.fixture
def blobs() -> Callable[..., tuple[np.ndarray, np.ndarray, list[str]]]:
    """Return ``blobs(rows, channels, classes)``: overlapping Gaussian clusters, labels and splits."""

    def draw(
        rows: int = 240, channels: int = 12, classes: int = 3, seed: int = 0, noise: float = 2.0
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        rng = np.random.default_rng(seed)
        label = rng.integers(0, classes, rows)
        centres = rng.normal(size=(classes, channels))
        x = centres[label] + noise * rng.normal(size=(rows, channels))
        split = [("train", "train", "val", "test")[i % 4] for i in range(rows)]
        return x.astype(np.float32), label, split

    return draw


@pytest.fixture(scope="session")
def pooled() -> Callable[..., PooledData]:
    """Return ``pooled(task, train, ...)``: vectors in memory that a plane separates only in part."""

    def draw(
        task: str = "classification",
        train: int = 61,
        other: int = 40,
        channels: int = 6,
        classes: int = 3,
        seed: int = 0,
        noise: float = 1.0,
    ) -> PooledData:
        rng = np.random.default_rng(seed)
        plane = rng.normal(size=(channels, classes))
        splits = []
        for n in (train, other, other + 1):
            x = rng.normal(size=(n, channels)) * rng.uniform(0.5, 3, channels) + 1
            logits = x @ plane + noise * rng.normal(size=(n, classes)) * np.linalg.norm(plane)
            y = logits.argmax(axis=1) if task == "classification" else (logits > np.median(logits, axis=0))
            target = torch.from_numpy(y.astype(np.int64 if task == "classification" else np.float32))
            splits.append(Vectors.held(torch.from_numpy(x.astype(np.float32)), target, np.arange(n).astype(str)))
        return PooledData(*splits, task=task, num_classes=classes)

    return draw
