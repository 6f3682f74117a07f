"""The loader: every row once, the numbers of the lazy view, whatever the layout, dtype, mode and place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.ensemble import Ensemble
from embedcache.errors import SettingError
from embedcache.feature_loader import FeatureLoader
from embedcache.shuffling import mixing, shuffled, windows_of
from embedcache_stores import ArraySpec, FeatureStore, FeatureWriter, LevelSpec, StoreSpec
from embedcache_stores.encodings import DTYPES
from embedcache_stores.schema import level_arrays

ROWS = 53


def write(
    place: str, dtype: str, grids: Sequence[tuple[int, int]], seed: int, *, task: str = "classification", **layout: Any
) -> FeatureStore:
    """A store with pooled vectors and levels of (channels, side), and masks for segmentation."""
    rng = np.random.default_rng(seed)
    on_disk, encoding = DTYPES[dtype]
    levels = [
        LevelSpec(index=i, channels=c, reduction=64 / side, height=side, width=side)
        for i, (c, side) in enumerate(grids)
    ]
    pooled = ArraySpec(name="pooled_mean", dims=("channel",), shape=(7,), dtype=on_disk, encoding=encoding)
    mask = ArraySpec(name="mask", dims=("y", "x"), shape=(8, 8), dtype="int16")
    label = ArraySpec(name="label", dtype="int64")
    masks = task == "segmentation"
    spec = StoreSpec(
        sample_ids=tuple(f"s{i}" for i in range(ROWS)),
        arrays=(pooled, *level_arrays(levels, on_disk, encoding), *((mask,) if masks else ())),
        columns=(ArraySpec(name="split", dtype="string"), *(() if masks else (label,))),
        provenance={"seed": seed},
        attrs={
            "task": task,
            "class_names": ["a", "b", "c"],
            "levels": [x.to_json() for x in levels],
        },
        **{"rows_per_group": 8, **layout},
    )
    arrays = {
        a.name: rng.integers(0, 3, (ROWS, *a.shape)).astype("int16")
        if a.name == "mask"
        else rng.normal(size=(ROWS, *a.shape)).astype("float32")
        for a in spec.arrays
    }
    columns = {"split": np.array(["train"] * ROWS, dtype=object), "label": np.arange(ROWS) % 3}
    with FeatureWriter(place, spec) as writer:
        for group in writer.missing:
            rows = spec.group_rows(group)
            values = {
                k: v[rows].astype(on_disk) if encoding is None and k != "mask" else v[rows] for k, v in arrays.items()
            }
            writer.write_group(group, values, {c.name: columns[c.name][rows] for c in spec.columns})
        writer.commit()
    return FeatureStore(place)


LAYOUTS: list[dict[str, Any]] = [{}, {"rows_per_group": 64}, {"compression": "lz4"}, {"rows_per_chunk": 2}]


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["plain", "one group", "compressed", "sharded"])
@pytest.mark.parametrize("dtypes", [("float16", "float16"), ("bfloat16", "bfloat16"), ("int8", "float16"), ("int8",)])
def test_batches_equal_the_lazy_view(tmp_path: Path, mode: Any, layout: dict[str, Any], dtypes: Sequence[str]) -> None:
    grids = ([(3, 8), (4, 4)], [(2, 4), (5, 4)])
    stores = [
        write(str(tmp_path / "m-x" / f"{i}.zarr"), dtype, grids[i], i, **(layout if i == 0 else {}))
        for i, dtype in enumerate(dtypes)
    ]
    view = Ensemble(stores)
    arrays = ["pooled_mean", "level_0", "level_1"]
    lazy = {"pooled_mean": view.pooled(), "level_0": view.level(0), "level_1": view.level(1)}
    whole = {name: values.compute(scheduler="synchronous") for name, values in lazy.items()}
    rows = np.setdiff1d(np.arange(ROWS), [0, 9, 50])
    loader = FeatureLoader(view, arrays, rows, batch_size=7, mode=mode, seed=3)
    seen = []
    for batch in loader.epoch(1):
        seen += batch.rows.tolist()
        for name in arrays:
            expected = torch.from_numpy(whole[name][batch.rows]).to(torch.float32)
            got = batch.x[name].to(torch.float32)
            bound = (
                2**-7 if "bfloat16" in dtypes and name == "level_0" else 0
            )  # resized, then rounded to what is stored
            torch.testing.assert_close(got, expected, rtol=bound, atol=bound / 8)
        assert batch.y is not None
        assert batch.y.tolist() == (batch.rows % 3).tolist()
    assert sorted(seen) == rows.tolist()
    assert seen == loader.order(1).tolist()


def test_a_bucket_is_streamed_window_by_window(tmp_path: Path) -> None:
    view = Ensemble([write("memory://loader/m-x/a.zarr", "float16", [(3, 4)], 0, rows_per_chunk=4)])
    loader = FeatureLoader(view, ["level_0"], np.arange(ROWS), batch_size=5, mode="streaming", window_groups=2)
    seen = [row for batch in loader.epoch(0) for row in batch.rows.tolist()]
    assert sorted(seen) == list(range(ROWS))
    assert len({row // 8 for row in seen[:16]}) == 2


def test_masks_are_the_targets_of_segmentation(tmp_path: Path) -> None:
    store = write(str(tmp_path / "m-x" / "a.zarr"), "float16", [(3, 4)], 0, task="segmentation")
    for mode in ("resident", "streaming"):
        for batch in FeatureLoader(Ensemble([store]), ["level_0"], np.arange(20), batch_size=6, mode=mode).epoch(0):  # type: ignore[arg-type]
            assert batch.y is not None
            np.testing.assert_array_equal(batch.y.numpy(), store.read("mask", batch.rows))


def test_epochs_differ_and_a_seed_repeats_them(tmp_path: Path) -> None:
    view = Ensemble([write(str(tmp_path / "m-x" / "a.zarr"), "float16", [(3, 4)], 0)])

    def orders(seed: int) -> list[list[int]]:
        loader = FeatureLoader(view, ["pooled_mean"], np.arange(ROWS), batch_size=8, seed=seed)
        return [[r for b in loader.epoch(e) for r in b.rows.tolist()] for e in range(2)]

    assert orders(0) == orders(0)
    assert orders(0)[0] != orders(0)[1]
    assert orders(0)[0] != orders(1)[0]


def test_a_streamed_batch_stays_valid_until_the_next_is_asked_for(tmp_path: Path) -> None:
    view = Ensemble([write(str(tmp_path / "m-x" / "a.zarr"), "float16", [(3, 4)], 0)])
    loader = FeatureLoader(view, ["level_0"], np.arange(ROWS), batch_size=4, mode="streaming")
    for batch in loader.epoch(0):
        before = batch.x["level_0"].clone()
        torch.mm(torch.randn(300, 300), torch.randn(300, 300))  # time in which the threads fill other buffers
        assert torch.equal(batch.x["level_0"], before)


def test_an_epoch_left_early_ends_its_threads(tmp_path: Path) -> None:
    import threading

    view = Ensemble([write(str(tmp_path / "m-x" / "a.zarr"), "float16", [(3, 4)], 0)])
    loader = FeatureLoader(view, ["level_0"], np.arange(ROWS), batch_size=4, mode="streaming")
    epoch = loader.epoch(0)
    for _ in itertools.islice(epoch, 2):
        pass
    epoch.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("embedcache-load")]


def test_what_does_not_fit_is_streamed_or_refused(tmp_path: Path) -> None:
    view = Ensemble([write(str(tmp_path / "m-x" / "a.zarr"), "float16", [(3, 4)], 0)])
    small = FeatureLoader(view, ["level_0"], np.arange(ROWS), batch_size=4, budget_bytes=1000)
    assert (small.mode, small.nbytes) == ("streaming", ROWS * 3 * 16 * 2)
    with pytest.raises(SettingError, match="do not fit"):
        FeatureLoader(view, ["level_0"], np.arange(ROWS), batch_size=4, budget_bytes=1000, mode="resident")
    assert FeatureLoader(view, ["level_0"], np.arange(ROWS), batch_size=4).mode == "resident"
    with pytest.raises(SettingError, match="at least 1"):
        FeatureLoader(view, ["level_0"], np.arange(ROWS), batch_size=0)


@settings(deadline=None)
@given(
    rows=st.lists(st.integers(0, 200), unique=True),
    seed=st.integers(0, 5),
    window=st.none() | st.integers(1, 6),
    group=st.sampled_from([1, 4, 16]),
)
def test_every_order_is_a_permutation_and_windows_partition_it(
    rows: list[int], seed: int, window: int | None, group: int
) -> None:
    given_rows = np.array(rows, dtype=np.int64)
    order = shuffled(given_rows, seed, 2, rows_per_group=group, window_groups=window)
    assert sorted(order.tolist()) == sorted(rows)
    if window is not None:
        windows = windows_of(order, group, window)
        assert [r for w in windows for r in w.tolist()] == order.tolist()
        seen: set[int] = set()
        for one in windows:
            here = set((one // group).tolist())
            assert len(here) <= window
            assert not here & seen
            seen |= here


def test_a_uniform_order_mixes_as_chance_does_and_windows_are_reported_as_they_are() -> None:
    rows = np.arange(4096)
    uniform = np.mean([mixing(shuffled(rows, 0, e), 32, 64).ratio for e in range(20)])
    assert uniform == pytest.approx(1, abs=0.05)
    four = mixing(shuffled(rows, 0, 0, rows_per_group=64, window_groups=4), 32, 64)
    assert four.ratio == pytest.approx(16, rel=0.05)  # 4 of 64 groups at a time
    assert mixing(rows, 32, 64).ratio == pytest.approx(65, rel=0.05)  # not shuffled at all
    assert "16." in str(four) or "15." in str(four)


def test_the_first_places_of_a_shuffle_are_uniform() -> None:
    counts = np.zeros(16)
    for epoch in range(3200):
        counts[shuffled(np.arange(16), 7, epoch)[0]] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 37.7  # chi-square, 15 degrees of freedom, 0.1 %


def test_batches_are_counted_as_they_come(tmp_path: Path) -> None:
    places = (str(tmp_path / "m-x" / "a.zarr"), "memory://counted/m-x/a.zarr")
    stores = [write(place, "float16", [(3, 4)], 0, rows_per_chunk=4) for place in places]
    rows = np.arange(0, ROWS, 3)
    for store, mode, window in itertools.product(stores, ("resident", "streaming"), (None, 1, 2)):
        loader = FeatureLoader(Ensemble([store]), ["level_0"], rows, batch_size=4, mode=mode, window_groups=window)  # type: ignore[arg-type]
        for epoch in (1, 2):
            assert loader.sizes(epoch) == [len(b.rows) for b in loader.epoch(epoch)]
