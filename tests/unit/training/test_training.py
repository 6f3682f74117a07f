"""Heads: right, repeatable, and independent of what runs beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from embedcache.ensemble import Ensemble
from embedcache.errors import DatasetError, FeatureError, SettingError
from embedcache.evaluation.record import RecordError, find_records, load_record
from embedcache.heads.linear import LinearHead
from embedcache.loading import load_pooled
from embedcache.protocol import run_seeds
from embedcache.training import TrainConfig, score, train_head
from embedcache_stores import FeatureStore

Make = Callable[..., FeatureStore]
Blobs = Callable[..., Any]
QUICK = TrainConfig(epochs=8, batch_size=32, learning_rate=1e-2)


@pytest.fixture
def data(make: Make, blobs: Blobs) -> Any:
    x, label, split = blobs()
    return load_pooled(Ensemble([make("a", x, label, split)]))


def test_one_seed_alone_equals_that_seed_of_several_bit_for_bit(data: Any) -> None:
    several = [train_head(data, QUICK, seed) for seed in range(4)]
    torch.manual_seed(99)
    torch.rand(1000)
    np.random.seed(5)
    before = torch.random.get_rng_state()
    alone = train_head(data, QUICK, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(alone.state[k], several[2].state[k]) for k in alone.state)
    assert (alone.curve, alone.test) == (several[2].curve, several[2].test)
    assert not torch.equal(several[0].state["weight"], several[1].state["weight"])


def test_accuracy_is_that_of_logistic_regression(make: Make, blobs: Blobs) -> None:
    x, label, split = blobs(rows=2000, noise=1.5)
    data = load_pooled(Ensemble([make("a", x, label, split)]))
    ours = train_head(data, TrainConfig(epochs=60, weight_decay=0.0), 0).test["accuracy"]
    at = np.array(split)
    scaler = StandardScaler().fit(x[at == "train"])
    oracle = LogisticRegression(C=100).fit(scaler.transform(x[at == "train"]), label[at == "train"])
    theirs = oracle.score(scaler.transform(x[at == "test"]), label[at == "test"])
    assert 0.5 < theirs < 0.99  # neither hopeless nor trivial
    assert ours == pytest.approx(theirs, abs=0.02)


def test_multilabel_f1_is_that_of_one_regression_per_class(make: Make) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 10)).astype(np.float32)
    label = (x @ rng.normal(size=(10, 4)) + rng.normal(size=(2000, 4)) > 0.5).astype(np.uint8)
    split = np.array([("train", "train", "val", "test")[i % 4] for i in range(2000)])
    store = make("a", x, label, split.tolist(), task="multilabel", classes=4)
    result = train_head(load_pooled(Ensemble([store])), TrainConfig(epochs=60, learning_rate=1e-2, weight_decay=0.0), 0)
    oracle = OneVsRestClassifier(LogisticRegression(C=100)).fit(x[split == "train"], label[split == "train"])
    predicted, truth = oracle.predict(x[split == "test"]), label[split == "test"]
    theirs = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert result.test["f1_micro"] == pytest.approx(theirs, abs=0.02)
    assert theirs > 0.6


def test_the_best_epoch_is_the_first_with_the_best_validation_score(data: Any) -> None:
    result = train_head(data, dataclasses.replace(QUICK, epochs=25), 1)
    curve = [point["val_accuracy"] for point in result.curve]
    assert len(curve) == 25
    assert result.best_epoch == int(np.argmax(curve)) + 1
    assert result.val["accuracy"] == max(curve)


def test_scale_of_a_member_does_not_matter(make: Make, blobs: Blobs) -> None:
    x, label, split = blobs()
    y = blobs(seed=3)[0]
    first = make("a", x, label, split)
    plain = train_head(load_pooled(Ensemble([first, make("b", y, label, split)])), QUICK, 0)
    scaled = train_head(load_pooled(Ensemble([first, make("c", y * 1024, label, split)])), QUICK, 0)
    assert scaled.test == pytest.approx(plain.test, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 119, 120, 1000])
def test_any_batch_size_works_and_constant_channels_are_harmless(make: Make, blobs: Blobs, batch_size: int) -> None:
    x, label, split = blobs()
    x[:, 3] = 0.1
    data = load_pooled(Ensemble([make("a", x, label, split)]))
    result = train_head(data, TrainConfig(epochs=1 if batch_size == 1 else 3, batch_size=batch_size), 0)
    assert all(torch.isfinite(v).all() for v in result.state.values())
    assert result.state["std"][3] == 1


def test_a_loss_that_explodes_is_said(data: Any) -> None:
    with pytest.raises(SettingError, match=r"loss of seed 0 became .* in epoch \d; lower --learning-rate"):
        train_head(data, TrainConfig(learning_rate=1e30), 0)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}])
def test_numbers_that_make_no_sense_are_said(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong)).replace("_", "-")):
        TrainConfig(**wrong)


def test_saved_weights_give_the_recorded_score(make: Make, blobs: Blobs, tmp_path: Path) -> None:
    x, label, split = blobs()
    view = Ensemble([make("a", x, label, split)])
    records = run_seeds(view, QUICK, range(2), tmp_path / "r")
    saved = next((tmp_path / "r").rglob("seed-1.safetensors"))
    head = LinearHead(12, 3, torch.Generator())
    head.load_state_dict(load_file(saved))
    assert score(head, load_pooled(view).test, "classification") == records[1].test


def test_a_record_is_enough_to_run_it_again(make: Make, blobs: Blobs, tmp_path: Path) -> None:
    x, label, split = blobs()
    view = Ensemble([make("a", x, label, split)])
    run_seeds(view, QUICK, [3], tmp_path / "r")
    record = load_record(next((tmp_path / "r").rglob("seed-3.json")))
    again = train_head(load_pooled(view, record.config["pooled"]), TrainConfig(**record.config), record.seed)
    assert again.test == record.test
    assert again.curve == record.curve
    assert record.fingerprints == view.fingerprints
    assert record.samples == {"train": 120, "val": 60, "test": 60}


def test_a_finished_run_is_not_trained_again_unless_forced(make: Make, blobs: Blobs, tmp_path: Path) -> None:
    x, label, split = blobs()
    view = Ensemble([make("a", x, label, split)])
    trained: list[bool] = []
    first = run_seeds(view, QUICK, range(2), tmp_path, on_run=lambda _, new: trained.append(new))
    again = run_seeds(view, QUICK, range(3), tmp_path, on_run=lambda _, new: trained.append(new))
    assert trained == [True, True, False, False, True]
    forced = run_seeds(view, QUICK, range(2), tmp_path, force=True, on_run=lambda _, new: trained.append(new))
    assert trained[-2:] == [True, True]
    assert [r.test for r in first] == [r.test for r in again[:2]] == [r.test for r in forced]
    other = run_seeds(view, dataclasses.replace(QUICK, epochs=2), [0], tmp_path)
    assert len(list(tmp_path.glob("m-x/a/linear-*"))) == 2
    assert other[0].config["epochs"] == 2


def test_records_are_found_in_order_and_damaged_ones_are_named(make: Make, blobs: Blobs, tmp_path: Path) -> None:
    x, label, split = blobs()
    view = Ensemble([make("a", x, label, split)])
    run_seeds(view, dataclasses.replace(QUICK, epochs=1), [10, 9, 1], tmp_path / "r")
    assert [r.seed for r in find_records(tmp_path / "r")] == [1, 9, 10]
    damaged = next((tmp_path / "r").rglob("seed-9.json"))
    whole = json.loads(damaged.read_text())
    for content in ("{", json.dumps({**whole, "version": 99}), json.dumps({**whole, "extra": 1}), "[]"):
        damaged.write_text(content)
        with pytest.raises(RecordError, match=r"seed-9\.json"):
            list(find_records(tmp_path / "r"))
    with pytest.raises(RecordError, match="does not exist"):
        list(find_records(tmp_path / "absent"))


def test_splits_are_kept_apart_and_skipped_rows_left_out(make: Make, blobs: Blobs) -> None:
    x, label, split = blobs()
    split[0], split[2] = "skipped", "skipped"
    x[0] = np.nan
    data = load_pooled(Ensemble([make("a", x, label, split)]))
    assert (len(data.train), len(data.val), len(data.test)) == (119, 59, 60)
    assert "s0" not in data.train.sample_ids
    at = np.array(split) == "test"
    np.testing.assert_array_equal(data.test.x.numpy(), x[at])
    np.testing.assert_array_equal(data.test.y.numpy(), label[at])


def test_data_that_cannot_be_learned_from_are_said(make: Make, blobs: Blobs) -> None:
    x, label, split = blobs()
    bad = x.copy()
    bad[5, 2] = np.inf
    with pytest.raises(FeatureError, match="row 5 \\('s5'\\)"):
        load_pooled(Ensemble([make("nan", bad, label, split)]))
    with pytest.raises(DatasetError, match="no 'val' samples"):
        load_pooled(Ensemble([make("noval", x, label, ["train", "test"] * 120)]))
    with pytest.raises(DatasetError, match="single class, 'class 1'"):
        load_pooled(Ensemble([make("one", x, np.ones_like(label), split)]))
    unseen = np.where(np.array(split) == "train", label % 2, 2)
    assert load_pooled(Ensemble([make("unseen", x, unseen, split)])).notes == ("classes missing from train: class 2",)
    with pytest.raises(SettingError, match="masks"):
        load_pooled(Ensemble([make("seg", x, label, split, task="segmentation")]))
