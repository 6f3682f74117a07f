"""Backbones that are not built in, from the command line to verified stores."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedcache.backbones._registry import built_in, get_backbone
from embedcache.backbones._weights import find_weights, load_backbone
from embedcache.datasets._registry import open_dataset
from embedcache.datasets._spec import OpenOptions
from embedcache.errors import UnknownNameError
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractOptions, plan_extraction
from embedcache.verification import plan_again, provenance_notes, recompute
from embedcache_stores.errors import FingerprintMismatchError
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.manifest import read_manifest

PLUGIN = """
from dataclasses import replace
from embedcache.backbones.sam2_hiera import SPECS

TINY = SPECS[0]

def load(spec, *given):
    return TINY.load(TINY, *given)

MINE = replace(TINY, name="mine", version="1", load=load)
TWO = [replace(MINE, name="first"), replace(MINE, name="second")]
"""
SMALL = ("--weights", "random", "--input-size", "32", "--device", "cpu", "--json")


def cli(*words: str, cwd: Path, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "embedcache_cli", *words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_file_of_ones_own_is_extracted_and_verified(chips: Path, tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(PLUGIN)
    data = ("--dataset", f"folder:{chips}")
    done = cli("extract", *data, "--backbone", "my_models:MINE", "--backbone", "my_models:TWO", *SMALL, cwd=tmp_path)
    assert [d["backbone"] for d in done] == ["mine", "first", "second"]
    stores = [FeatureStore(tmp_path / "cache" / "chips" / f"{d['backbone']}.zarr") for d in done]
    vectors = [s.read("pooled_mean", np.arange(40)) for s in stores]
    assert all(np.array_equal(vectors[0], v) for v in vectors)  # one architecture, one seed
    assert len({s.manifest.fingerprint for s in stores}) == 3
    source = open_dataset(f"folder:{chips}", None, OpenOptions())
    with pytest.raises(UnknownNameError, match="EMBEDCACHE_BACKBONES"):  # a store makes nothing be imported
        plan_again(stores[0].place, source, None, "cpu")
    named = {"EMBEDCACHE_BACKBONES": "my_models:MINE"}
    listed = cli("backbones", "--json", cwd=tmp_path, **named)
    assert {b["name"]: b["plugin"] for b in listed}["mine"] == "my_models:MINE"
    cli("verify", "chips/mine", "--recompute", "5", *data, "--device", "cpu", "--json", cwd=tmp_path, **named)
    again = cli("extract", *data, "--backbone", "mine", *SMALL, cwd=tmp_path, **named)
    assert again[0]["new_rows"] == 0


def test_terratorchs_registry_is_extracted_and_verified(chips: Path, tmp_path: Path) -> None:
    source = open_dataset(f"folder:{chips}", None, OpenOptions())
    options = ExtractOptions(weights="random", device="cpu", input_size=32, what="both")
    plan = plan_extraction(source, "terratorch:timm_resnet18", tmp_path, options)
    assert any("worked out by running timm_resnet18 once at 32 px" in note for note in plan.notes)
    assert any("RED, GREEN, BLUE: timm's statistics" in note for note in plan.notes)
    extract(plan)
    store = FeatureStore(plan.place)
    assert plan.place.name == "terratorch_timm_resnet18.zarr"
    assert store.spec("level_0").shape == (64, 8, 8)
    assert store.spec("pooled_mean").shape == (512,)
    manifest = read_manifest(plan.place)
    assert provenance_notes(manifest) == []
    result = recompute(plan_again(plan.place, source, None, "cpu"), 10)
    assert not result.exceeds
    with pytest.raises(FingerprintMismatchError):
        plan_extraction(source, "terratorch:timm_resnet18:RED=1000/500,GREEN,BLUE", tmp_path, options)


def test_the_guides_own_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "backbones.md").read_text()
    example = re.search(r"^```python\n(# my_models.py\n.*?)^```", guide, re.DOTALL | re.MULTILINE)
    assert example is not None
    (tmp_path / "guide_models.py").write_text(example[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = get_backbone("guide_models:MINE")
    model = load_backbone(spec, find_weights(spec, "random"), ("RED", "GREEN", "BLUE"), 64)
    features = model(torch.zeros(2, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in features.levels] == [
        (level.channels, level.height, level.width) for level in spec.levels(64)
    ]
    assert sum(p.numel() for p in model.module.parameters()) / 1e6 == pytest.approx(spec.parameters_m, rel=0.05)


def test_the_guide_names_every_built_in_backbone() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "backbones.md").read_text()
    for name in built_in():
        parts = [name.rpartition("_hiera_"), name.partition("_eo_v2_"), name.partition("_")]
        assert f"`{name}`" in guide or any(f"`{a}{b}`" in guide and f"`{c}`" in guide for a, b, c in parts if c)
