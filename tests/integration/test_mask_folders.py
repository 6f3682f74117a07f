"""Images with masks become a store: masks by the nearest pixel, stale rows where a mask changes, bad ones skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.contents import ContentIndex, status_of
from embedcache.datasets._registry import open_dataset
from embedcache.errors import SampleError
from embedcache.extraction import Progress, extract
from embedcache.extraction_plan import ExtractionPlan, ExtractOptions, plan_extraction
from embedcache_stores import FeatureStore, FingerprintMismatchError
from embedcache_stores.manifest import peek_manifest

Hiera = Callable[..., Any]
SIZES = {f"{i}": (40 + i, 64 - i) for i in range(12)}


def paint(root: Path, name: str, seed: int) -> np.ndarray[Any, Any]:
    mask = np.random.default_rng(seed).integers(0, 3, SIZES[name]).astype(np.uint8) * 10
    (root / "masks").mkdir(exist_ok=True)
    Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return mask


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    root = tmp_path / "scenes"
    (root / "images").mkdir(parents=True)
    for seed, (name, size) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(100 + seed).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        paint(root, name, seed)
    (root / "classes.csv").write_text("class,value,ignore\nland,0,\nwater,10,\ncloud,20,ignore\n")
    return root


def plan(scenes: Path, cache: Path, **changes: Any) -> ExtractionPlan:
    options = ExtractOptions(weights="random", input_size=64, batch_size=4, device="cpu", **changes)
    return plan_extraction(open_dataset(f"folder:{scenes}"), "sam2_hiera_tiny", cache, options)


def test_masks_of_any_size_are_stored_by_the_nearest_pixel(scenes: Path, tmp_path: Path, hiera: Hiera) -> None:
    store = FeatureStore(extract(plan(scenes, tmp_path / "c"), extractor=hiera()))
    assert store.manifest.attrs["class_names"] == ["land", "water"]
    assert store.manifest.attrs["ignore_index"] == -1
    for row, sample_id in enumerate(store.sample_ids):
        mask = np.asarray(Image.open(scenes / sample_id.replace("images", "masks")))
        nearest = np.asarray(Image.fromarray(mask).resize((64, 64), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(store.read("mask", [row])[0], np.array([0, 1, -1])[nearest // 10])


def test_changed_mask_is_a_stale_row_and_mending_it_gives_the_bytes_of_a_new_store(
    scenes: Path, tmp_path: Path, hiera: Hiera
) -> None:
    first = extract(plan(scenes, tmp_path / "c"), extractor=hiera())
    before = FeatureStore(first).manifest
    paint(scenes, "5", 77)
    again = plan(scenes, tmp_path / "c")
    assert again.stale == (5,)
    status = status_of(peek_manifest(again.place), again.source, ContentIndex(again.place))
    assert [row.sample_id for row in status.stale] == ["images/5.png"]
    seen: list[Progress] = []
    extract(again, extractor=hiera(), on_progress=seen.append)
    assert seen[-1].new_rows == 4, "its batch, and nothing else"
    mended, anew = FeatureStore(first), FeatureStore(extract(plan(scenes, tmp_path / "n"), extractor=hiera()))
    assert mended.manifest.fingerprint == anew.manifest.fingerprint != before.fingerprint
    for name in ("mask", *(level.name for level in anew.levels)):
        np.testing.assert_array_equal(mended.read(name, range(12)), anew.read(name, range(12)))


def test_changed_meaning_of_values_is_another_store(scenes: Path, tmp_path: Path, hiera: Hiera) -> None:
    extract(plan(scenes, tmp_path / "c"), extractor=hiera())
    (scenes / "classes.csv").write_text("class,value\nland,0\nwater,10\ncloud,20\n")
    with pytest.raises(FingerprintMismatchError, match="labels"):
        plan(scenes, tmp_path / "c")


def test_bad_mask_is_named_or_skipped_with_every_pixel_ignored(scenes: Path, tmp_path: Path, hiera: Hiera) -> None:
    mask = paint(scenes, "7", 7)
    mask[0, :3] = 99
    Image.fromarray(mask).save(scenes / "masks" / "7.png")
    with pytest.raises(SampleError, match=r"^sample 'images/7\.png' .*7\.png' holds 99 in 3 px"):
        extract(plan(scenes, tmp_path / "c"), extractor=hiera())
    store = FeatureStore(extract(plan(scenes, tmp_path / "s", skip_bad=True), extractor=hiera()))
    assert (store.column("split") == "skipped").nonzero()[0].tolist() == [7]
    assert "holds 99 in 3 px" in store.column("problem")[7]
    assert (store.read("mask", [7]) == -1).all()
