"""Augmented views from extraction to verification, against explicit loops over flipped and rotated inputs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedcache.datasets._registry import open_dataset
from embedcache.encoding import encode
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractionPlan, ExtractOptions, plan_extraction
from embedcache.verification import plan_again, recompute
from embedcache.views import D4, turned
from embedcache_stores import FeatureStore, FingerprintMismatchError
from embedcache_stores.chunks import crc32c
from embedcache_stores.verify import verify_store

Hiera = Callable[..., Any]
BASE = ExtractOptions(weights="random", input_size=64, what="both", batch_size=8, device="cpu", limit=12)


def plan(chips: Path, cache: Path, **changes: Any) -> ExtractionPlan:
    source = open_dataset(f"folder:{chips}")
    made = plan_extraction(source, "sam2_hiera_tiny", cache, dataclasses.replace(BASE, **changes))
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, rows_per_group=4))


def files(place: os.PathLike[str]) -> dict[str, bytes]:
    store = Path(place)
    out = {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    root = json.loads(out["zarr.json"])
    root["attributes"]["embedcache"].pop("created")
    return out | {"zarr.json": json.dumps(root).encode()}


def test_every_view_is_the_backbone_on_the_turned_input(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    made = plan(chips, tmp_path / "c", views=tuple(D4), dtype="float32", limit=5)
    assert (made.batch_size, made.batch_rows) == (8, 1)
    store = FeatureStore(extract(made, extractor=hiera()))
    assert store.views == tuple(D4)
    pixels = np.stack([np.asarray(Image.open(chips / i)) for i in store.sample_ids]).transpose(0, 3, 1, 2)
    inputs = made.preprocessing(torch.from_numpy(pixels.copy()))
    for view in D4:
        with torch.inference_mode():
            features = hiera()(turned(inputs, view))
        rows = np.arange(5)
        for i, level in enumerate(features.levels):
            np.testing.assert_allclose(store.read(f"level_{i}", rows, view), level.numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            store.read("pooled_mean", rows, view), features.pooled["mean"].numpy(), rtol=1e-4, atol=1e-4
        )
    still, flipped = (store.read("level_0", rows, v) for v in ("identity", "hflip"))
    assert np.abs(flipped[..., ::-1] - still).max() > 1e-3  # no backbone is its own mirror image: views are not copies


def test_turning_the_input_is_turning_the_file(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    store = FeatureStore(extract(plan(chips, tmp_path / "c", views=tuple(D4), dtype="float32"), extractor=hiera()))
    for view in ("hflip", "rot90"):
        other = tmp_path / view
        for sample_id in store.sample_ids:
            (other / sample_id).parent.mkdir(parents=True, exist_ok=True)
            x = torch.from_numpy(np.asarray(Image.open(chips / sample_id)).copy()).permute(2, 0, 1)
            Image.fromarray(turned(x, view).permute(1, 2, 0).contiguous().numpy()).save(other / sample_id)
        again = plan(other, tmp_path / "d", dtype="float32", limit=None)
        plain = FeatureStore(extract(again, extractor=hiera()))
        rows = np.arange(12)
        assert plain.sample_ids.tolist() == store.sample_ids.tolist()
        for name in ("pooled_mean", "level_0", "level_3"):
            np.testing.assert_allclose(store.read(name, rows, view), plain.read(name, rows), rtol=1e-3, atol=1e-3)


def test_views_move_the_fingerprint_and_none_leaves_it(chips: Path, tmp_path: Path) -> None:
    plain = plan(chips, tmp_path / "c")
    assert "views" not in plain.spec.provenance
    assert plan(chips, tmp_path / "c", views=("identity",)).spec.recipe == plain.spec.recipe
    some = plan(chips, tmp_path / "c", views=("rot90", "hflip"))
    assert some.spec.provenance["views"] == ["identity", "hflip", "rot90"]
    assert some.spec.recipe == plan(chips, tmp_path / "c", views=("hflip", "rot90")).spec.recipe
    assert len({p.spec.recipe for p in (plain, some, plan(chips, tmp_path / "c", views=tuple(D4)))}) == 3
    assert some.to_json()["bytes"] == 3 * plain.to_json()["bytes"]


def test_a_store_of_other_views_is_in_the_way(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    extract(plan(chips, tmp_path / "c", limit=4), extractor=hiera())
    with pytest.raises(FingerprintMismatchError, match="views is '\\(absent\\)', asked"):
        plan(chips, tmp_path / "c", limit=4, views=("hflip",))


class StopError(Exception):
    pass


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_stopped_extraction_of_views_resumes_to_identical_bytes(
    chips: Path, tmp_path: Path, hiera: Hiera, dtype: Any
) -> None:
    views = ("hflip", "rot90")
    whole = files(extract(plan(chips, tmp_path / "whole", views=views, dtype=dtype), extractor=hiera()))
    seen = []

    def stop(progress: Any) -> None:
        seen.append(progress)
        if progress.rows >= 8:
            raise StopError

    with pytest.raises(StopError):
        extract(plan(chips, tmp_path / "c", views=views, dtype=dtype), extractor=hiera(), on_progress=stop)
    assert files(extract(plan(chips, tmp_path / "c", views=views, dtype=dtype), extractor=hiera())) == whole


def test_a_changed_image_is_encoded_again_in_every_view(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    made = plan(chips, tmp_path / "c", views=("vflip",))
    extract(made, extractor=hiera())
    changed = chips / made.spec.sample_ids[5]
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    again = plan(chips, tmp_path / "c", views=("vflip",))
    assert again.stale == (5,)
    mended = files(extract(again, extractor=hiera()))
    assert mended == files(extract(plan(chips, tmp_path / "new", views=("vflip",)), extractor=hiera()))


def test_recomputing_checks_every_view(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    made = plan(chips, tmp_path / "c", views=("hflip", "rot90"))
    path = Path(extract(made, extractor=hiera()))
    source = open_dataset(f"folder:{chips}")
    again = dataclasses.replace(plan_again(path, source, None, "cpu"), spec=made.spec)
    found = recompute(again, 6, extractor=hiera())
    assert not found.exceeds
    assert max(found.deviation.values()) < 1e-3
    file = path / "pooled_mean" / "c.1.0.0"  # swap two views of a whole group: every checksum made right again
    raw = file.read_bytes()[:-4]
    values = np.frombuffer(raw, dtype="<f2").reshape(4, 3, -1)[:, [0, 2, 1]].tobytes()
    file.write_bytes(values + crc32c(values))
    assert recompute(again, 12, extractor=hiera()).exceeds
    assert verify_store(path).faults


def test_one_view_a_row_is_that_of_all_views(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    made = plan(chips, tmp_path / "c", views=tuple(D4), dtype="float32")
    rows = [made.source.read(i, made.preprocessing.source_bands) for i in made.indices[:8]]
    every = encode(made, hiera(), rows)
    own = encode(made, hiera(), rows, views=list(D4))
    for name, values in own.items():
        np.testing.assert_allclose(values, every[name][np.arange(8), np.arange(8)], rtol=1e-4, atol=1e-4)
