"""Trained heads applied: to the features they were trained on, to other datasets', to images; and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from PIL import Image
from typer.testing import CliRunner

from embedcache.ensemble import open_ensemble
from embedcache.errors import EmbedcacheError, SampleError, SettingError, WeightsError
from embedcache.evaluation.record import load_record, save_record
from embedcache.prediction import Answers, features_for
from embedcache.prediction_output import file_names, write_masks
from embedcache.protocol import run_protocol
from embedcache.train_config import TrainConfig
from embedcache.trained_head import load_head
from embedcache_cli.app import app

sys.path.insert(0, str(Path(__file__).parent))
from segments import CLASSES, UTM, ground, make_masks, make_tif_chips, store

VECTORS = ("linear", "mlp", "logistic", "knn")
MAPS = ("upernet", "linear-seg", "fcn")
JOINED = "sam2_hiera_tiny+sam2_hiera_tiny@small"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with vectors of chips and maps of masks, heads of all kinds trained on them."""
    root = tmp_path_factory.mktemp("predict")
    make_tif_chips(root / "chips")
    make_masks(root / "m-seg")
    for reference in (f"folder:{root}/chips", f"geobench:{root}/m-seg"):
        store(reference, root / "cache")
        store(reference, root / "cache", input_size=32, tag="small")
    for head in VECTORS:
        train(root, "chips", JOINED, head=head, epochs=4, hidden=16, channels="100:1500" if head == "mlp" else None)
    for head in MAPS:
        train(root, "m-seg", "sam2_hiera_tiny", head=head, epochs=2, decoder_channels=8)
    train(root, "m-seg", JOINED, head="linear-seg", epochs=2, levels=(0, 2), standardise=False)
    return root


def train(root: Path, dataset: str, features: str, **config: Any) -> None:
    run_protocol(open_ensemble(root / "cache", dataset, features), TrainConfig(**config), [0], root / "results")


def record_of(root: Path, dataset: str, head: str, features: str = "*") -> Path:
    (path,) = (root / "results" / dataset).glob(f"{features}/{head}-*/seed-0.json")
    return path


def run(*args: str | Path) -> dict[str, Any]:
    ran = CliRunner().invoke(app, ["predict", *map(str, args), "--device", "cpu", "--json"], catch_exceptions=False)
    assert ran.exit_code == 0
    return dict(json.loads(ran.stdout))


@pytest.mark.parametrize("head", VECTORS)
def test_labels_of_the_test_split_score_what_the_record_says(work: Path, tmp_path: Path, head: str) -> None:
    path = record_of(work, "chips", head)
    facts = run(path, "--out", tmp_path / "out")
    record = load_record(path)
    assert facts["scores"] == pytest.approx(dict(record.test), abs=1e-6)
    assert facts["scores"]["accuracy"] == record.test["accuracy"]
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    parquet = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    pd.testing.assert_frame_equal(table, parquet, check_dtype=False, rtol=1e-6)
    features = open_ensemble(work / "cache", "chips", JOINED)
    rows = np.flatnonzero(features.split == "test")
    assert table.sample_id.tolist() == features.sample_ids[rows].tolist()
    assert table.target_index.tolist() == features.label[rows].tolist()
    assert [CLASSES[i] for i in table.predicted_index] == table.predicted.tolist()
    assert (table.predicted == table.target).mean() == record.test["accuracy"]
    chances = table[["p_soil", "p_water"]].to_numpy()
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    assert chances.argmax(axis=1).tolist() == table.predicted_index.tolist()
    assert run(path, "--split", "all", "--out", tmp_path / "all")["samples"] == features.rows


