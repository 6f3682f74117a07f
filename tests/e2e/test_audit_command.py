"""The input audit on the command line: shown by --plan, refused by extract, accepted and recorded when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from embedcache.synthetic import make_scene


def test_reflectance_given_as_digital_numbers_stops_and_may_be_accepted(cli: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(6):
        folder = tmp_path / "chips" / ("a", "b")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (make_scene(i, 32, rng)[[3, 2, 1]] * 1e-4).astype("float32")
        with rasterio.open(
            folder / f"{i}.tif", "w", driver="GTiff", count=3, height=32, width=32, dtype="float32"
        ) as f:
            f.write(pixels)
    asked = ("extract", "--dataset", "folder:chips", "--backbone", "sam2_hiera_tiny", "--weights", "random")
    asked += ("--input-size", "32", "--units", "dn")
    planned = cli(*asked, "--plan", cwd=tmp_path)
    assert planned.code == 1
    assert "1 error" in planned.out
    assert "--units reflectance" in planned.out
    refused = cli(*asked, cwd=tmp_path)
    assert refused.code == 1
    assert "--accept-audit" in refused.err
    assert not (tmp_path / "cache").exists()
    accepted = cli(*asked, "--accept-audit", cwd=tmp_path)
    assert accepted.code == 0, accepted.err
    shown = cli("info", "chips/sam2_hiera_tiny", cwd=tmp_path)
    assert "accepted" in shown.out
    assert "10000x too small" in shown.out
    kept = json.loads(cli("info", "chips/sam2_hiera_tiny", "--json", cwd=tmp_path).out)["attributes"]["audit"]
    assert kept["accepted"]
    assert kept["findings"][0]["check"] == "units"
