"""Heads on vectors: what they learn is what plain PyTorch and scikit-learn learn from the same vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from embedcache.ensemble import Ensemble
from embedcache.errors import DatasetError, FeatureError, SettingError, UnknownNameError
from embedcache.loading import PooledData, load_pooled
from embedcache.shuffling import shuffled
from embedcache.train_config import TrainConfig, default_batch_size
from embedcache.training import load_data, train_head
from embedcache_stores import FeatureStore

Make = Callable[..., FeatureStore]
Blobs = Callable[..., Any]
Pooled = Callable[..., PooledData]
QUICK = TrainConfig(epochs=8, batch_size=32, learning_rate=1e-2)


@pytest.fixture
def data(make: Make, blobs: Blobs) -> PooledData:
    x, label, split = blobs()
    return load_pooled(Ensemble([make("a", x, label, split)]))


def plain_pytorch(data: PooledData, config: TrainConfig, seed: int) -> tuple[list[nn.Linear], list[float]]:
    """Train a linear head as anybody would write it; return the head after each epoch and the mean losses."""
    x = data.train.x.numpy().astype(np.float64)
    ready = torch.from_numpy(((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32))
    bound = 1 / np.sqrt(data.channels)
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(data.channels, data.num_classes)
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    heads, losses = [], []
    assert config.batch_size is not None
    for epoch in range(1, config.epochs + 1):
        order = shuffled(np.arange(len(ready)), seed, epoch)
        total = 0.0
        for start in range(0, len(order), config.batch_size):
            at = torch.from_numpy(order[start : start + config.batch_size])
            logits = head(ready[at])
            if data.task == "multilabel":
                loss = F.binary_cross_entropy_with_logits(logits, data.train.y[at])
            else:
                loss = F.cross_entropy(logits, data.train.y[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += len(at) * float(loss.detach())
        losses.append(total / len(order))
        copy = nn.Linear(data.channels, data.num_classes)
        copy.load_state_dict(head.state_dict())
        heads.append(copy)
    return heads, losses


@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_linear_head_is_the_one_of_a_plain_training_loop(pooled: Pooled, task: str, seed: int) -> None:
    data = pooled(task, train=130)
    result = train_head(data, QUICK, seed)
    heads, losses = plain_pytorch(data, QUICK, seed)
    assert [p["train_loss"] for p in result.curve] == pytest.approx(losses, rel=1e-5)
    best = heads[result.best_epoch - 1]
    torch.testing.assert_close(result.state["linear.weight"], best.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.state["linear.bias"], best.bias.detach(), rtol=1e-4, atol=1e-5)
    ready = (data.test.x - result.state["scale.mean"]) / result.state["scale.std"]
    with torch.no_grad():
        logits = best(ready)
    np.testing.assert_allclose(result.test_logits, logits.numpy(), rtol=1e-4, atol=1e-4)
    decided = logits > 0 if task == "multilabel" else logits.argmax(dim=1)
    truth = data.test.y > 0 if task == "multilabel" else data.test.y
    key = "subset_accuracy" if task == "multilabel" else "accuracy"
    right = (decided == truth).float().mean() if decided.ndim == 1 else (decided == truth).all(dim=1).float().mean()
    assert result.test[key] == pytest.approx(float(right), abs=1e-6)


def test_the_initial_weights_are_those_of_torch(pooled: Pooled) -> None:
    """A learning rate of nothing leaves nn.Linear's own distribution: uniform within 1/sqrt(channels)."""
    data = pooled(channels=400, classes=50, train=60)
    state = train_head(data, QUICK.with_(learning_rate=1e-30, weight_decay=0.0, epochs=1), 0).state
    weight = state["linear.weight"]
    assert float(weight.abs().max()) == pytest.approx(400**-0.5, rel=1e-3)
    assert float(weight.std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.02)


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


def test_a_hidden_layer_learns_what_no_plane_separates() -> None:
    from embedcache.loading import Vectors

    rng = np.random.default_rng(0)
    splits = []
    for n in (400, 100, 200):
        x = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)  # exclusive or
        splits.append(Vectors.held(torch.from_numpy(x), torch.from_numpy(y), np.arange(n).astype(str)))
    data = PooledData(*splits, task="classification", num_classes=2)
    config = TrainConfig(epochs=60, learning_rate=1e-2, hidden=32, batch_size=50)
    assert train_head(data, config, 0).test["accuracy"] < 0.75
    assert train_head(data, config.with_(head="mlp"), 0).test["accuracy"] > 0.93


