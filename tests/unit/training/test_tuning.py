"""The tuner tells an encoding that loses what matters from one that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.errors import DatasetError, SettingError
from embedcache.train_config import TrainConfig
from embedcache.tuning import EncodingResult, recommended, tune_store
from embedcache_stores import ArraySpec, FeatureStore, FeatureWriter, LevelSpec, StoreSpec
from embedcache_stores.schema import level_arrays

Make = Callable[..., FeatureStore]
CONFIG = TrainConfig(epochs=40, learning_rate=0.02)


def by_dtype(results: list[EncodingResult]) -> dict[str, EncodingResult]:
    return {r.dtype: r for r in results if r.compression == "none"}


def test_easy_features_may_be_stored_as_int8_and_bytes_are_counted(make: Make) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 240)
    x = (np.eye(3)[label] @ rng.normal(size=(3, 16)) + 0.7 * rng.normal(size=(240, 16))).astype(np.float32)
    seen: list[EncodingResult] = []
    results = tune_store(make("a", x, label), range(3), CONFIG, seen.append)
    assert seen == results
    assert len(results) == 12
    found = by_dtype(results)
    assert {d: r.bytes_per_sample for d, r in found.items() if d != "int8"} == pytest.approx(
        {"float32": 64, "float16": 32, "bfloat16": 32}, rel=0.02
    )
    assert 16 <= found["int8"].bytes_per_sample < 32  # a scale per row group of 8 beside it
    assert found["float32"].difference == 0
    assert found["float32"].error == 0 < found["float16"].error < found["bfloat16"].error < found["int8"].error
    assert recommended(results).dtype == "int8"
    assert 0.6 < found["int8"].mean < 1


def test_an_encoding_that_loses_the_signal_is_refused(make: Make) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    x = (2 * label[:, None] - 1) + 0.1 * rng.normal(size=(300, 4))
    x[::8] *= 300  # one outlier in every row group: int8's step becomes far larger than the signal
    x = np.concatenate([x, np.full((300, 1), 1e6)], axis=1).astype(np.float32)  # and float16 overflows
    config = TrainConfig(epochs=60, learning_rate=0.5)
    results = tune_store(make("a", x, label, classes=2), range(3), config)
    found = by_dtype(results)
    assert found["float16"].saturated == 300
    assert not found["float16"].equivalent
    assert not found["int8"].equivalent
    assert recommended(results).dtype in {"bfloat16", "float32"}


def test_masks_are_probed_at_positions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = 30
    mask = rng.integers(0, 2, (rows, 8, 8)).astype(np.int16)
    mask[:, 0] = 255
    maps = np.stack([np.where(mask == 1, 1.0, -1.0) for _ in range(4)], axis=1)
    maps = (maps + 0.5 * rng.normal(size=maps.shape)).astype(np.float32)
    level = LevelSpec(index=0, channels=4, reduction=8, height=8, width=8)
    attrs: dict[str, Any] = {"task": "segmentation", "class_names": ["a", "b"], "ignore_index": 255}
    spec = StoreSpec(
        sample_ids=tuple(f"s{i}" for i in range(rows)),
        arrays=(
            *level_arrays([level], "float32"),
            ArraySpec(name="mask", dims=("y", "x"), shape=(8, 8), dtype="int16"),
        ),
        columns=(ArraySpec(name="split", dtype="string"),),
        provenance={},
        rows_per_group=8,
        attrs={**attrs, "levels": [level.to_json()]},
    )
    split = np.array([("train", "val", "test")[i % 3] for i in range(rows)], dtype=object)
    with FeatureWriter(tmp_path / "m-x" / "a.zarr", spec) as writer:
        for group in writer.missing:
            here = spec.group_rows(group)
            writer.write_group(group, {"level_0": maps[here], "mask": mask[here]}, {"split": split[here]})
        writer.commit()
    results = tune_store(FeatureStore(tmp_path / "m-x" / "a.zarr"), range(2), CONFIG)
    assert 0.9 < by_dtype(results)["float32"].mean <= 1
    assert recommended(results).dtype == "int8"


def test_a_pilot_that_lost_something_or_lacks_a_split_is_refused(make: Make) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.raises(SettingError, match="not float32"):
        tune_store(make("a", x.astype(np.float16)), range(2), CONFIG)
    with pytest.raises(DatasetError, match="no 'test' samples"):
        tune_store(make("b", x.astype(np.float32), split=["train", "val"] * 15), range(2), CONFIG)
