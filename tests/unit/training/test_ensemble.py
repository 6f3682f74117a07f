"""Ensembles: lazy, checked, and equal to doing it by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch

from embedcache.ensemble import Ensemble, open_ensemble
from embedcache.errors import SettingError
from embedcache_stores import FeatureStore, SampleIdMismatchError, StoreNotFoundError

Make = Callable[..., FeatureStore]


def pyramid(rows: int, grids: tuple[int, ...], channels: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(rows, channels * (i + 1), g, g)).astype(np.float32) for i, g in enumerate(grids)]


@pytest.fixture
def members(make: Make) -> tuple[FeatureStore, FeatureStore, list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(21, c)).astype(np.float16) for c in (5, 7))
    fine, flat = pyramid(21, (16, 8, 4, 2), 3, 1), pyramid(21, (4, 4, 4, 4), 2, 2)
    left = make("hiera", a, levels=fine, rows_per_group=8)
    right = make("vit", b, levels=flat, rows_per_group=4)
    return left, right, [a, b], fine, flat


def test_nothing_is_computed_until_it_is_asked_for(members: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        both = Ensemble(members[:2])
        both.pooled("mean")
        lazy = [both.level(i) for i in range(4)]
        both.to_xarray()
        with pytest.raises(AssertionError, match="computed"):
            lazy[0].compute()


def test_pooled_vectors_are_concatenated_and_traceable(members: Any) -> None:
    both = Ensemble(members[:2])
    expected = np.concatenate(members[2], axis=1)
    np.testing.assert_array_equal(both.pooled("mean").compute(), expected)
    assert both.channels("pooled_mean") == {"hiera": slice(0, 5), "vit": slice(5, 12)}
    rows = np.array([20, 3, 3, 0])
    np.testing.assert_array_equal(both.read_pooled("mean", rows), expected[rows])
    np.testing.assert_array_equal(both.read_pooled("mean", rows), both.pooled("mean").compute()[rows])


def test_levels_are_resized_to_the_finest_grid_as_torch_does_it(members: Any) -> None:
    both, (_, _, _, fine, flat) = Ensemble(members[:2]), members
    for i, size in enumerate((16, 8, 4, 4)):
        parts = [
            torch.nn.functional.interpolate(torch.from_numpy(x[i]), size=(size, size), mode="bilinear").numpy()
            for x in (fine, flat)
        ]
        lazy = both.level(i)
        assert lazy.shape == (21, 3 * (i + 1) + 2 * (i + 1), size, size)
        np.testing.assert_allclose(lazy.compute(), np.concatenate(parts, axis=1), rtol=1e-6, atol=1e-6)
        assert (both.levels[i].channels, both.levels[i].height) == lazy.shape[1:3]


def test_an_ensemble_of_one_is_the_store(members: Any) -> None:
    store = members[0]
    np.testing.assert_array_equal(Ensemble([store]).pooled("mean").compute(), store.array("pooled_mean")[:])
    np.testing.assert_array_equal(Ensemble([store]).level(0).compute(), store.array("level_0")[:])


def test_the_xarray_view_names_the_member_of_each_channel(members: Any) -> None:
    view = Ensemble(members[:2]).to_xarray()
    assert view.pooled_mean.sel(channel=view.member == "vit").shape == (21, 7)
    assert view.level_1.isel(channel_1=(view.member_1 == "hiera").values).shape == (21, 6, 8, 8)
    assert {"sample_id", "split"} <= set(view.coords)
    np.testing.assert_array_equal(view.pooled_mean.values, np.concatenate(members[2], axis=1))


def test_other_samples_are_refused_by_row_and_name(make: Make) -> None:
    x = np.zeros((6, 2), dtype=np.float16)
    left = make("a", x)
    renamed = make("b", x, ids=["s0", "s1", "zz", "s3", "s4", "s5"])
    with pytest.raises(SampleIdMismatchError, match=r"6 and 6 rows, first difference at row 2: 's2' / 'zz'"):
        Ensemble([left, renamed])
    with pytest.raises(SampleIdMismatchError, match=r"6 and 4 rows.*'s4' / no row"):
        Ensemble([left, make("c", x[:4])])


def test_changed_splits_or_labels_are_refused(make: Make) -> None:
    x = np.zeros((6, 2), dtype=np.float16)
    with pytest.raises(SampleIdMismatchError, match=r"splits changed.*--rebuild"):
        Ensemble([make("a", x), make("b", x, digests={"splits": "other", "labels": "l"})])


def test_a_row_that_one_member_skipped_is_skipped_in_the_view(make: Make) -> None:
    x, split = np.zeros((6, 2), dtype=np.float16), ["train", "val", "test"] * 2
    label = np.array([0, 1, 2, 0, 1, 2])
    broken = label.copy()
    broken[4] = -1
    both = Ensemble([make("a", x, label, split), make("b", x, broken, [*split[:4], "skipped", "test"])])
    assert both.split.tolist() == ["train", "val", "test", "train", "skipped", "test"]
    assert both.label[both.split != "skipped"].tolist() == [0, 1, 2, 0, 2]


def test_wrong_names_and_arrays_are_said(make: Make, tmp_path: Path) -> None:
    store = make("a", np.zeros((6, 2), dtype=np.float16))
    cache = tmp_path / "cache"
    with pytest.raises(SettingError, match="twice"):
        Ensemble([store, store])
    with pytest.raises(SettingError, match="at least one"):
        Ensemble([])
    with pytest.raises(SettingError, match="empty name"):
        open_ensemble(cache, "m-x", "a++b")
    with pytest.raises(StoreNotFoundError, match="for 'm-x' it has a"):
        open_ensemble(cache, "m-x", "a+b")
    with pytest.raises(StoreNotFoundError, match="no pooled vectors 'cls': it has mean"):
        Ensemble([store]).pooled("cls")
    with pytest.raises(StoreNotFoundError, match="no feature maps"):
        Ensemble([store]).level(0)


def test_a_level_that_is_not_there_is_said(members: Any) -> None:
    with pytest.raises(SettingError, match=r"level 4 does not exist.*0 to 3"):
        Ensemble(members[:2]).level(4)