def test_class_weights_find_a_rare_class(pooled: Pooled) -> None:
    from embedcache.loading import Vectors

    rng = np.random.default_rng(0)
    splits = []
    for n in (600, 300, 600):
        y = (rng.random(n) < 0.06).astype(np.int64)
        x = (rng.normal(size=(n, 3)) + 1.0 * y[:, None]).astype(np.float32)
        splits.append(Vectors.held(torch.from_numpy(x), torch.from_numpy(y), np.arange(n).astype(str)))
    data = PooledData(*splits, task="classification", num_classes=2)
    config = TrainConfig(epochs=30, learning_rate=1e-2, batch_size=50)
    plain = train_head(data, config, 0).per_class["accuracy"][1]
    weighted = train_head(data, config.with_(class_weights="balanced", steps=360), 0)
    assert plain is not None
    assert weighted.per_class["accuracy"][1] is not None
    assert plain < 0.4
    last = weighted.curve[-1]
    assert last["epoch"] == 30
    assert weighted.test["accuracy_macro"] > train_head(data, config, 0).test["accuracy_macro"]


def test_the_best_epoch_is_the_first_with_the_best_validation_score(data: PooledData) -> None:
    result = train_head(data, QUICK.with_(epochs=25), 1)
    curve = [point["val_accuracy"] for point in result.curve]
    assert len(curve) == 25
    assert result.best_epoch == int(np.argmax(curve)) + 1
    assert result.val["accuracy"] == max(curve)


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (3, 1), (4, 1), (5, 2), (12, 3)])
def test_steps_count_optimiser_steps(data: PooledData, steps: int, epochs: int) -> None:
    """120 rows in batches of 32 are 4 steps; the first epochs do not depend on how many follow."""
    result = train_head(data, QUICK.with_(steps=steps), 0)
    assert len(result.curve) == epochs
    assert (result.curve[0] == train_head(data, QUICK, 0).curve[0]) == (steps >= 4)


def test_scale_of_a_member_does_not_matter(make: Make, blobs: Blobs) -> None:
    x, label, split = blobs()
    y = blobs(seed=3)[0]
    first = make("a", x, label, split)
    plain = train_head(load_pooled(Ensemble([first, make("b", y, label, split)])), QUICK, 0)
    scaled = train_head(load_pooled(Ensemble([first, make("c", y * 1024, label, split)])), QUICK, 0)
    assert scaled.test == pytest.approx(plain.test, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 119, 120, 1000])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_any_batch_size_works_and_constant_channels_are_harmless(
    make: Make, blobs: Blobs, batch_size: int, batch_norm: bool
) -> None:
    x, label, split = blobs()
    x[:, 3] = 0.1
    data = load_pooled(Ensemble([make("a", x, label, split)]))
    config = TrainConfig(epochs=1 if batch_size == 1 else 3, batch_size=batch_size, batch_norm=batch_norm)
    if batch_norm and batch_size == 1:
        with pytest.raises(SettingError, match="--batch-norm needs batches of at least 2"):
            train_head(data, config, 0)
        return
    result = train_head(data, config, 0)
    assert result.failed is None
    assert all(torch.isfinite(v).all() for v in result.state.values())
    assert result.state["scale.std"][3] == 1


