"""``embedcache compare`` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache_stores import ArraySpec, FeatureWriter, StoreSpec

Cli = Callable[..., Any]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(90, 5))
    for name, x in {"a": base, "b": base @ rng.normal(size=(5, 5)), "c": rng.normal(size=(90, 5))}.items():
        spec = StoreSpec(
            sample_ids=tuple(f"s{i}" for i in range(90)),
            arrays=(ArraySpec(name="pooled_mean", dims=("channel",), shape=(5,), dtype="float32"),),
            columns=(ArraySpec(name="split", dtype="string"), ArraySpec(name="label", dtype="int64")),
            provenance={"backbone": {"name": name, "weights": {"kind": "random"}}, "sum": float(x.sum())},
            rows_per_group=90,
            attrs={"task": "classification", "class_names": ["x", "y"], "levels": []},
        )
        columns = {"split": np.array(["train"] * 50 + ["test"] * 40, dtype=object), "label": np.arange(90) % 2}
        with FeatureWriter(tmp_path / "cache/m-x" / f"{name}.zarr", spec) as writer:
            writer.write_group(0, {"pooled_mean": x.astype(np.float32)}, columns)
            writer.commit()
    return tmp_path / "cache"


def test_matrices_are_printed_and_drawn(cli: Cli, cache: Path, tmp_path: Path) -> None:
    ran = cli("compare", "--dataset", "m-x", "--plot", "cka.png", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "debiased CKA, 90 samples of m-x (all):" in ran.out
    assert "share of 10 nearest neighbours in common" in ran.out
    assert "random weights: a, b, c" in ran.err
    assert min(Image.open(tmp_path / "cka.png").size) > 300
    asked = ("compare", "--dataset", "m-x", "--features", "a", "--features", "c", "--part", "test", "--json")
    told = json.loads(cli(*asked, cwd=tmp_path).out)
    assert (told["names"], told["samples"]) == (["a", "c"], 40)
    assert abs(told["debiased"][0][1]) < 0.2 < told["debiased"][1][1]


def test_what_makes_no_sense_is_one_sentence(cli: Cli, cache: Path, tmp_path: Path) -> None:
    for args, message in (
        (("--features", "a"), "two representations or more"),
        (("--plot", "x.pdf"), "--plot must end with .png or .svg"),
        (("--array", "level_0"), "holds no feature maps"),
    ):
        ran = cli("compare", "--dataset", "m-x", *args, cwd=tmp_path)
        assert ran.code == 1
        assert message in ran.err
