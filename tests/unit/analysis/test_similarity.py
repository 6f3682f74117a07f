"""CKA against its published definitions on whole Gram matrices, and shared neighbours against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.errors import FeatureError, SettingError
from embedcache.representations import Representation, open_representations, rows_to_compare
from embedcache.similarity import cka, shared_neighbours, union_cka

Make = Callable[..., Path]


def hsic_biased(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """tr(KHLH), Kornblith et al. 2019, section 3 (their factor (n-1)^-2 cancels in CKA)."""
    n = len(k)
    h = np.eye(n) - 1 / n
    return float(np.trace(k @ h @ l @ h))


def hsic_1(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Equation 5 of Song et al. 2012, as equation 3 of Nguyen et al. 2021."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    whole = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return float(whole / (n * (n - 3)))


def hsic_u_statistic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """The same as a mean over all ordered quadruples: what makes it unbiased (Song et al. 2012)."""
    quads = list(itertools.permutations(range(len(k)), 4))
    return float(np.mean([k[a, b] * (l[a, b] + l[c, d] - 2 * l[a, c]) for a, b, c, d in quads]))


def by_definition(xs: list[np.ndarray], hsic: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    grams = [x.astype(np.float64) @ x.astype(np.float64).T for x in xs]
    own = [np.sqrt(hsic(g, g)) for g in grams]
    return np.array(
        [[hsic(a, b) / (s * t) for b, t in zip(grams, own, strict=True)] for a, s in zip(grams, own, strict=True)]
    )


def opened(make: Make, xs: dict[str, np.ndarray]) -> tuple[list[Representation], np.ndarray]:
    for name, x in xs.items():
        cache = make(name, x)
    reps, view = open_representations(cache, "m-x", list(xs))
    return reps, rows_to_compare(view)


@pytest.fixture
def three() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(70, 6))
    return {
        "a": (base + 30).astype(np.float32),
        "b": (base @ rng.normal(size=(6, 40)) + 2 * rng.normal(size=(70, 40))).astype(np.float32),
        "c": (rng.normal(size=(70, 90)) * rng.uniform(0.1, 9, 90) - 5).astype(np.float32),
    }


def test_both_estimates_equal_the_published_definitions(make: Make, three: dict[str, np.ndarray]) -> None:
    reps, rows = opened(make, three)
    result = cka(reps, rows)
    xs = list(three.values())
    assert result.names == ("a", "b", "c")
    assert result.samples == 70
    assert result.biased == pytest.approx(by_definition(xs, hsic_biased), abs=1e-10)
    # the definition itself loses digits on features that lie far from 0
    assert result.debiased == pytest.approx(by_definition(xs, hsic_1), abs=1e-8)
    assert np.diag(result.biased) == pytest.approx(np.ones(3))
    assert abs(result.debiased[0, 2]) < 0.1
    assert result.biased[0, 2] > 0.15  # 90 channels of 70 samples look alike
    grams = [x.astype(np.float64) @ x.astype(np.float64).T for x in xs]
    assert result.hsic[0, 1] == pytest.approx(hsic_1(grams[0], grams[1]), rel=1e-9)


def test_the_unbiased_estimate_is_the_mean_over_all_quadruples(make: Make) -> None:
    rng = np.random.default_rng(1)
    xs = {"a": rng.normal(size=(7, 3)), "b": rng.normal(size=(7, 2))}
    reps, rows = opened(make, {k: x.astype(np.float64) for k, x in xs.items()})
    k, l = (x @ x.T for x in xs.values())  # noqa: E741
    assert cka(reps, rows).hsic[0, 1] == pytest.approx(hsic_u_statistic(k, l), rel=1e-10)


def test_turned_moved_and_scaled_copies_are_the_same(make: Make) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 8))
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    reps, rows = opened(make, {"x": x, "y": 7 * x @ turn + 100})
    result = cka(reps, rows)
    assert result.biased[0, 1] == pytest.approx(1, abs=1e-12)
    assert result.debiased[0, 1] == pytest.approx(1, abs=1e-12)
    assert shared_neighbours(reps, rows, 5)[0, 1] == 1


def test_pieces_waves_groups_and_schedulers_change_nothing(
    make: Make, three: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    reps, rows = opened(make, three)
    rows = rows[rows % 5 != 1]
    whole = cka(reps, rows, standardise=True)
    monkeypatch.setattr("embedcache.representations._BLOCK_BYTES", 8 * 136 * 16)  # 16 samples a piece
    monkeypatch.setattr("embedcache.similarity._PRODUCT_BYTES", 8 * 40 * 40)  # a pair or two at a time
    cut = cka(reps, rows, standardise=True)
    assert cut.debiased == pytest.approx(whole.debiased, abs=1e-12)
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            other = cka(reps, rows, standardise=True)
        assert (other.debiased == cut.debiased).all()
    z = [(x - x[rows].mean(axis=0)) / x[rows].std(axis=0) for x in (v.astype(np.float64) for v in three.values())]
    assert whole.debiased == pytest.approx(by_definition([x[rows] for x in z], hsic_1), abs=1e-10)


def test_an_ensemble_is_known_from_its_members(make: Make, three: dict[str, np.ndarray]) -> None:
    for name, x in three.items():
        cache = make(name, x)
    reps, view = open_representations(cache, "m-x", ["a", "b", "c", "a+b"])
    result = cka(reps, rows_to_compare(view))
    assert union_cka(result.hsic, [0, 1], [2]) == pytest.approx(result.debiased[3, 2], rel=1e-9)
    assert union_cka(result.hsic, [0, 1], [0, 1]) == pytest.approx(1)
    assert union_cka(result.hsic, [0], [1]) == pytest.approx(result.debiased[0, 1])


def test_maps_are_pooled_over_space_or_sampled_by_position(make: Make) -> None:
    rng = np.random.default_rng(3)
    fine, coarse = rng.normal(size=(40, 4, 8, 8)).astype(np.float32), rng.normal(size=(40, 6, 4, 4)).astype(np.float32)
    finer = np.repeat(np.repeat(coarse, 2, axis=2), 2, axis=3)
    make("a", rng.normal(size=(40, 3)).astype(np.float32), [fine, coarse])
    cache = make("b", rng.normal(size=(40, 3)).astype(np.float32), [finer, coarse], rows_per_group=8)
    reps, view = open_representations(cache, "m-x", ["a", "b"], ["all"])
    assert [r.name for r in reps] == [f"{n}:{a}" for n in "ab" for a in ("pooled_mean", "level_0", "level_1")]
    rows = rows_to_compare(view)
    result = cka(reps, rows)
    means = [fine.mean(axis=(2, 3)), coarse.mean(axis=(2, 3))]
    assert result.debiased[1, 2] == pytest.approx(by_definition(means, hsic_1)[0, 1], abs=1e-5)

    reps, _ = open_representations(cache, "m-x", ["a", "b"], ["level_0", "level_1"], positions=5)
    by_position = cka(reps, rows)
    assert by_position.samples == 200
    assert by_position.debiased[2, 1] == pytest.approx(1, abs=1e-6)  # the same cell, whatever the grid
    taken = np.asarray(reps[0].values)
    assert taken.shape == (40, 5, 4)
    assert all(
        any((v == fine[i, :, y, x]).all() for y in range(8) for x in range(8)) for i in range(3) for v in taken[i]
    )
    quadrants = np.zeros((2, 2))
    grid = np.arange(64, dtype=np.float32).reshape(8, 8)
    cache = make("c", np.zeros((40, 3), np.float32), [np.broadcast_to(grid, (40, 1, 8, 8)).copy()])
    (only,), _ = open_representations(cache, "m-x", ["c"], ["level_0"], positions=5)
    for value in np.asarray(only.values).ravel().astype(int):
        quadrants[value // 32, value % 8 // 4] += 1
    assert quadrants.min() > 40  # of 200
    with pytest.raises(SettingError, match="name levels"):
        open_representations(cache, "m-x", ["a"], ["all"], positions=3)


def test_shared_neighbours_equal_brute_force(make: Make, three: dict[str, np.ndarray]) -> None:
    reps, rows = opened(make, three)
    found = []
    for x in three.values():
        z = (x - x.mean(axis=0)).astype(np.float64)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        cosine = z @ z.T
        np.fill_diagonal(cosine, -2)
        found.append(np.argsort(-cosine, axis=1)[:, :10])
    expected = np.array(
        [[np.mean([len(set(p) & set(q)) / 10 for p, q in zip(a, b, strict=True)]) for b in found] for a in found]
    )
    assert shared_neighbours(reps, rows, 10) == pytest.approx(expected)
    some = shared_neighbours(reps, rows, 10, queries=30, seed=1)
    assert some == pytest.approx(expected, abs=0.2)
    assert (some == shared_neighbours(reps, rows, 10, queries=30, seed=1)).all()


def test_what_cannot_be_compared_is_one_sentence(make: Make, three: dict[str, np.ndarray]) -> None:
    reps, rows = opened(make, three)
    cache = make("n", np.full((70, 2), np.nan, np.float32))
    lost, _ = open_representations(cache, "m-x", ["a", "n"])
    with pytest.raises(FeatureError, match="features of 'n' are not finite"):
        cka(lost, rows)
    with pytest.raises(SettingError, match="'a' would be compared with itself"):
        open_representations(cache, "m-x", ["a", "a"])
    with pytest.raises(SettingError, match="'mask' cannot be compared"):
        open_representations(cache, "m-x", ["a"], ["mask"])
    with pytest.raises(SettingError, match="four are the fewest"):
        rows_to_compare(open_representations(cache, "m-x", ["a"])[1], "holiday")
    cache = make("k", np.full((70, 2), 3, np.float32))
    flat, _ = open_representations(cache, "m-x", ["a", "k"])
    assert np.isnan(cka(flat, rows).debiased[0, 1])  # what never varies is like nothing
    assert len(reps) == 3