@pytest.mark.parametrize(("head", "features"), [*((h, "sam2_hiera_tiny") for h in MAPS), ("linear-seg", JOINED)])
def test_masks_of_the_test_split_score_what_the_record_says(
    work: Path, tmp_path: Path, head: str, features: str
) -> None:
    path = record_of(work, "m-seg", head, features)
    facts = run(path, "--out", tmp_path / "out", "--probabilities")
    assert facts["scores"] == pytest.approx(dict(load_record(path).test), abs=1e-6)
    listed = pd.read_csv(tmp_path / "out" / "masks.csv")
    own = open_ensemble(work / "cache", "m-seg", "sam2_hiera_tiny")
    rows = np.flatnonzero(own.split == "test")
    assert listed.sample_id.tolist() == own.sample_ids[rows].tolist()
    right = 0.0
    for sample_id, row, name in zip(listed.sample_id, rows, listed["mask"], strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / name))
        assert (mask.dtype, name) == (np.uint8, f"masks/{sample_id}.png")
        right += float((mask == own.stores[0].read("mask", np.array([row]))[0]).mean())
        chances = np.load(tmp_path / "out" / "masks" / f"{sample_id}.probabilities.npy")
        assert (chances.dtype, chances.shape) == (np.float16, (2, 64, 64))
        clear = np.abs(chances[0].astype(float) - chances[1]) > 2e-3
        np.testing.assert_array_equal(chances.argmax(axis=0)[clear], mask[clear])
    assert right / len(rows) == pytest.approx(load_record(path).test["pixel_accuracy"], abs=1e-9)


def test_images_give_what_the_store_gives(work: Path, tmp_path: Path) -> None:
    path = record_of(work, "chips", "linear")
    run(path, "--split", "all", "--out", tmp_path / "stored")
    facts = run(path, "--images", f"folder:{work}/chips", "--out", tmp_path / "live")
    stored, live = (pd.read_csv(tmp_path / name / "predictions.csv") for name in ("stored", "live"))
    assert stored.sample_id.tolist() == live.sample_id.tolist()
    assert stored.target.tolist() == live.target.tolist()
    # Roundings of 2^-11 in 1500 channels; standardised, they move a logit by some thousandths.
    np.testing.assert_allclose(stored.p_soil, live.p_soil, atol=5e-3)
    assert facts["scored"] == 45
    bare = run(path, "--images", work / "chips", "--out", tmp_path / "bare")
    assert bare["scores"] == {}
    table = pd.read_csv(tmp_path / "bare" / "predictions.csv")
    assert table.target.isna().all()
    by_id = dict(zip(live.sample_id, live.p_soil, strict=True))
    np.testing.assert_allclose(table.p_soil, [by_id[i] for i in table.sample_id], atol=1e-4)


def test_masks_lie_where_the_images_lie(work: Path, tmp_path: Path) -> None:
    path = record_of(work, "m-seg", "linear-seg", "sam2_hiera_tiny")
    run(path, "--images", work / "chips", "--out", tmp_path / "tif", "--probabilities")
    for i in (0, 7):
        name = f"{CLASSES[i % 2]}/{CLASSES[i % 2]}_{i}"
        with rasterio.open(tmp_path / "tif" / "masks" / f"{name}.tif") as file:
            assert (file.crs, file.dtypes, file.shape) == (UTM, ("uint8",), (64, 64))
            assert file.transform.almost_equals(ground(i, pixel=10.0 * 48 / 64))  # 48 px of 10 m as 64 px of 7.5 m
            mask, where = file.read(1), file.bounds
            assert file.tags()["classes"] == "0|1"
        with rasterio.open(work / "chips" / f"{name}.tif") as file:
            assert where == pytest.approx(file.bounds)
        with rasterio.open(tmp_path / "tif" / "masks" / f"{name}.probabilities.tif") as file:
            np.testing.assert_array_equal(file.read().argmax(axis=0), mask)
    reference = f"geobench:{work}/m-seg"
    run(path, "--georeference", reference, "--out", tmp_path / "stored")
    run(path, "--images", reference, "--split", "test", "--out", tmp_path / "live")
    run(path, "--out", tmp_path / "plain")
    differ = []
    for number in range(22, 30):
        with rasterio.open(tmp_path / "stored" / "masks" / f"id_{number:03d}.tif") as file:
            assert file.crs == UTM
            assert file.transform.almost_equals(ground(number))
            stored = file.read(1)
        with rasterio.open(tmp_path / "live" / "masks" / f"id_{number:03d}.tif") as file:
            assert file.transform.almost_equals(ground(number))
            differ.append(float((file.read(1) != stored).mean()))
        plain = np.asarray(Image.open(tmp_path / "plain" / "masks" / f"id_{number:03d}.png"))
        np.testing.assert_array_equal(stored, plain)
    assert max(differ) < 0.005


