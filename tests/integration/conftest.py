"""A folder dataset of generated pictures, and a quick backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import find_weights, load_backbone


def make_chips(root: Path, count: int = 40, size: int = 32) -> Path:
    rng = np.random.default_rng(4)
    for i in range(count):
        name = ("forest", "water")[i % 2]
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(root / name / f"{name}_{i}.png")
    return root


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Forty noise pictures in two class folders."""
    return make_chips(tmp_path / "chips")


@pytest.fixture(scope="session")
def hiera() -> Callable[..., Any]:
    """Return SAM 2 Hiera tiny with random weights, the same object every time."""
    spec = get_backbone("sam2_hiera_tiny")
    model = load_backbone(spec, find_weights(spec, "random"), ("RED", "GREEN", "BLUE"), 64)
    return lambda: model
