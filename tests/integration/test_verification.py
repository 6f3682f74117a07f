"""Rows encoded again: equal on the machine that made them, and told from those of another backbone."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import find_weights, load_backbone
from embedcache.datasets._registry import open_dataset
from embedcache.errors import SettingError
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractionPlan, ExtractOptions, plan_extraction
from embedcache.verification import ARITHMETIC_BOUND, STORAGE_BOUND, plan_again, provenance_notes, recompute
from embedcache_stores import FeatureStore, FingerprintMismatchError, SampleIdMismatchError
from embedcache_stores.manifest import read_manifest

Hiera = Callable[..., Any]


def plan(chips: Path, cache: Path, **changes: Any) -> ExtractionPlan:
    options = {"weights": "random", "input_size": 64, "what": "both", "batch_size": 8, "device": "cpu", **changes}
    return plan_extraction(open_dataset(f"folder:{chips}"), "sam2_hiera_tiny", cache, ExtractOptions(**options))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_rows_encoded_again_differ_by_rounding_only(chips: Path, tmp_path: Path, hiera: Hiera, dtype: str) -> None:
    broken = chips / "forest" / "forest_6.png"
    broken.write_bytes(broken.read_bytes()[:60])
    path = extract(plan(chips, tmp_path / "c", dtype=dtype, skip_bad=True, tag="t"), extractor=hiera())
    again = plan_again(path, open_dataset(f"folder:{chips}"), None, "cpu")
    assert again.complete
    found = recompute(again, 7, seed=3, extractor=hiera())
    assert found.rows == len(set(found.row_numbers)) == 7
    assert set(found.deviation) == {"pooled_mean", "level_0", "level_1", "level_2", "level_3"}
    # Whole batches are encoded again, so arithmetic adds nothing; only storing does.
    assert max(found.deviation.values()) <= STORAGE_BOUND[dtype]
    assert (max(found.deviation.values()) == 0) == (dtype == "float32")
    assert not found.exceeds
    assert found.bound == STORAGE_BOUND[dtype] + ARITHMETIC_BOUND["fp32"]
    if dtype == "float16":
        skipped = FeatureStore(path).sample_ids.tolist().index("forest/forest_6.png")
        assert skipped not in recompute(again, 40, extractor=hiera()).row_numbers


def test_another_backbone_s_rows_exceed_the_bound(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    path = extract(plan(chips, tmp_path / "c"), extractor=hiera())
    spec = get_backbone("sam2_hiera_tiny")
    other = load_backbone(spec, find_weights(spec, "random:1"), ("RED", "GREEN", "BLUE"), 64)
    found = recompute(plan_again(path, open_dataset(f"folder:{chips}"), None, "cpu"), 4, extractor=other)
    assert found.exceeds
    assert found.to_json()["exceeds"]
    assert min(found.deviation.values()) > 0.1


def test_a_few_thousandths_more_are_found(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    path = extract(plan(chips, tmp_path / "c"), extractor=hiera())
    shifted = load_backbone(
        get_backbone("sam2_hiera_tiny"),
        find_weights(get_backbone("sam2_hiera_tiny"), "random"),
        ("RED", "GREEN", "BLUE"),
        64,
    )
    with torch.no_grad():
        for parameter in shifted.module.parameters():
            parameter.mul_(1.01)
    assert recompute(plan_again(path, open_dataset(f"folder:{chips}"), None, "cpu"), 4, extractor=shifted).exceeds


def test_other_images_are_refused_before_anything_is_encoded(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    path = extract(plan(chips, tmp_path / "c"), extractor=hiera())
    (chips / "water" / "water_1.png").rename(chips / "forest" / "water_1.png")
    with pytest.raises(FingerprintMismatchError, match=r"dataset\.ids.*dataset\.labels"):
        plan_again(path, open_dataset(f"folder:{chips}"), None, "cpu")


@pytest.mark.parametrize("stored", [False, True])
def test_another_dataset_s_images_are_refused(chips: Path, tmp_path: Path, hiera: Hiera, stored: bool) -> None:
    path = extract(plan(chips, tmp_path / "c"), extractor=hiera())
    other = Path(shutil.copytree(chips, tmp_path / "other"))
    (other / "water" / "water_1.png").unlink()
    if stored:  # a store of the same backbone, options and cache: just not the one that was asked about
        extract(plan(other, tmp_path / "c"), extractor=hiera())
    with pytest.raises(
        SampleIdMismatchError, match=r"chips/sam2_hiera_tiny.*was not made from 'other'.*are \d+ others"
    ):
        plan_again(path, open_dataset(f"folder:{other}"), None, "cpu")


def test_weights_of_a_file_must_be_given(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    file = tmp_path / "w.pt"
    torch.save(dict(hiera().module.state_dict()), file)
    path = extract(plan(chips, tmp_path / "c", weights=str(file)), extractor=hiera())
    with pytest.raises(SettingError, match=r"made with weights from .*w\.pt.*--weights"):
        plan_again(path, open_dataset(f"folder:{chips}"), None, "cpu")
    assert plan_again(path, open_dataset(f"folder:{chips}"), str(file), "cpu").complete


def test_what_the_code_would_do_otherwise_is_noted(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    found = read_manifest(extract(plan(chips, tmp_path / "c"), extractor=hiera()))
    assert provenance_notes(found) == []

    def notes(**changes: Any) -> str:
        return "; ".join(provenance_notes(dataclasses.replace(found, provenance={**found.provenance, **changes})))

    assert "made with recipe 0" in notes(recipe=0)
    assert "'gone' is not known here" in notes(backbone={"name": "gone"})
    then = found.provenance["preprocessing"]
    assert "band RED is normalised differently" in notes(preprocessing={**then, "mean": [0.0, *then["mean"][1:]]})
    assert "takes no band TIR" in notes(preprocessing={**then, "bands": ["TIR"]})
    assert "level_0 has another shape" in notes(preprocessing={**then, "input_size": 96})
