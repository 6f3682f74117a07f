"""The recipes of the documentation run, in order, and print what they say."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from embedcache.synthetic import CLASS_NAMES, make_scene

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
TITLES = re.findall(r"^## (\d+)\. ", PAGE.read_text(), re.MULTILINE)
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
SPLITS = ("train", "train", "train", "val", "test")


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of scenes that the page speaks of, and its cache, made by the page's own command."""
    root = tmp_path_factory.mktemp("recipes")
    rng = np.random.default_rng(0)
    lines = ["path,label,split,lat,lon"]
    for i in range(90):
        label = i % len(CLASS_NAMES)
        path = f"{CLASS_NAMES[label]}/scene_{i:03d}.tif"
        (root / "fields" / path).parent.mkdir(parents=True, exist_ok=True)
        scene = make_scene(label, 64, rng)
        grid = {"width": 64, "height": 64, "crs": "EPSG:32632", "transform": Affine(10, 0, 5e5, 0, -10, 5.1e6)}
        with rasterio.open(root / "fields" / path, "w", driver="GTiff", count=13, dtype="int16", **grid) as file:
            file.write(scene)
        lines.append(f"{path},{CLASS_NAMES[label]},{SPLITS[i // 9 % 5]},{46 + i / 100},{7 + i / 50}")
    (root / "fields" / "fields.csv").write_text("\n".join(lines) + "\n")
    (command,) = [block.replace("\\\n", " ") for language, block in FENCES if not language]
    words = shlex.split(command)
    assert words[0] == "embedcache"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "embedcache_cli", *words[1:]],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def printed(fields: Path) -> Iterator[list[tuple[str, str | None, str]]]:
    """Each block with the output that the page promises, where it does, and the output that it had."""
    space: dict[str, Any] = {}
    out: list[tuple[str, str | None, str]] = []
    blocks = [f for f in FENCES if f[0]]
    with contextlib.chdir(fields):
        for at, (language, code) in enumerate(blocks):
            if language != "python":
                continue
            promised = blocks[at + 1][1] if at + 1 < len(blocks) and blocks[at + 1][0] == "text" else None
            heard = io.StringIO()
            with contextlib.redirect_stdout(heard):
                exec(compile(code, f"{PAGE.name}, block {len(out) + 1}", "exec"), space)
            out.append((code, promised, heard.getvalue()))
        yield out


def test_ten_recipes_run_and_print_what_the_page_says(printed: list[tuple[str, str | None, str]]) -> None:
    assert [int(t) for t in TITLES] == list(range(1, 11))
    assert len(printed) == 11
    for code, promised, heard in printed:
        if promised is not None:
            assert heard == promised, code
        assert "print(" in code or "assert " in code


def test_what_the_recipes_leave_is_there(printed: list[Any], fields: Path) -> None:
    from PIL import Image

    assert Image.open(fields / "level_0.png").size == (16, 16)
    assert (fields / "fields.csv").read_text().count("\n") == 91
    neighbours = next(heard for code, _, heard in printed if "nearest" in code).splitlines()
    assert neighbours[0] == "1.000  dry plots/scene_005.tif"
    assert len(neighbours) == 4
