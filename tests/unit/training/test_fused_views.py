"""Alignment, standardisation and fusion: lazy, fitted on train only, and equal to their definitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from embedcache import fused_views
from embedcache.ensemble import Ensemble
from embedcache.errors import SettingError
from embedcache.fused_views import aligned_level, fused, principal, standardised
from embedcache_stores import FeatureStore

Make = Callable[..., FeatureStore]


@pytest.fixture
def vectors() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    out = [rng.normal(3, 2, (60, c)).astype(np.float32) @ rng.normal(size=(c, c)).astype(np.float32) for c in (5, 5, 7)]
    out[0][:, 2] = 4  # a channel that never changes
    return out


@pytest.fixture
def both(make: Make, vectors: list[np.ndarray]) -> Ensemble:
    return Ensemble([make("a", vectors[0]), make("b", vectors[1], rows_per_group=4)])


def scaled(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    return StandardScaler().fit(x[train].astype(np.float64)).transform(x)


def test_standardisation_is_scikit_learns_fitted_on_train(both: Ensemble, vectors: list[np.ndarray]) -> None:
    for lazy, x in zip(standardised(both), vectors, strict=False):
        assert lazy.dtype == np.float32
        np.testing.assert_allclose(lazy.compute(), scaled(x, both.split == "train"), rtol=1e-4, atol=1e-5)


def test_fusions_are_their_definitions(both: Ensemble, vectors: list[np.ndarray]) -> None:
    a, b = (scaled(x, both.split == "train") for x in vectors[:2])
    near = {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(fused(both, "concat").compute(), np.concatenate([a, b], axis=1), **near)
    np.testing.assert_allclose(fused(both, "average").compute(), (a + b) / 2, **near)
    np.testing.assert_allclose(fused(both, "weighted", weights=[2, -0.5]).compute(), 2 * a - 0.5 * b, **near)
    np.testing.assert_allclose(fused(both, "product").compute(), a * b, **near)


def test_principal_components_are_scikit_learns_up_to_sign(
    make: Make, vectors: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_views, "ROWS_AT_ONCE", 7)  # many pieces, the last one short
    view = Ensemble([make("b", vectors[1]), make("c", vectors[2])])
    train = view.split == "train"
    expected = []
    for lazy, x in zip(principal(view, 3), vectors[1:], strict=True):
        theirs = PCA(3, svd_solver="full").fit(x[train].astype(np.float64)).transform(x)
        ours = lazy.compute()
        signs = np.sign((ours * theirs).sum(axis=0))
        np.testing.assert_allclose(ours, theirs * signs, rtol=1e-3, atol=1e-3)
        expected.append(ours)
    np.testing.assert_allclose(fused(view, "average", components=3).compute(), sum(expected) / 2, rtol=1e-5, atol=1e-5)
    assert fused(view, "concat", components=3).shape == (60, 6)


def test_nothing_is_read_until_it_is_asked_for(both: Ensemble) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_views, "_pieces", refuse)
        lazy = [fused(both, "product"), fused(both, "average", components=2)]
        with pytest.raises(AssertionError, match="computed"):
            lazy[0].compute()


def test_statistics_are_kept_and_belong_to_their_train_rows(
    make: Make, vectors: list[np.ndarray], tmp_path: Path
) -> None:
    view, kept = Ensemble([make("a", vectors[1])]), tmp_path / "kept"
    first = fused(view, "concat", folder=kept).compute()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_views, "_pieces", None)  # reading again would fail
        np.testing.assert_array_equal(fused(view, "concat", folder=kept).compute(), first)
    assert len(list(kept.iterdir())) == 1
    next(kept.iterdir()).write_bytes(b"\x93NUMPY, cut off")
    np.testing.assert_array_equal(fused(view, "concat", folder=kept).compute(), first)
    other = Ensemble([make("o", vectors[1], split=["test", "train", "val"] * 20)])
    assert not np.allclose(fused(other, "concat", folder=kept).compute(), first)
    assert len(list(kept.iterdir())) == 2


@pytest.mark.parametrize(("to", "grid"), [("finest", (8, 8)), ("vit", (4, 4)), ((3, 5), (3, 5))])
def test_levels_on_a_chosen_grid_are_torchs_interpolate_on_the_whole(
    make: Make, to: Any, grid: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    maps = [rng.normal(size=(21, c, g, g)).astype(np.float32) for c, g in ((3, 8), (2, 4))]
    pooled = np.zeros((21, 2), np.float32)
    view = Ensemble([make("hiera", pooled, levels=maps[:1]), make("vit", pooled, levels=maps[1:], rows_per_group=4)])
    parts = [torch.nn.functional.interpolate(torch.from_numpy(m), size=grid, mode="bilinear").numpy() for m in maps]
    lazy = aligned_level(view, 0, to)
    assert lazy.shape == (21, 5, *grid)
    np.testing.assert_allclose(lazy.compute(), np.concatenate(parts, axis=1), rtol=1e-6, atol=1e-6)


def test_what_cannot_be_fused_is_said(make: Make, both: Ensemble, vectors: list[np.ndarray]) -> None:
    uneven = Ensemble([both.stores[0], make("c", vectors[2])])
    with pytest.raises(SettingError, match=r"equally many channels, not a 5, c 7; give components"):
        fused(uneven, "average")
    with pytest.raises(SettingError, match=r"'sum' is not known; choose concat"):
        fused(both, "sum")
    with pytest.raises(SettingError, match="needs weights"):
        fused(both, "weighted")
    with pytest.raises(SettingError, match="needs weights"):
        fused(both, "product", weights=[1, 1])
    with pytest.raises(SettingError, match="3 weights for 2 members"):
        fused(both, "weighted", weights=[1, 1, 1])
    with pytest.raises(SettingError, match=r"6 principal components of 'a'.*ask for 1 to 5"):
        fused(uneven, "concat", components=6)
    with pytest.raises(SettingError, match="no train rows"):
        fused(Ensemble([make("t", vectors[0], split=["test"] * 60)]), "concat")


def test_two_processes_of_the_distributed_scheduler_give_the_same_numbers(both: Ensemble) -> None:
    distributed = pytest.importorskip("distributed")
    lazy = [both.pooled("mean"), fused(both, "average"), fused(both, "product", components=3)]
    expected = dask.compute(*lazy, scheduler="synchronous")
    cluster = distributed.LocalCluster(n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        got = dask.compute(*lazy, scheduler=client)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
