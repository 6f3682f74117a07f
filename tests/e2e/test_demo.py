"""``embedcache demo`` from an empty folder, and what can be done with what it leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BOTH = "prithvi_eo_v2_tiny_tl+sam2_hiera_tiny"


def test_demo_prints_a_table_that_says_the_weights_are_random(demo_folder: Path) -> None:
    printed = (demo_folder / "printed.txt").read_text()
    assert "prithvi_eo_v2_tiny_tl (random weights)" in printed
    assert "are random: nothing here says how good these backbones are" in printed


def test_the_ensemble_beats_both_members_on_the_demo(demo_folder: Path) -> None:
    printed = (demo_folder / "printed.txt").read_text()
    scores = {m[1]: float(m[2]) for m in re.finditer(r"^m-demo\s+(\S+) .*linear\s+([\d.]+)", printed, re.MULTILINE)}
    members = [scores["prithvi_eo_v2_tiny_tl"], scores["sam2_hiera_tiny"]]
    assert scores[BOTH] > max(members) + 10  # percentage points; seeds spread by about one
    assert min(members) > 100 / 9 + 20  # nine classes


def test_demo_leaves_a_picture_and_a_page_without_outside_links(demo_folder: Path) -> None:
    picture = np.asarray(Image.open(demo_folder / "embedcache-demo/report.png").convert("RGB"))
    assert picture.std() > 10  # not blank
    page = (demo_folder / "embedcache-demo/report.html").read_text()
    assert "are random" in page
    assert not re.search(r"(src|href)=[\"']?http", page)


def test_demo_run_again_trains_and_extracts_nothing(demo_folder: Path, cli: Callable[..., Any]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (demo_folder / "embedcache-demo").rglob("seed-*.json")}
    ran = cli("demo", "--seeds", "4", cwd=demo_folder)
    assert ran.code == 0
    assert ran.err.count("already complete") == 2
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_ls_info_and_report_give_json(demo_folder: Path, cli: Callable[..., Any]) -> None:
    root = Path("embedcache-demo")
    stores = json.loads(cli("ls", "--cache", root / "cache", "--json", cwd=demo_folder).out)
    assert [(s["dataset"], s["rows"], s["state"]) for s in stores] == [("m-demo", 480, "complete")] * 2
    facts = json.loads(cli("info", root / "cache/m-demo/sam2_hiera_tiny.zarr", "--json", cwd=demo_folder).out)
    assert facts["provenance"]["backbone"]["weights"]["kind"] == "random"
    ran = cli("report", root / "results", "--out", "again.html", "--json", cwd=demo_folder)
    assert {s["features"] for s in json.loads(ran.out)} == {"prithvi_eo_v2_tiny_tl", "sam2_hiera_tiny", BOTH}
    assert (demo_folder / "again.png").exists()


def test_one_seed_alone_equals_that_seed_of_several(demo_folder: Path, cli: Callable[..., Any]) -> None:
    args = ("train-head", "--dataset", "m-demo", "--features", BOTH, "--cache", "embedcache-demo/cache")
    alone = json.loads(cli(*args, "--seed", "2", "--out", "alone", "--json", cwd=demo_folder).out)
    several = json.loads(cli(*args, "--seeds", "4", "--out", "embedcache-demo/results", "--json", cwd=demo_folder).out)
    assert alone[0]["scores"][0] == several[0]["scores"][2]


def test_xarray_reads_the_cache_where_embedcache_cannot_be_imported(demo_folder: Path) -> None:
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("embedcache"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import xarray as xr
ds = xr.open_zarr("embedcache-demo/cache/m-demo/prithvi_eo_v2_tiny_tl.zarr")
train = ds.pooled_mean.where((ds.split == "train").compute(), drop=True)
assert train.shape == (240, 192), train.shape
assert set(ds.coords) >= {"sample_id", "split"} and str(ds.sample_id.values[0]) == "id_0000"
assert sorted(set(ds.label.values.tolist())) == list(range(9))
assert float(abs(ds.pooled_cls).max()) > 0
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=demo_folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["--help", "extract --help", "train-head --help", "ls --help"])
def test_help_is_readable(command: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
    ran = cli(*command.split(), cwd=tmp_path)
    assert ran.code == 0
    assert "Usage: " in ran.out
