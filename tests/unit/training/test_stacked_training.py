"""A run is a function of data, configuration and seed: whatever is trained beside it, or what memory there is."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.ensemble import Ensemble
from embedcache.errors import SettingError
from embedcache.heads._registry import get_head
from embedcache.heads._spec import NOT_FOR_ALL
from embedcache.loading import PooledData, load_pooled
from embedcache.shuffling import shuffled
from embedcache.stacked_training import most_runs
from embedcache.train_config import Run, TrainConfig
from embedcache.training import TrainResult, train, train_head
from embedcache_stores import FeatureStore

Make = Callable[..., FeatureStore]
Pooled = Callable[..., PooledData]

QUICK = TrainConfig(epochs=4, batch_size=16, learning_rate=1e-2, hidden=7)
WEIGHTS = 1e-5
"""Bound on the largest difference between weights of a run in a stack and alone; weights are about 1."""


def assert_same(one: TrainResult, other: TrainResult, bound: float = WEIGHTS) -> None:
    """Equal decisions, and weights and scores equal to rounding."""
    assert (one.failed, one.best_epoch) == (other.failed, other.best_epoch)
    assert one.state.keys() == other.state.keys()
    for name, tensor in one.state.items():
        torch.testing.assert_close(other.state[name], tensor, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}")
    assert len(one.curve) == len(other.curve)
    for a, b in zip(one.curve, other.curve, strict=True):
        assert a == pytest.approx(b, rel=10 * bound, abs=10 * bound)
    for metric in ("accuracy", "f1_micro", "f1_macro", "subset_accuracy", "accuracy_macro"):  # decisions: exactly equal
        assert one.test.get(metric) == other.test.get(metric)
        assert one.val.get(metric) == other.val.get(metric)
    assert one.test == pytest.approx(other.test, abs=10 * bound)
    assert one.interval == other.interval
    if one.test_logits is not None:
        assert other.test_logits is not None
        np.testing.assert_allclose(other.test_logits, one.test_logits, rtol=10 * bound, atol=10 * bound)


def assert_each_equals_alone(data: PooledData, runs: list[Run], bound: float = WEIGHTS) -> list[TrainResult]:
    together = train(data, runs)
    for run, result in zip(runs, together, strict=True):
        assert_same(train_head(data, run.config, run.seed), result, bound)
    return together


def some_runs(config: TrainConfig, count: int = 4) -> list[Run]:
    rates = (1e-2, 1e-3, 5e-2, 2e-2)
    decays = (1e-2, 0.0, 1e-1, 1e-3)
    return [
        Run(config.with_(learning_rate=rates[i % 4], weight_decay=decays[i % 4]), seed=i // 2) for i in range(count)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_norm": True},
        {"dropout": 0.4},
        {"clip": 0.05},
        {"clip": 0.05, "schedule": "one-cycle"},
        {"schedule": "cosine", "warmup": 0.2, "label_smoothing": 0.1},
        {"class_weights": "balanced"},
        {"class_weights": "balanced", "label_smoothing": 0.2, "batch_norm": True},
        {"standardise": False},
        {"order": "shared"},
        {"steps": 9},
        {"batch_size": 1, "epochs": 1},
        {"batch_size": 60},  # the last batch is a single sample
        {"batch_size": 60, "batch_norm": True},  # and is left out
        {"batch_size": 1000},
        {"patience": 1, "epochs": 12},
        {"patience": 2, "epochs": 12, "dropout": 0.3, "batch_norm": True},
    ],
    ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()) or "plain",
)
@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_run_k_of_a_stack_equals_run_k_alone(pooled: Pooled, head: str, task: str, changes: dict[str, Any]) -> None:
    results = assert_each_equals_alone(pooled(task), some_runs(QUICK.with_(head=head, **changes)))
    assert all(r.stacked_with == 4 for r in results)
    first, second = (r.state["linear.weight" if head == "linear" else "last.weight"] for r in results[::2])
    assert not torch.allclose(first, second)


@settings(max_examples=25, deadline=None)
@given(
    head=st.sampled_from(["linear", "mlp"]),
    task=st.sampled_from(["classification", "multilabel"]),
    train_rows=st.integers(8, 70),
    batch_size=st.integers(1, 80),
    seeds=st.lists(st.integers(0, 5), min_size=2, max_size=5),
    rates=st.lists(st.sampled_from([1e-3, 1e-2, 0.1, 1e30]), min_size=5, max_size=5),
    batch_norm=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
    clip=st.sampled_from([0.0, 0.1]),
    schedule=st.sampled_from(["constant", "cosine", "one-cycle"]),
    smoothing=st.sampled_from([0.0, 0.1]),
    balanced=st.booleans(),
    patience=st.integers(0, 2),
    order=st.sampled_from(["own", "shared"]),
)
def test_any_run_of_any_stack_equals_that_run_alone(
    pooled: Pooled,
    head: str,
    task: str,
    train_rows: int,
    batch_size: int,
    seeds: list[int],
    rates: list[float],
    batch_norm: bool,
    dropout: float,
    clip: float,
    schedule: Any,
    smoothing: float,
    balanced: bool,
    patience: int,
    order: Any,
) -> None:
    config = TrainConfig(
        head=head,
        epochs=3,
        batch_size=max(batch_size, train_rows // 8, 1 + batch_norm),
        hidden=5,
        batch_norm=batch_norm,
        dropout=dropout,
        clip=clip,
        schedule=schedule,
        label_smoothing=smoothing,
        class_weights="balanced" if balanced else "none",
        patience=patience,
        order=order,
    )
    runs = [Run(config.with_(learning_rate=lr), seed) for seed, lr in zip(seeds, rates, strict=False)]
    # Adam divides by the gradient's size, so that the rounding of a gradient near 0 may move a weight by a part of the
    # learning rate; over many random cases that shows.
    assert_each_equals_alone(pooled(task, train=train_rows), runs, bound=5e-4)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_last_batch_of_one_sample_is_not_normalised(pooled: Pooled, head: str) -> None:
    """Its variance is 0: it would take a tenth off the variance that the head keeps, and teach nothing."""
    data = pooled(train=61)
    config = QUICK.with_(head=head, batch_norm=True, epochs=1, batch_size=60)
    x = data.take(data.train, shuffled(np.arange(61), 0, 1)[:60], standardise=True)
    state = train_head(data, config, 0).state
    torch.testing.assert_close(state["norm.var"], 0.9 + 0.1 * x.var(dim=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state["norm.mean"], 0.1 * x.mean(dim=0), rtol=1e-5, atol=1e-5)


def test_runs_stop_early_one_by_one_and_the_others_go_on(pooled: Pooled) -> None:
    config = QUICK.with_(epochs=40, patience=3)
    runs = [Run(config.with_(learning_rate=lr), seed) for seed in range(3) for lr in (1e-4, 1e-2, 1.0)]
    results = assert_each_equals_alone(pooled(), runs)
    lengths = [len(r.curve) for r in results]
    assert len(set(lengths)) > 2  # the case is not hollow
    for result, length in zip(results, lengths, strict=True):
        scores = [p["val_accuracy"] for p in result.curve]
        assert result.best_epoch == int(np.argmax(scores)) + 1
        assert length == min(40, result.best_epoch + 3)
        assert result.val["accuracy"] == max(scores)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("changes", [{}, {"clip": 1.0}, {"batch_norm": True, "dropout": 0.2}], ids=str)
def test_a_run_that_diverges_is_given_up_with_its_reason_and_disturbs_nobody(
    pooled: Pooled, head: str, changes: dict[str, Any]
) -> None:
    config = QUICK.with_(head=head, **changes)
    runs = [Run(config.with_(learning_rate=lr), seed) for seed, lr in enumerate((1e-2, 1e30, 1e-3, 1e38))]
    results = assert_each_equals_alone(pooled(), runs)
    assert [r.failed is None for r in results] == [True, False, True, False]
    for result, seed, rate in ((results[1], 1, r"1e\+30"), (results[3], 3, r"1e\+38")):
        assert result.failed is not None
        said = rf"the (loss|validation output) of seed {seed} became (nan|inf) in epoch \d; lower --learning-rate "
        assert re.fullmatch(said + rf"\({rate}\)", result.failed)
        assert [result.state, result.val, result.test, result.per_class] == [{}, {}, {}, {}]
        assert (result.interval, result.best_epoch) == (None, 0)


def test_all_runs_may_fail(pooled: Pooled) -> None:
    results = train(pooled(), [Run(QUICK.with_(learning_rate=1e38), seed) for seed in range(3)])
    assert all(r.failed and not r.state for r in results)


def test_weights_that_overflow_in_the_very_last_step_are_a_failure_too(pooled: Pooled) -> None:
    config = QUICK.with_(learning_rate=3e38, epochs=1, batch_size=1000)
    result = train_head(pooled(), config, 0)
    assert result.failed is not None
    assert "epoch 1" in result.failed


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize(("at_once", "sizes"), [(1, [1] * 5), (2, [2, 2, 2, 2, 1]), (3, [3, 3, 3, 2, 2]), (5, [5] * 5)])
def test_smaller_stacks_give_the_same(pooled: Pooled, head: str, at_once: int, sizes: list[int]) -> None:
    data, config = pooled(), QUICK.with_(head=head)
    alone = most_runs(data, get_head(head), config, 10**12)
    budget = (10**12 // alone + 1) * at_once
    seen: list[tuple[int, int]] = []
    runs = [Run(config, seed) for seed in range(5)]
    small = train(data, runs, budget_bytes=budget, on_epoch=lambda done, total: seen.append((done, total)))
    assert [r.stacked_with for r in small] == sizes
    for one, other in zip(train(data, runs), small, strict=True):
        assert_same(one, other)


def test_a_budget_of_nothing_still_trains_one_at_a_time(pooled: Pooled) -> None:
    results = train(pooled(), some_runs(QUICK), budget_bytes=0)
    assert [r.stacked_with for r in results] == [1] * 4


@pytest.fixture
def view(make: Make, blobs: Callable[..., Any]) -> Ensemble:
    x, label, split = blobs(rows=203)
    y = blobs(rows=203, channels=5, seed=4)[0].astype(np.float16)
    return Ensemble([make("a", x, label, split), make("b", y, label, split, rows_per_group=5)])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"standardise": False},
        {"order": "shared", "batch_norm": True},
        {"head": "mlp", "patience": 2, "dropout": 0.1},
    ],
    ids=str,
)
def test_streaming_gives_the_same_numbers_as_memory(view: Ensemble, changes: dict[str, Any]) -> None:
    held, streamed = load_pooled(view), load_pooled(view, budget_bytes=0)
    assert held.train.is_resident
    assert not streamed.train.is_resident
    runs = some_runs(QUICK.with_(**changes), 5)
    for one, other in zip(train(held, runs), train(streamed, runs), strict=True):
        for name, tensor in one.state.items():
            assert torch.equal(tensor, other.state[name]), name
        assert (one.curve, one.val, one.test) == (other.curve, other.val, other.test)


def test_streaming_holds_no_more_than_a_few_batches(view: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read, after the checks that go through in blocks, asks for more than all runs' rows of one batch."""
    monkeypatch.setattr("embedcache.loading._BLOCK_BYTES", 16 * 4 * 17)
    monkeypatch.setattr("embedcache.stacked_training._EVALUATE_BYTES", 4 * 3 * 17 * 16)
    asked: list[int] = []
    original = Ensemble.read_pooled

    def counted(self: Ensemble, kind: str, rows: Any) -> Any:
        asked.append(len(rows))
        return original(self, kind, rows)

    monkeypatch.setattr(Ensemble, "read_pooled", counted)
    train(load_pooled(view, budget_bytes=0), [Run(QUICK.with_(batch_size=16), s) for s in range(3)])
    assert len(asked) > 50
    assert max(asked) <= 3 * 16


