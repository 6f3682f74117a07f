"""The search over combinations: which subsets, what each backbone adds, what it costs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.combinations import Combination, grow, search_combinations, shapley, with_pareto
from embedcache.ensemble import Ensemble
from embedcache.errors import SettingError
from embedcache.train_config import TrainConfig
from embedcache_stores import FeatureStore, SampleIdMismatchError, StoreNotFoundError

Make = Callable[..., FeatureStore]
CONFIG = TrainConfig(epochs=20, learning_rate=3e-2)


@pytest.fixture
def cache(make: Make, tmp_path: Path) -> Path:
    """Make stores of four classes: ``one`` sees the first bit of the class, ``two`` the second, ``none`` neither."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 240)
    noise = lambda: 0.3 * rng.normal(size=(240, 6))  # noqa: E731
    bits = {"one": label & 1, "two": label >> 1, "none": np.zeros(240)}
    for name, bit in bits.items():
        make(name, (noise() + bit[:, None]).astype(np.float32), label, classes=4)
    return tmp_path / "cache"


def test_every_subset_is_trained_and_each_backbone_gets_what_it_adds(cache: Path, tmp_path: Path) -> None:
    names = ["one", "two", "none"]
    result = search_combinations(cache, "m-x", names, CONFIG, range(2), tmp_path / "r")
    by_name = {c.name: c for c in result.combinations}
    assert set(by_name) == {"one", "two", "none", "one+two", "one+none", "two+none", "one+two+none"}
    assert [c.val for c in result.combinations] == sorted((c.val for c in result.combinations), reverse=True)
    assert by_name["one+two"].test > 0.9
    assert 0.4 < by_name["one"].test < 0.7
    assert by_name["none"].test < 0.4
    added = {c.member: c for c in result.contributions}
    assert added["one"].shapley is not None
    assert added["one"].shapley > 0.25
    assert (added["two"].shapley or 0) > 0.25
    assert abs(added["none"].shapley or 0) < 0.1
    assert sum(c.shapley or 0 for c in result.contributions) == pytest.approx(
        by_name["one+two+none"].test - result.floor
    )
    assert (added["one"].gain or 0) > 0.3
    assert 0.15 < result.floor < 0.4
    assert by_name["one+two"].channels == 12
    assert by_name["one+two"].bytes_per_sample == 2 * 6 * 4
    json.dumps(result.to_json())


def test_a_search_goes_on_where_it_was_and_one_more_backbone_costs_only_its_own_subsets(
    cache: Path, tmp_path: Path
) -> None:
    trained: list[str] = []

    def run(view: Ensemble) -> Any:
        from embedcache.protocol import run_protocol

        result = run_protocol(view, CONFIG, range(2), tmp_path / "r")
        if result.trained:
            trained.append(view.name)
        return result

    search_combinations(cache, "m-x", ["one", "two"], CONFIG, range(2), tmp_path / "r", train=run)
    assert trained == ["one", "two", "one+two"]
    trained.clear()
    search_combinations(cache, "m-x", ["one", "two", "none"], CONFIG, range(2), tmp_path / "r", train=run)
    assert trained == ["none", "one+none", "two+none", "one+two+none"]


def test_greedy_adds_what_helps_validation_and_stops(cache: Path, tmp_path: Path) -> None:
    result = search_combinations(cache, "m-x", ["none", "one", "two"], CONFIG, range(2), tmp_path / "r", greedy=True)
    assert not result.exhaustive
    best = result.combinations[0]
    assert {"one", "two"} <= set(best.members)
    assert all(c.shapley is None for c in result.contributions)
    capped = search_combinations(cache, "m-x", ["none", "one", "two"], CONFIG, range(2), tmp_path / "r", largest=1)
    assert {c.name for c in capped.combinations} == {"none", "one", "two"}
    assert not capped.exhaustive


