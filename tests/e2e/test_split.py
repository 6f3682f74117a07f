"""``embedcache split``, ``leakage`` and ``--split`` as a user runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache_stores import ArraySpec, FeatureWriter, StoreSpec

Cli = Callable[..., Any]
CLASSES = ["forest", "river", "road"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of dataset ``m-x``: stores ``a`` and ``b`` with places; four test samples repeat training samples."""
    root = tmp_path_factory.mktemp("places") / "cache"
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 240)
    split = np.array([("train", "train", "val", "test")[i % 4] for i in range(240)], dtype=object)
    lat, lon = rng.uniform(40, 44, 240), rng.uniform(5, 10, 240)
    for name in "ab":
        x = (rng.normal(size=(3, 12))[label] + rng.normal(size=(240, 12))).astype(np.float32)
        x[3:19:4] = x[0:16:4]
        spec = StoreSpec(
            sample_ids=tuple(f"s{i}" for i in range(240)),
            arrays=(ArraySpec(name="pooled_mean", dims=("channel",), shape=(12,), dtype="float32"),),
            columns=(
                ArraySpec(name="split", dtype="string"),
                ArraySpec(name="label", dtype="int64"),
                ArraySpec(name="lat", dtype="float64"),
                ArraySpec(name="lon", dtype="float64"),
            ),
            provenance={"backbone": {"name": name, "weights": {"kind": "random"}}, "sum": float(x.sum())},
            rows_per_group=240,
            attrs={"task": "classification", "class_names": CLASSES, "levels": []},
        )
        with FeatureWriter(root / "m-x" / f"{name}.zarr", spec) as writer:
            writer.write_group(0, {"pooled_mean": x}, {"split": split, "label": label, "lat": lat, "lon": lon})
            writer.commit()
    return root


def test_a_split_is_made_reported_trained_on_and_told_apart(cli: Cli, cache: Path, tmp_path: Path) -> None:
    ran = cli(
        "split", "--dataset", "m-x", "--name", "ground", "--by", "blocks", "--block-km", "50", "--buffer-km", "5",
        "--cache", cache, cwd=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "class    train  val  test" in ran.out
    assert "leakage of split 'ground'" in ran.out
    assert "nearest km  median km" in ran.out
    assert "note: random weights: a" in ran.out
    listed = json.loads(cli("split", "--dataset", "m-x", "--cache", cache, "--json", cwd=tmp_path).out)
    assert [(s["name"], s["made"]["by"], s["made"]["buffer_km"]) for s in listed] == [("ground", "blocks", 5.0)]
    counts = listed[0]["counts"]
    assert sum(counts.values()) == 240

    report = json.loads(cli("leakage", "--dataset", "m-x", "--cache", cache, "--json", cwd=tmp_path).out)
    assert (report["split"], [p["near_duplicates"] for p in report["parts"]]) == ("stored", [0, 4])
    assert {(p["sample_id"], p["train_id"]) for p in report["pairs"]} == {(f"s{i + 3}", f"s{i}") for i in (0, 4, 8, 12)}

    given = ("train-head", "--dataset", "m-x", "--cache", cache, "--head", "logistic", "--c", "1")
    for split in ((), ("--split", "ground")):
        assert cli(*given, "--features", "a+b", *split, cwd=tmp_path).code == 0
    told = cli("report", cwd=tmp_path).out
    assert f"m-x, split ground#{listed[0]['digest'][:6]}  a+b" in told
    assert re.search(r"^m-x +a\+b", told, re.MULTILINE)
    record = next(
        p for p in (tmp_path / "results").rglob("seed-0.json") if json.loads(p.read_text())["split"] is not None
    )
    assert json.loads(record.read_text())["samples"] == {k: counts[k] for k in ("train", "val", "test")}
    predicted = cli("predict", record, cwd=tmp_path)
    assert f"{counts['test']} samples of m-x (test of ground) by logistic on a+b" in predicted.out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--by", "blocks"), 1, "--by blocks needs --block-km"),
        (("--fractions", "half"), 1, "--fractions are three numbers"),
        (("--dataset", "m-y"), 1, "its datasets are m-x"),
        (("--by", "sideways"), 2, "Invalid value for '--by'"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    cli: Cli, cache: Path, tmp_path: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    ran = cli("split", "--dataset", "m-x", "--cache", cache, "--name", "x", *args, cwd=tmp_path)
    assert ran.code == code
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert not (cache / "m-x/splits/x.json").exists()
