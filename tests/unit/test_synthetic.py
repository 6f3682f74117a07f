"""The demo's scenes are what the demo says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedcache.bands import SENTINEL2
from embedcache.datasets._registry import open_dataset
from embedcache.synthetic import CLASS_NAMES, KEYS, make_scene, make_scenes


def test_scenes_are_read_back_by_the_geobench_reader(tmp_path: Path) -> None:
    source = open_dataset(f"geobench:{make_scenes(tmp_path / 'm-demo', train=18, val=9, test=9, size=16)}")
    assert source.info.bands == tuple(SENTINEL2.values())
    assert source.info.num_classes == len(CLASS_NAMES) == 9
    labels = [source.read(i, ["RED"]).target for i in range(36)]
    assert labels == [*range(9), *range(9), *range(9), *range(9)]
    assert [source.splits.count(s) for s in ("train", "val", "test")] == [18, 9, 9]


def test_equal_seeds_give_equal_pixels() -> None:
    first, second, other = (make_scene(4, 32, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_two_materials_look_alike_in_rgb_and_differ_in_infrared() -> None:
    def means(material: int) -> np.ndarray:
        scenes = [make_scene(material * 3 + i % 3, 32, np.random.default_rng(i)) for i in range(90)]
        return np.mean([s.mean(axis=(1, 2)) for s in scenes], axis=0)

    irrigated, dry = means(0), means(1)
    rgb = [KEYS.index(k) for k in ("02 - Blue", "03 - Green", "04 - Red")]
    infrared = [KEYS.index(k) for k in ("08 - NIR", "12 - SWIR")]
    change = np.abs(irrigated / dry - 1)
    assert change[rgb].max() < 0.06
    assert change[infrared].min() > 0.15
