"""What only a GPU can show: the same features, in fp32 and bf16, as on the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedcache.datasets._registry import open_dataset
from embedcache.ensemble import Ensemble
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractOptions, plan_extraction
from embedcache.feature_loader import FeatureLoader
from embedcache_stores import FeatureStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA DEVICE: nothing was run on a GPU"),
]


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("bf16", 3e-2)])
@pytest.mark.parametrize("backbone", ["sam2_hiera_tiny", "prithvi_eo_v2_tiny_tl", "dofa_small"])
def test_features_of_a_gpu_are_those_of_the_cpu(
    chips: Path, tmp_path: Path, backbone: str, precision: Any, bound: float
) -> None:
    source = open_dataset(f"folder:{chips}")
    options = ExtractOptions(weights="random", input_size=64, what="both", dtype="float32", device="cpu")
    on_cpu = FeatureStore(extract(plan_extraction(source, backbone, tmp_path / "cpu", options)))
    there = dataclasses.replace(options, device="cuda", precision=precision)
    on_gpu = FeatureStore(extract(plan_extraction(source, backbone, tmp_path / "gpu", there)))
    for spec in on_cpu.manifest.arrays:
        a, b = (s.array(spec.name)[:].astype(np.float64) for s in (on_cpu, on_gpu))
        assert np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2)) < bound, spec.name


def test_bf16_is_the_default_of_a_gpu(chips: Path, tmp_path: Path) -> None:
    options = ExtractOptions(weights="random", input_size=64)
    plan = plan_extraction(open_dataset(f"folder:{chips}"), "sam2_hiera_tiny", tmp_path, options)
    assert (plan.device, plan.precision) == ("cuda", "bf16")


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_batches_on_a_gpu_are_those_on_the_cpu(chips: Path, tmp_path: Path, mode: Any, dtype: Any) -> None:
    options = ExtractOptions(weights="random", input_size=64, what="both", dtype=dtype, device="cpu")
    source = open_dataset(f"folder:{chips}")
    store = FeatureStore(extract(plan_extraction(source, "sam2_hiera_tiny", tmp_path, options)))

    def batches(device: str) -> list[tuple[torch.Tensor, ...]]:
        loader = FeatureLoader(
            Ensemble([store]), ["pooled_mean", "level_0"], np.arange(40), batch_size=7, device=device, mode=mode
        )
        assert loader.mode == mode
        # Copied: buffers are used again, pinned ones too, while their batch may be on its way.
        return [tuple(x.to("cpu", copy=True) for x in (*b.x.values(), b.y)) for b in loader.epoch(1) if b.y is not None]

    here, there = batches("cpu"), batches("cuda")
    assert len(here) == len(there) == 6
    for left, right in zip(here, there, strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
