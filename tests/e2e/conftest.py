"""The command line in processes of its own, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture(scope="session")
def cli() -> Cli:
    def run(*args: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "embedcache_cli", *map(str, args)],
            cwd=cwd,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def demo_folder(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which ``embedcache demo`` was run once."""
    folder = tmp_path_factory.mktemp("demo")
    ran = cli("demo", "--seeds", "4", cwd=folder)
    assert ran.code == 0, ran.err
    (folder / "printed.txt").write_text(ran.out)
    return folder


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Class folders of 60 small PNGs: reddish and bluish noise."""
    rng = np.random.default_rng(0)
    for name, tint in (("red_soil", (60, 0, 0)), ("water", (0, 0, 60))):
        folder = tmp_path / "chips" / name
        folder.mkdir(parents=True)
        for i in range(30):
            pixels = np.clip(rng.normal(100, 25, (32, 32, 3)) + tint, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
    return tmp_path / "chips"
