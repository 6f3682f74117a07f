"""Small backbones with random weights, loaded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import find_weights, load_backbone

SMALL = ("sam2_hiera_tiny", "prithvi_eo_v2_tiny_tl", "dofa_small")


@pytest.fixture(scope="session")
def loaded() -> Callable[..., Any]:
    """Return ``load(name, seed=0, size=224, bands=None)``; equal calls give the same object."""

    @cache
    def load(name: str, seed: int = 0, size: int = 224, bands: tuple[str, ...] | None = None) -> Any:
        spec = get_backbone(name)
        names = bands or tuple(b.name for b in spec.bands)
        return load_backbone(spec, find_weights(spec, f"random:{seed}"), names, size)

    return load
