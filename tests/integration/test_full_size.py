"""Every full-size architecture is built and run once with random weights, one at a time."""

from __future__ import annotations

import gc

import pytest
import torch

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import find_weights, load_backbone

pytestmark = pytest.mark.full_size

LARGE = (
    "sam2_hiera_small",
    "sam2_hiera_base_plus",
    "sam2_hiera_large",
    "dofa_base",
    "dofa_large",
    "prithvi_eo_v1_100",
    "prithvi_eo_v2_100_tl",
    "prithvi_eo_v2_300",
    "prithvi_eo_v2_300_tl",
    "prithvi_eo_v2_600",
    "prithvi_eo_v2_600_tl",
)


@pytest.mark.parametrize("name", LARGE)
def test_full_size_levels_and_parameters_are_as_declared(name: str) -> None:
    spec = get_backbone(name)
    model = load_backbone(spec, find_weights(spec, "random"), tuple(b.name for b in spec.bands))
    assert sum(p.numel() for p in model.module.parameters()) / 1e6 == pytest.approx(spec.parameters_m, rel=0.01)
    coords = (torch.tensor([[2020.0, 3.0]]), torch.tensor([[45.0, 9.0]])) if spec.uses_coords else ()
    with torch.inference_mode():
        features = model(torch.randn(1, len(spec.bands), 224, 224), *coords)
    declared = [(level.channels, level.height, level.width) for level in spec.levels(224)]
    assert [tuple(level.shape[1:]) for level in features.levels] == declared
    assert all(torch.isfinite(level).all() for level in features.levels)
    del model, features
    gc.collect()
