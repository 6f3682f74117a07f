"""How long the command line takes to answer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from _common import interleaved, save

from embedcache.datasets._registry import open_dataset
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractOptions, plan_extraction
from embedcache.synthetic import make_scenes


def main() -> None:
    """Time the quick commands against a bare interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = open_dataset(f"geobench:{make_scenes(root / 'm-bench', train=8, val=0, test=0)}")
        for tag in ("a", "b", "c"):
            options = ExtractOptions(weights="random", input_size=32, tag=tag)
            extract(plan_extraction(source, "sam2_hiera_tiny", root / "cache", options))

        def command(*args: str) -> None:
            subprocess.run([sys.executable, *args], check=True, capture_output=True, cwd=root)

        works = {
            "python -c pass": lambda: command("-c", "pass"),
            "embedcache --help": lambda: command("-m", "embedcache_cli", "--help"),
            "embedcache backbones": lambda: command("-m", "embedcache_cli", "backbones"),
            "embedcache ls": lambda: command("-m", "embedcache_cli", "ls"),
        }
        taken = interleaved(works, repeats=7)
    base = taken["python -c pass"]
    save(
        "startup",
        "Time to answer",
        ("command", "seconds", "times a bare interpreter"),
        [(name, f"{value:.2f}", f"{value / base:.1f}") for name, value in taken.items()],
        ["Medians of 7, in turns, files cached. Targets: `--help` under 0.5 s, `ls` under 1.5 s."],
    )