def test_the_scale_is_that_of_the_training_split_however_far_from_zero(make: Make, blobs: Blobs) -> None:
    x, label, split = blobs(rows=1000)
    x = x * np.logspace(-6, 6, 12, dtype=np.float32) + np.float32(300) * np.arange(12, dtype=np.float32)
    x[:, 0] = 5e-7 * blobs(rows=1000)[0][:, 0]
    data = load_pooled(Ensemble([make("a", x.astype(np.float32), label, split)]))
    here = x[np.array(split) == "train"].astype(np.float64)
    mean, std = data.scale
    np.testing.assert_allclose(mean, here.mean(axis=0), rtol=1e-6, atol=1e-9)
    varies = here.std(axis=0) > 1e-6 * here.std(axis=0).max()
    np.testing.assert_allclose(std[varies], here.std(axis=0)[varies], rtol=1e-3)
    assert (std[~torch.from_numpy(varies)] == 1).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"steps": 0}, "--steps"),
        ({"batch_size": 0}, "--batch-size"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"weight_decay": float("nan")}, "--weight-decay"),
        ({"warmup": 1.0}, "--warmup"),
        ({"label_smoothing": -0.1}, "--label-smoothing"),
        ({"dropout": 1.0}, "--dropout"),
        ({"clip": -1.0}, "--clip"),
        ({"clip": float("nan")}, "--clip"),
        ({"patience": -1}, "--patience"),
        ({"c": 0.0}, "--c "),
        ({"c": float("inf")}, "--c "),
        ({"k": 0}, "--k "),
        ({"schedule": "linear"}, "--schedule must be one of"),
        ({"schedule": "one-cycle", "warmup": 0.1}, "--warmup"),
    ],
)
def test_numbers_that_make_no_sense_are_said(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        TrainConfig(**wrong)


def test_a_configuration_survives_json() -> None:
    config = TrainConfig(levels=(0, 2), channels="3:", batch_size=4, schedule="cosine")
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(SettingError, match="no field 'momentum'"):
        TrainConfig.from_json({**config.to_json(), "momentum": 0.9})


def test_default_batch_sizes_grow_with_the_dataset() -> None:
    assert [default_batch_size(n, maps=False) for n in (1, 5_000, 22_000, 10**6)] == [32, 32, 64, 1024]
    assert [default_batch_size(n, maps=True) for n in (1, 500, 10**6)] == [4, 4, 16]


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


@pytest.mark.parametrize("budget", [None, 0])
def test_data_that_cannot_be_learned_from_are_said(make: Make, blobs: Blobs, budget: int | None) -> None:
    x, label, split = blobs()
    bad = x.copy()
    bad[5, 2], bad[6, 0] = np.inf, np.nan  # in train and in val
    with pytest.raises(FeatureError, match=r"2 feature vectors of 'nan' are not finite, the first is row 5 \('s5'\)"):
        load_pooled(Ensemble([make("nan", bad, label, split)]), budget_bytes=budget)
    with pytest.raises(DatasetError, match="no 'val' samples"):
        load_pooled(Ensemble([make("noval", x, label, ["train", "test"] * 120)]), budget_bytes=budget)
    several = np.eye(3)[label] * (np.array(split) != "train")[:, None]
    with pytest.raises(DatasetError, match="no class is there in any sample of the training split"):
        load_pooled(Ensemble([make("none", x, several, split, task="multilabel")]), budget_bytes=budget)
    with pytest.raises(DatasetError, match="single class, 'class 1'"):
        load_pooled(Ensemble([make("one", x, np.ones_like(label), split)]), budget_bytes=budget)
    with pytest.raises(DatasetError, match="label 3 of 'm-x' is outside its 3 classes"):
        load_pooled(Ensemble([make("four", x, np.arange(240) % 4, split)]), budget_bytes=budget)
    unseen = np.where(np.array(split) == "train", label % 2, 2)
    data = load_pooled(Ensemble([make("unseen", x, unseen, split)]), budget_bytes=budget)
    assert data.notes == ("classes missing from train: class 2",)
    assert train_head(data, QUICK, 0).failed is None  # and it does train


def test_a_head_that_cannot_learn_the_targets_names_those_that_can(make: Make, blobs: Blobs) -> None:
    x, label, split = blobs()
    masks = Ensemble([make("seg", x, label, split, task="segmentation")])
    with pytest.raises(SettingError, match=r"'linear' learns .*for segmentation; heads for those are .*upernet"):
        load_data(masks, QUICK)
    with pytest.raises(SettingError, match=r"'upernet' learns segmentation.*for classification.*linear.*logistic"):
        load_data(Ensemble([make("a", x, label, split)]), QUICK.with_(head="upernet"))
    with pytest.raises(SettingError, match="masks as targets"):
        load_pooled(masks)
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        load_data(masks, QUICK.with_(head="linaer"))


def test_options_of_the_other_kind_of_head_are_said(make: Make, blobs: Blobs) -> None:
    x, label, split = blobs()
    with pytest.raises(SettingError, match="--levels is for heads on maps; head 'linear' reads pooled vectors"):
        load_data(Ensemble([make("a", x, label, split)]), QUICK.with_(levels=(0,)))
    masks = Ensemble([make("seg", x, label, split, task="segmentation")])
    with pytest.raises(SettingError, match="--channels is for heads on pooled vectors; head 'fcn' reads maps"):
        load_data(masks, QUICK.with_(head="fcn", channels="0:4"))