def test_a_head_goes_to_another_dataset_of_the_same_backbones_and_no_other(work: Path, tmp_path: Path) -> None:
    root = tmp_path / "other"
    make_tif_chips(tmp_path / "more", count=21, seed=9)
    shutil.copytree(work / "cache" / "chips", root / "cache" / "chips")
    store(f"folder:{tmp_path}/more", root / "cache")
    store(f"folder:{tmp_path}/more", root / "cache", input_size=32, tag="small")
    path = record_of(work, "chips", "logistic")
    facts = run(path, "--cache", root / "cache", "--dataset", "more", "--out", tmp_path / "out")
    assert (facts["samples"], facts["split"], facts["scored"]) == (21, "all", 21)
    assert facts["scores"]["accuracy"] > 0.9
    for changes, fragment in (({"input_size": 96}, "input_size"), ({"weights": "random:7"}, "weights")):
        shutil.rmtree(root / "cache" / "more" / "sam2_hiera_tiny.zarr")
        store(f"folder:{tmp_path}/more", root / "cache", **changes)
        with pytest.raises(SettingError, match=fragment):
            run(path, "--cache", root / "cache", "--dataset", "more", "--out", tmp_path / "no")
    with pytest.raises(SettingError, match="weights"):  # of the dataset itself: the head's own store says so
        run(path, "--cache", root / "cache", "--dataset", "more", "--out", tmp_path / "no")
    shutil.rmtree(root / "cache" / "chips" / "sam2_hiera_tiny.zarr")
    notes: list[str] = []
    features_for(*load_head(path), root / "cache", "more", notes.append)
    assert len(notes) == 1
    assert re.search("encoded as 'chips'.* is not known, only that shapes are equal: no features", notes[0])
    shutil.rmtree(root / "cache" / "more" / "sam2_hiera_tiny.zarr")
    wrong = dataclasses.replace(
        load_record(path), channels={"sam2_hiera_tiny": [0, 5], "sam2_hiera_tiny@small": [5, 9]}
    )
    save_record(tmp_path / "odd" / path.name, wrong)
    shutil.copy(path.with_suffix(".safetensors"), tmp_path / "odd")
    with pytest.raises(WeightsError, match=r"scale\.mean is \(1536,\), not \(9,\)"):
        run(tmp_path / "odd" / path.name, "--cache", root / "cache")
    assert not (tmp_path / "no").exists()


def test_masks_without_a_labelled_pixel_score_nothing_and_lose_nothing(work: Path, tmp_path: Path) -> None:
    record, _ = load_head(record_of(work, "m-seg", "fcn"))
    logits = torch.randn(2, len(record.class_names), 4, 4)
    unknown = [np.full((4, 4), 255, np.int16)] * 2
    facts = write_masks(
        record, [Answers(["a", "b"], ["test"] * 2, logits, unknown)], tmp_path, ["a", "b"], ignore_index=255
    )
    assert facts == {"samples": 2, "scored": 2, "scores": {}}
    assert (tmp_path / "masks" / "b.png").is_file()


def test_maps_of_other_grids_are_refused(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "cache", tmp_path / "cache")
    shutil.copytree(
        tmp_path / "cache" / "m-seg" / "sam2_hiera_tiny@small.zarr", tmp_path / "cache" / "n" / "sam2_hiera_tiny.zarr"
    )
    path = record_of(work, "m-seg", "fcn")
    with pytest.raises(SettingError, match=r"reads level_0 .* \[96, 16, 16\].* has \[96, 8, 8\]"):
        run(path, "--cache", tmp_path / "cache", "--dataset", "n")
    head = load_head(path)[1]
    with pytest.raises(SettingError, match="reads maps of"):
        head.map_logits([[torch.zeros(1, 96, 8, 8)]], (64, 64))
    with pytest.raises(SettingError, match="reads feature maps"):
        head.logits(torch.zeros(1, 768))
    with pytest.raises(SettingError, match="vectors of 1536 channels"):
        load_head(record_of(work, "chips", "linear"))[1].logits(torch.zeros(1, 768))