def test_channels_are_a_slice_of_the_joined_vectors(view: Ensemble) -> None:
    whole, part = load_pooled(view), load_pooled(view, channels="10:14")
    assert torch.equal(part.train.x, whole.train.x[:, 10:14])
    assert load_pooled(view, channels="10:").channels == 7
    assert load_pooled(view, channels=":3", budget_bytes=0).channels == 3
    for wrong in ("17:18", "3:99", "5:5", "9:4"):
        with pytest.raises(SettingError, match=rf"--channels {wrong} is not within the 17 channels of 'a\+b'"):
            load_pooled(view, channels=wrong)
    for wrong in ("3", "a:b", "-1:4", "1:2:3"):
        with pytest.raises(SettingError, match="START:STOP"):
            TrainConfig(channels=wrong)


def test_no_state_of_the_process_matters_or_is_touched(pooled: Pooled) -> None:
    config = QUICK.with_(head="mlp", dropout=0.5, batch_norm=True)
    before = train_head(pooled(), config, 3)
    torch.manual_seed(99)
    torch.rand(1000)
    np.random.seed(5)
    random.seed(7)
    states = (torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    again = train_head(pooled(), config, 3)
    assert torch.equal(states[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()
    assert all(torch.equal(before.state[k], again.state[k]) for k in before.state)
    assert (before.curve, before.test) == (again.curve, again.test)


def test_runs_that_cannot_be_trained_together_are_refused(pooled: Pooled) -> None:
    with pytest.raises(SettingError, match="must not differ in epochs"):
        train(pooled(), [Run(QUICK, 0), Run(QUICK.with_(epochs=9), 0)])
    assert train(pooled(), []) == []


def test_bf16_learns_what_fp32_learns(pooled: Pooled) -> None:
    data = pooled(train=400, other=300, noise=0.3)
    runs = [Run(QUICK.with_(precision=p, epochs=15), 0) for p in ("fp32", "bf16")]
    exact, rough = (train(data, [run])[0].test["accuracy"] for run in runs)
    assert exact > 0.7
    assert rough == pytest.approx(exact, abs=0.04)


def test_the_cache_directory_is_not_written(view: Ensemble, tmp_path: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "cache").rglob("*"))
    train(load_pooled(view, budget_bytes=0), some_runs(QUICK))
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("head", ["linear", "mlp", "logistic", "knn"])
def test_a_head_heeds_the_settings_that_it_names_and_no_others(pooled: Pooled, head: str) -> None:
    data, config = pooled(), QUICK.with_(head=head, epochs=1)
    plain = train_head(data, config, 0).state
    other = {"loss": "dice", "class_weights": "balanced", "label_smoothing": 0.3, "batch_norm": True, "dropout": 0.5}
    assert set(other) == set(NOT_FOR_ALL)
    for name, value in other.items():
        state = train_head(data, config.with_(**{name: value}), 0).state
        same = state.keys() == plain.keys() and all(torch.equal(state[k], plain[k]) for k in plain)
        assert same == (name not in get_head(head).heeds), name
