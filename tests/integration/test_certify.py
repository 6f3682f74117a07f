"""Cached equals live, measured; and it can fail."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedcache.certification import AMPLIFICATION, choose_rows
from embedcache.ensemble import open_ensemble
from embedcache.errors import FeatureError, SettingError
from embedcache.verification import plan_again
from embedcache_cli.app import app
from embedcache_stores import FeatureStore, FingerprintMismatchError
from embedcache_stores.writer import FeatureWriter

sys.path.insert(0, str(Path(__file__).parent))
from segments import make_masks, make_tif_chips, store


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("certify")
    make_tif_chips(root / "chips", count=40, size=32)
    make_masks(root / "m-seg", (8, 4, 4))
    store(f"folder:{root}/chips", root / "cache", input_size=32)
    for dtype in ("float32", "bfloat16", "int8"):
        store(f"folder:{root}/chips", root / "cache", input_size=32, dtype=dtype, tag=dtype)
    store(f"geobench:{root}/m-seg", root / "cache", input_size=32)
    return root


def run(root: Path, dataset: str, features: str = "sam2_hiera_tiny", *more: str, code: int = 0) -> dict[str, Any]:
    kind = "geobench" if dataset.startswith("m-") else "folder"
    reference = f"{kind}:{root}/{dataset}"
    args = ["certify", "--dataset", reference, "--features", features, "--cache", str(root / "cache"), *more]
    ran = CliRunner().invoke(app, [*args, "--device", "cpu", "--json"])
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == code, ran.output
    return dict(json.loads(ran.stdout))


@pytest.mark.parametrize("head", ["linear", "mlp", "logistic"])
def test_heads_on_vectors(work: Path, head: str) -> None:
    found = run(work, "chips", "sam2_hiera_tiny", "--head", head)
    (features,) = found["features_deviate"].values()
    assert 0.1 < features["of_bound"] <= 1  # rounding is there, and is all there is
    assert 0 < found["logits_deviate"] <= found["logits_bound"] < 0.2
    assert found["cached"] == found["live"]
    assert found["holds"]
    rows = found["rows"]
    assert sum(rows.values()) == 40
    if head != "logistic":  # every epoch encoded every training row anew, and the validation rows
        assert found["images_encoded"] > found["epochs"] * (rows["train"] + rows["val"])


@pytest.mark.parametrize("head", ["upernet", "linear-seg"])
def test_heads_on_maps(work: Path, head: str) -> None:
    found = run(work, "m-seg", "sam2_hiera_tiny", "--head", head, "--decoder-channels", "8", "--epochs", "2")
    assert list(found["features_deviate"]) == [f"sam2_hiera_tiny/level_{i}" for i in range(4)]
    assert all(0.1 < d["of_bound"] <= 1 for d in found["features_deviate"].values())
    assert found["holds"]
    assert found["images_encoded"] > found["epochs"] * (found["rows"]["train"] + found["rows"]["val"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_other_dtypes_keep_their_own_bounds(work: Path, dtype: str) -> None:
    found = run(work, "chips", f"sam2_hiera_tiny@{dtype}", "--limit", "24")
    assert found["holds"]
    assert sum(found["rows"].values()) == pytest.approx(24, abs=2)
    spread = found["features_deviate"][f"sam2_hiera_tiny@{dtype}/pooled_mean"]["of_spread"]
    assert (spread < 1e-3) if dtype == "float32" else (spread > 1e-3)


def rewritten(place: Path, change: Any) -> None:
    """Write a store anew with changed vectors, checksums and all: nothing but a comparison can notice."""
    old = FeatureStore(place)
    rows = np.arange(old.rows)
    values, columns = old.read("pooled_mean", rows), {c.name: old.column(c.name) for c in old.manifest.columns}
    spec = plan_of(place).spec
    shutil.rmtree(place)
    with FeatureWriter(place, spec) as writer:
        for group in writer.missing:
            here = spec.group_rows(group)
            writer.write_group(group, {"pooled_mean": change(values)[here]}, {k: v[here] for k, v in columns.items()})
        writer.commit()


def plan_of(place: Path) -> Any:
    from embedcache.datasets._registry import open_dataset

    return plan_again(place, open_dataset(f"folder:{place.parents[2]}/chips"), None, "cpu")


@pytest.fixture
def copy(work: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(work, tmp_path / "work"))


def test_it_fails_for_values_that_no_rounding_explains(copy: Path) -> None:
    place = copy / "cache" / "chips" / "sam2_hiera_tiny.zarr"

    def three_ulps(values: Any) -> Any:
        out = values.copy()
        out[5] = (out[5].astype(np.float32) * (1 + 3 * 2.0**-11)).astype(np.float16)
        return out

    rewritten(place, lambda values: values)
    assert run(copy, "chips")["holds"]
    rewritten(place, three_ulps)
    found = run(copy, "chips", code=1)
    assert found["features_exceed"]
    assert not found["holds"]


def test_it_fails_for_vectors_of_other_samples(copy: Path) -> None:
    rewritten(copy / "cache" / "chips" / "sam2_hiera_tiny.zarr", lambda values: np.roll(values, 1, axis=0))
    found = run(copy, "chips", code=1)
    assert found["features_deviate"]["sam2_hiera_tiny/pooled_mean"]["of_bound"] > 20
    assert found["features_exceed"]
    assert found["logits_exceed"]


def test_it_fails_for_images_that_changed(copy: Path) -> None:
    shutil.copy(copy / "chips" / "water" / "water_3.tif", copy / "chips" / "soil" / "soil_4.tif")
    found = run(copy, "chips", code=1)
    assert found["features_exceed"]
    assert found["notes"] == ["1 of the images changed since they were encoded"]


def test_a_flipped_bit_is_found_by_its_checksum(copy: Path) -> None:
    chunk = copy / "cache" / "chips" / "sam2_hiera_tiny.zarr" / "pooled_mean" / "c.0.0"
    raw = bytearray(chunk.read_bytes())
    raw[1001] ^= 64
    chunk.write_bytes(raw)
    with pytest.raises(Exception, match="checksum") as caught:
        run(copy, "chips")
    assert not isinstance(caught.value, FeatureError)


def test_an_ensemble(work: Path) -> None:
    found = run(work, "chips", "sam2_hiera_tiny+sam2_hiera_tiny@float32", "--limit", "20", "--epochs", "2")
    assert list(found["features_deviate"]) == [f"sam2_hiera_tiny{t}/pooled_mean" for t in ("", "@float32")]
    assert found["holds"]
    assert AMPLIFICATION == 4


def test_what_cannot_be_certified(work: Path, copy: Path) -> None:
    with pytest.raises(SettingError, match="'knn' trains nothing"):
        run(work, "chips", "sam2_hiera_tiny", "--head", "knn")
    with pytest.raises(SettingError, match="at least 6"):
        run(work, "chips", "sam2_hiera_tiny", "--limit", "3")
    args = ["certify", "--dataset", "chips", "--features", "sam2_hiera_tiny", "--cache", str(work / "cache")]
    with pytest.raises(SettingError, match="name them with --images"):
        CliRunner().invoke(app, args, catch_exceptions=False)
    (copy / "chips" / "soil" / "soil_0.tif").unlink()
    with pytest.raises(FingerprintMismatchError):
        run(copy, "chips")


def test_rows_are_spread_over_every_split(work: Path) -> None:
    features = open_ensemble(work / "cache", "chips", "sam2_hiera_tiny")
    assert choose_rows(features, 200).tolist() == list(range(40))
    rows = choose_rows(features, 10)
    counts = {name: int((features.split[rows] == name).sum()) for name in ("train", "val", "test")}
    assert counts == {"train": 6, "val": 2, "test": 2}
    assert len(set(rows.tolist())) == 10