@pytest.mark.parametrize(
    ("beam", "expected"),
    [(1, ["ab", "ac", "abc"]), (2, ["ab", "ac", "bc", "abc"])],
)
def test_a_beam_finds_a_pair_that_greedy_never_tries(beam: int, expected: list[str]) -> None:
    worth = {"a": 0.6, "b": 0.5, "c": 0.4, "ab": 0.61, "ac": 0.62, "bc": 0.9, "abc": 0.7}
    tried: list[str] = []

    def evaluated(members: Any) -> Combination:
        tried.append("".join(members))
        return Combination(
            members=tuple(members),
            metric="accuracy",
            val=worth["".join(members)],
            test=0.0,
            std=0.0,
            interval=None,
            parameters_m=1.0,
            bytes_per_sample=1,
            channels=1,
            random_members=(),
        )

    singles = [evaluated(n) for n in "abc"]
    grow("abc", singles, 3, evaluated, beam)
    assert tried == ["a", "b", "c", *expected]


def test_a_beam_that_makes_no_sense_is_said(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="at least 1, got 0"):
        search_combinations(cache, "m-x", ["one", "two"], CONFIG, range(2), tmp_path / "r", beam=0)
    with pytest.raises(SettingError, match="for a greedy search"):
        search_combinations(cache, "m-x", ["one", "two"], CONFIG, range(2), tmp_path / "r", beam=2, greedy=False)


def test_shapley_is_the_mean_marginal_value_over_all_orders() -> None:
    names = ["a", "b", "c", "d"]
    rng = np.random.default_rng(0)
    values = {
        frozenset(s): float(rng.normal()) for n in range(len(names) + 1) for s in itertools.combinations(names, n)
    }
    for name in names:
        marginal = []
        for order in itertools.permutations(names):
            before = frozenset(order[: order.index(name)])
            marginal.append(values[before | {name}] - values[before])
        assert shapley(name, names, values) == pytest.approx(np.mean(marginal))
    total = sum(shapley(n, names, values) for n in names)
    assert total == pytest.approx(values[frozenset(names)] - values[frozenset()])


def test_the_front_holds_what_nothing_cheaper_equals() -> None:
    def one(name: str, parameters: float, val: float) -> Combination:
        return Combination(
            members=(name,),
            metric="accuracy",
            val=val,
            test=val,
            std=0.0,
            interval=None,
            parameters_m=parameters,
            bytes_per_sample=1,
            channels=1,
            random_members=(),
        )

    marked = with_pareto(
        [one("a", 5, 0.6), one("b", 10, 0.6), one("c", 20, 0.9), one("d", 20, 0.8), one("e", 50, 0.89)]
    )
    assert [c.pareto for c in marked] == [True, False, True, False, False]


def test_stores_that_cannot_be_joined_are_refused_before_anything_is_trained(
    cache: Path, tmp_path: Path, make: Make
) -> None:
    few = np.zeros((30, 4), dtype=np.float32)
    make("few", few, np.arange(30) % 4, classes=4)
    with pytest.raises(SampleIdMismatchError, match=r"'one' and 'few': their sample ids differ \(240 and 30 rows"):
        search_combinations(cache, "m-x", ["one", "two", "few"], CONFIG, [0], tmp_path / "r")
    with pytest.raises(StoreNotFoundError, match="no pooled vectors 'cls'"):
        search_combinations(cache, "m-x", ["one", "two"], CONFIG.with_(pooled="cls"), [0], tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_search_of_one_or_of_a_store_twice_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="two stores or more"):
        search_combinations(cache, "m-x", ["one"], CONFIG, [0], tmp_path)
    with pytest.raises(SettingError, match="each store once"):
        search_combinations(cache, "m-x", ["one", "one"], CONFIG, [0], tmp_path)
    with pytest.raises(SettingError, match="--largest"):
        search_combinations(cache, "m-x", ["one", "two"], CONFIG, [0], tmp_path, largest=0)