def test_what_is_missing_or_of_another_run_is_named(work: Path, tmp_path: Path) -> None:
    path = record_of(work, "chips", "linear")
    lone = Path(shutil.copy(path, tmp_path / "seed-0.json"))
    with pytest.raises(WeightsError, match="does not exist"):
        run(lone)
    lone.with_suffix(".safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        run(lone)
    for head in ("mlp", "knn"):
        shutil.copy(record_of(work, "chips", head).with_suffix(".safetensors"), lone.with_suffix(".safetensors"))
        with pytest.raises(WeightsError, match="of other head"):
            run(lone)
    shutil.copy(path.with_suffix(".safetensors"), lone.with_suffix(".safetensors"))
    record = load_record(path)
    save_record(lone, dataclasses.replace(record, config={**record.config, "batch_norm": True}))
    with pytest.raises(WeightsError, match=r"does not hold the weights of head 'linear'.*norm\.mean"):
        run(lone)
    save_record(lone, dataclasses.replace(record, failed="the loss of seed 0 became nan in epoch 1"))
    with pytest.raises(SettingError, match="was given up"):
        run(lone)
    save_record(lone, dataclasses.replace(record, fingerprints={"sam2_hiera_tiny": "0" * 64}))
    for more in ((), ("--images", str(work / "chips"))):
        with pytest.raises(SettingError, match="its fingerprint is"):
            run(lone, *more)
    lone.write_text("{}")
    with pytest.raises(EmbedcacheError, match="not a result record"):
        run(lone)


def test_output_appears_whole_or_not_at_all(work: Path, tmp_path: Path) -> None:
    path = record_of(work, "m-seg", "linear-seg", "sam2_hiera_tiny")
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(work / "chips" / "soil", images)
    broken = images / "soil_44.tif"  # the last one
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(SampleError, match=r"soil_44\.tif"):
        run(path, "--images", images, "--out", out)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]
    facts = run(path, "--images", images, "--out", out, "--skip-bad")
    assert (facts["samples"], list(facts["lost"])) == (22, ["soil_44.tif"])
    first = sorted(p.name for p in (out / "masks").iterdir())
    assert len(first) == 22
    (images / "soil_0.tif").unlink()
    broken.unlink()
    assert run(path, "--images", images, "--out", out)["samples"] == 21  # ours is replaced
    assert len(list((out / "masks").iterdir())) == 21
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(SettingError, match="something else than predictions"):
        run(path, "--out", thesis)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out", "thesis"]


def test_images_without_the_bands_are_refused(work: Path, tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "grey" / "a.png")
    path = record_of(work, "chips", "linear")
    with pytest.raises(EmbedcacheError, match="1 bands without standard names"):
        run(path, "--images", tmp_path / "grey")
    with pytest.raises(EmbedcacheError, match="holds no image"):
        run(path, "--images", path.parent)
    with pytest.raises(SettingError, match="--georeference is for masks"):
        run(path, "--georeference", f"folder:{work}/chips")


def test_several_labels(tmp_path: Path) -> None:
    make_tif_chips(tmp_path / "multi")
    lines = ["path,label,split"]
    for i in range(45):
        name = CLASSES[i % 2]
        lines.append(
            f"{name}/{name}_{i}.tif,{name}{'|old' if i % 3 == 0 else ''},{('train', 'val', 'test')[i % 5 % 3]}"
        )
    (tmp_path / "multi" / "table.csv").write_text("\n".join(lines) + "\n")
    store(f"folder:{tmp_path}/multi/table.csv", tmp_path / "cache", input_size=32)
    train(tmp_path, "multi", "sam2_hiera_tiny", head="linear", epochs=3)
    train(tmp_path, "multi", "sam2_hiera_tiny", head="knn", k=3)
    for head in ("linear", "knn"):
        path = record_of(tmp_path, "multi", head)
        assert run(path, "--out", tmp_path / head)["scores"] == pytest.approx(dict(load_record(path).test), abs=1e-6)
    table = pd.read_csv(tmp_path / "linear" / "predictions.csv", keep_default_na=False)
    assert {"soil|old", "old|soil"} & set(table.target)
    for _, line in table.iterrows():
        assert line.predicted.split("|") == [c for c in ("old", "soil", "water") if line[f"p_{c}"] > 0.5] or (
            line.predicted == "" and max(line[f"p_{c}"] for c in ("old", "soil", "water")) <= 0.5
        )


def test_file_names_are_safe_and_unique() -> None:
    assert file_names(["a/b.tif", "../x.png", "/etc/pw"]) == {"a/b.tif": "a/b", "../x.png": "__/x", "/etc/pw": "etc/pw"}
    assert file_names(["a.png", "a.tif"]) == {"a.png": "a.png", "a.tif": "a.tif"}
    with pytest.raises(EmbedcacheError):
        file_names(["a:b", "a?b"])
