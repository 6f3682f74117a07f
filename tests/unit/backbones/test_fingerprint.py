"""The recipe moves when the features may, and only then: every built-in backbone, and one of one's own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.backbones import BackboneSpec
from embedcache.backbones._registry import built_in, get_backbone
from embedcache.datasets._registry import open_dataset
from embedcache.datasets._spec import OpenOptions
from embedcache.extraction_plan import ExtractOptions, plan_extraction

Recipe = Callable[..., str]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return ``recipe(backbone, **options)`` of an extraction that is only planned."""
    root = tmp_path_factory.mktemp("plans")
    for i in range(4):
        folder = root / "chips" / ("forest", "water")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 60 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    source = open_dataset(f"folder:{root / 'chips'}", None, OpenOptions())

    def plan(backbone: str | BackboneSpec, **options: Any) -> str:
        asked = ExtractOptions(**{"weights": "random", "device": "cpu", "what": "both", **options})
        return str(plan_extraction(source, backbone, root / "cache", asked).spec.recipe)

    return plan


@pytest.mark.parametrize("name", sorted(built_in()))
def test_every_backbone_has_a_recipe_that_moves_when_it_must(recipe: Recipe, name: str) -> None:
    spec = get_backbone(name)
    first = recipe(name)
    for same in ({}, {"batch_size": 2}, {"workers": 1}, {"tag": "x"}, {"compression": "lz4"}, {"skip_bad": True}):
        assert recipe(name, **same) == first
    other = [
        recipe(name, weights="random:1"),
        recipe(name, input_size=spec.size_multiple * 4),
        recipe(name, dtype="float32"),
        recipe(name, what="pooled"),
        recipe(name, precision="bf16"),
        recipe(name, limit=2),
    ]
    assert len({first, *other}) == 7


def test_no_two_backbones_share_a_recipe(recipe: Recipe) -> None:
    assert len({recipe(name) for name in built_in()}) == len(built_in())


def test_a_plug_ins_recipe_holds_what_decides_its_features(recipe: Recipe) -> None:
    mine = replace(get_backbone("sam2_hiera_tiny"), name="mine", version="1", reference="my_models:MINE")
    first = recipe(mine)
    for change in ({"reference": "moved:MINE"}, {"title": "better"}, {"notes": ("seen",)}, {"licence": "MIT"}):
        assert recipe(replace(mine, **change)) == first
    statistics = tuple(replace(b, mean=0.5) for b in mine.bands)
    moved = [{"version": "2"}, {"bands": statistics}, {"bands": mine.bands[::-1]}, {"name": "yours"}]
    assert len({first, *(recipe(replace(mine, **change)) for change in moved)}) == 5


def test_the_weights_of_a_file_are_told_by_content(recipe: Recipe, tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / f"{name}.pt").write_bytes(content)
    a, b, c = (recipe("sam2_hiera_tiny", weights=str(tmp_path / f"{n}.pt")) for n in "abc")
    assert a == b != c


def test_the_list_of_backbones_takes_under_a_second_and_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['embedcache', 'backbones', '--json']\n"
        "from embedcache_cli.app import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'timm', 'terratorch', 'sam2', 'torchvision'} & set(sys.modules)\n"
    )
    seconds = []
    for _ in range(5):  # the best of five: others use this machine
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=60)
        seconds.append(time.perf_counter() - begin)
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1, seconds
