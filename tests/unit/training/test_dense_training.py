"""Heads on maps: runs that share batches equal runs alone, streaming equals resident, faults are named."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedcache import feature_loader
from embedcache.dense_data import DenseData
from embedcache.ensemble import Ensemble
from embedcache.errors import DatasetError, FeatureError, SettingError
from embedcache.evaluation.record import load_record
from embedcache.heads._registry import get_head
from embedcache.heads._spec import NOT_FOR_ALL
from embedcache.protocol import run_protocol
from embedcache.rerun import rerun
from embedcache.shuffling import shuffled
from embedcache.train_config import Run, TrainConfig
from embedcache.training import TrainResult, load_data, train
from embedcache.training_plan import plan_training
from embedcache.trials import TrialOptions
from embedcache_stores import ArraySpec, FeatureStore, FeatureWriter, LevelSpec, StoreNotFoundError, StoreSpec
from embedcache_stores.schema import level_arrays

SIZE, ROWS, IGNORE = 32, 40, 255
PYRAMID = [(6, 16), (8, 8), (8, 4), (8, 2)]
PLAIN = [(8, 4)] * 4
CONFIG = TrainConfig(head="linear-seg", epochs=3, batch_size=7, learning_rate=1e-2, decoder_channels=8)
MakeDense = Callable[..., FeatureStore]


def masks() -> np.ndarray:
    rng = np.random.default_rng(0)
    mask = np.zeros((ROWS, SIZE, SIZE), np.int16)
    for i in range(ROWS):
        a, b = rng.integers(4, SIZE - 4, 2)
        mask[i, :a, :b], mask[i, a:, b:] = 1, 2
    mask[:, :1] = IGNORE
    return mask


@pytest.fixture
def make_dense(tmp_path: Path) -> MakeDense:
    """Return ``make_dense(name, grids, ...)``: a committed store of maps that tell of masks of three classes."""

    def build(
        name: str,
        grids: Sequence[tuple[int, int]],
        mask: np.ndarray | None = None,
        *,
        spoil: Callable[[dict[str, np.ndarray]], None] = lambda maps: None,
        with_mask: bool = True,
    ) -> FeatureStore:
        mask = masks() if mask is None else mask
        rng = np.random.default_rng(len(name))
        maps, levels = {}, []
        for i, (channels, grid) in enumerate(grids):
            step = SIZE // grid
            seen = np.eye(3)[np.clip(mask[:, step // 2 :: step, step // 2 :: step], 0, 2)].transpose(0, 3, 1, 2)
            told = np.einsum("ck,nkyx->ncyx", rng.normal(size=(channels, 3)), seen)
            maps[f"level_{i}"] = (told + 0.5 * rng.normal(size=told.shape)).astype(np.float16)
            levels.append(LevelSpec(index=i, channels=channels, reduction=SIZE / grid, height=grid, width=grid))
        spoil(maps)
        arrays = list(level_arrays(levels, "float16"))
        if with_mask:
            arrays.append(ArraySpec(name="mask", dims=("y", "x"), shape=(SIZE, SIZE), dtype="int16"))
        spec = StoreSpec(
            sample_ids=tuple(f"s{i}" for i in range(ROWS)),
            arrays=tuple(arrays),
            columns=(ArraySpec(name="split", dtype="string"),),
            provenance={"backbone": {"name": name, "weights": {"kind": "file"}}, "dataset": {}},
            rows_per_group=8,
            attrs={
                "task": "segmentation",
                "class_names": ["a", "b", "c"],
                "ignore_index": IGNORE,
                "levels": [x.to_json() for x in levels],
            },
        )
        split = np.array([("train", "train", "val", "test")[i % 4] for i in range(ROWS)], dtype=object)
        path = tmp_path / "cache" / "m-seg" / f"{name}.zarr"
        with FeatureWriter(path, spec) as writer:
            for group in writer.missing:
                here = spec.group_rows(group)
                parts = {k: v[here] for k, v in maps.items()} | ({"mask": mask[here]} if with_mask else {})
                writer.write_group(group, parts, {"split": split[here]})
            writer.commit()
        return FeatureStore(path)

    return build


def assert_equal_runs(one: TrainResult, other: TrainResult) -> None:
    assert one.test == other.test
    assert one.curve == other.curve
    assert one.state.keys() == other.state.keys()
    for name, tensor in one.state.items():
        assert torch.equal(tensor, other.state[name]), name


@pytest.mark.parametrize("head", ["linear-seg", "fcn", "upernet"])
@pytest.mark.parametrize("grids", [[PYRAMID], [PLAIN], [PYRAMID, PLAIN]], ids=["pyramid", "plain", "both"])
def test_runs_that_share_batches_equal_runs_alone_and_one_that_fails_disturbs_none(
    make_dense: MakeDense, head: str, grids: list[list[tuple[int, int]]]
) -> None:
    view = Ensemble([make_dense(f"member{'x' * i}", g) for i, g in enumerate(grids)])
    config = CONFIG.with_(head=head, dropout=0.2, clip=1.0, schedule="cosine", class_weights="balanced")
    data = load_data(view, config)
    runs = [Run(config, 0), Run(config.with_(learning_rate=1e25), 1), Run(config.with_(learning_rate=3e-3), 2)]
    together = train(data, runs)
    assert_equal_runs(together[0], train(data, [runs[0]])[0])
    torch.rand(7)  # whatever else draws numbers
    assert_equal_runs(together[2], train(data, [runs[2]])[0])
    assert together[1].failed is not None
    assert "seed 1 became" in together[1].failed
    assert together[1].state == {}
    streamed = load_data(view, config, budget_bytes=0)
    assert streamed.loader("train").mode == "streaming"  # type: ignore[union-attr]
    assert data.loader("train").mode == "resident"  # type: ignore[union-attr]
    assert_equal_runs(together[0], train(streamed, [runs[0]])[0])


def test_a_head_on_maps_learns_and_the_ensemble_beats_the_coarse_member(make_dense: MakeDense) -> None:
    fine, coarse = make_dense("fine", PYRAMID), make_dense("coarse", PLAIN)
    config = CONFIG.with_(epochs=12)
    scores = {}
    for view in (Ensemble([coarse]), Ensemble([fine, coarse])):
        result = train(load_data(view, config), [Run(config, 0)])[0]
        scores[view.name] = result.test["miou"]
        assert result.interval is not None
        assert result.interval[0] <= result.test["miou"] <= result.interval[1]
        assert len(result.per_class["iou"]) == 3
    assert scores["coarse"] > 0.6
    assert scores["fine+coarse"] > scores["coarse"] + 0.05


def test_linear_seg_equals_a_plain_training_loop(make_dense: MakeDense) -> None:
    """The same in a few lines of PyTorch, from numpy arrays: order, scale, loss, optimiser, choice of epoch."""
    store = make_dense("one", [(6, 16), (8, 8)])
    config = CONFIG.with_(epochs=4, weight_decay=0.05)
    view = Ensemble([store])
    got = train(load_data(view, config), [Run(config, 3)])[0]
    train_rows, val_rows = (np.flatnonzero(view.split == s) for s in ("train", "val"))
    maps = [torch.from_numpy(store.read(f"level_{i}", np.arange(ROWS)).astype(np.float32)) for i in range(2)]
    for i, x in enumerate(maps):
        seen = x[torch.from_numpy(train_rows)].double()
        mean, std = seen.mean((0, 2, 3), keepdim=True), seen.var((0, 2, 3), keepdim=True, correction=0).sqrt()
        maps[i] = (x - mean.float()) / std.float()
    big = [torch.nn.functional.interpolate(x, size=(16, 16), mode="bilinear", align_corners=False) for x in maps]
    whole, target = torch.cat(big, dim=1), torch.from_numpy(masks().astype(np.int64))
    spec = get_head("linear-seg")
    assert spec.decode is not None
    start = spec.decode([store.levels], 3, torch.Generator().manual_seed(3), config).state_dict()
    layer = torch.nn.Conv2d(14, 3, 1)
    layer.load_state_dict({"weight": start["classifier.weight"], "bias": start["classifier.bias"]})
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.05)

    def logits(rows: np.ndarray) -> torch.Tensor:
        out = layer(whole[torch.from_numpy(rows)])
        return torch.nn.functional.interpolate(out, size=(SIZE, SIZE), mode="bilinear", align_corners=False)

    best, state = -1.0, {}
    for epoch in range(1, 5):
        order = shuffled(train_rows, 0, epoch)
        for at in range(0, len(order), 7):
            rows = order[at : at + 7]
            loss = torch.nn.functional.cross_entropy(logits(rows), target[torch.from_numpy(rows)], ignore_index=IGNORE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            predicted = logits(val_rows).argmax(1).numpy()
        truth = target.numpy()[val_rows]
        kept = truth != IGNORE
        ious = [
            ((predicted == c) & (truth == c))[kept].sum() / ((predicted == c) | (truth == c))[kept].sum()
            for c in range(3)
        ]
        if np.mean(ious) > best:
            best, state = float(np.mean(ious)), {k: v.clone() for k, v in layer.state_dict().items()}
    assert got.val["miou"] == pytest.approx(best, abs=1e-3)
    torch.testing.assert_close(got.state["classifier.weight"], state["weight"], rtol=1e-3, atol=1e-4)


def test_protocol_on_maps_leaves_records_that_run_again(make_dense: MakeDense, tmp_path: Path) -> None:
    view = Ensemble([make_dense("one", PYRAMID)])
    options = TrialOptions(count=3, batch=2)
    result = run_protocol(view, CONFIG, range(2), tmp_path / "r", trials=options)
    assert result.choice is not None
    assert [len(result.choice.tried), result.trained] == [3, 2]
    record = result.records[0]
    assert record.grids["one/level_0"] == [6, 16, 16]
    assert record.metric == "miou"
    assert record.samples == {"train": 20, "val": 10, "test": 10}
    again = run_protocol(view, CONFIG, range(2), tmp_path / "r", trials=options)
    assert again.trained == 0
    (path,) = (tmp_path / "r" / "m-seg" / "one").glob("linear-seg-*/seed-0.json")
    assert load_record(path) == again.records[0]
    assert rerun(record, tmp_path / "cache").test == record.test


def test_levels_are_a_choice(make_dense: MakeDense) -> None:
    view = Ensemble([make_dense("one", PYRAMID)])
    config = CONFIG.with_(levels=(0, 2), epochs=1)
    result = train(load_data(view, config), [Run(config, 0)])[0]
    assert result.state["classifier.weight"].shape[1] == 6 + 8
    with pytest.raises(SettingError, match="level 4 does not exist; 'one' has levels 0 to 3"):
        load_data(view, CONFIG.with_(levels=(4,)))


def test_faults_are_named(make_dense: MakeDense) -> None:
    def spoil(maps: dict[str, np.ndarray]) -> None:
        maps["level_1"][5, 3, 1, 1] = np.nan  # s5 is in train

    data = load_data(Ensemble([make_dense("lost", PYRAMID, spoil=spoil)]), CONFIG)
    with pytest.raises(FeatureError, match=r"'lost'.*row 5 \('s5'\)"):
        train(data, [Run(CONFIG, 0)])
    with pytest.raises(SettingError, match="holds no masks"):
        load_data(Ensemble([make_dense("bare", PYRAMID, with_mask=False)]), CONFIG)
    with pytest.raises(SettingError, match="heads for those are fcn, linear-seg, upernet"):
        load_data(Ensemble([make_dense("task", PYRAMID)]), CONFIG.with_(head="linear"))
    one = Ensemble([make_dense("batch", PYRAMID)])
    config = CONFIG.with_(batch_size=1)
    with pytest.raises(SettingError, match="--batch-size must be at least 2"):
        train(load_data(one, config), [Run(config, 0)])
    with pytest.raises(StoreNotFoundError, match="holds no feature maps"):
        load_data(Ensemble([make_dense("none", [])]), CONFIG)


@pytest.mark.parametrize("row", [2, 3], ids=["val", "test"])
def test_lost_features_that_only_score_are_named_too(make_dense: MakeDense, row: int) -> None:
    def spoil(maps: dict[str, np.ndarray]) -> None:
        maps["level_1"][row, 3, 1, 1] = np.nan

    data = load_data(Ensemble([make_dense("lost", PYRAMID, spoil=spoil)]), CONFIG)
    with pytest.raises(FeatureError, match=rf"'lost.*row {row} \('s{row}'\)"):
        train(data, [Run(CONFIG, 0)])


def test_weights_lost_in_the_last_step_are_no_result(make_dense: MakeDense) -> None:
    data = load_data(Ensemble([make_dense("one", PYRAMID)]), CONFIG)
    config = CONFIG.with_(learning_rate=1e38, steps=1)
    result = train(data, [Run(config, 0)])[0]
    assert result.failed == "weights of seed 0 were not finite after step 1; lower --learning-rate (1e+38)"
    assert (result.state, result.test, result.best_epoch) == ({}, {}, 0)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m, split: m.fill(IGNORE), "every pixel of the 'train' masks"),
        (lambda m, split: m[split == "test"].fill(0) or m.__setitem__(split == "test", IGNORE), "of the 'test' masks"),
        (lambda m, split: m.fill(1), "hold a single class, 'b'"),
        (lambda m, split: m.__setitem__(3, 7), "label 7 in the masks"),
    ],
)
def test_masks_that_teach_nothing_are_refused(make_dense: MakeDense, change: Any, error: str) -> None:
    mask = masks()
    change(mask, np.array([("train", "train", "val", "test")[i % 4] for i in range(ROWS)]))
    with pytest.raises(DatasetError, match=error):
        load_data(Ensemble([make_dense("one", PYRAMID, mask)]), CONFIG)


def test_classes_missing_from_train_are_noted(make_dense: MakeDense) -> None:
    mask = masks()
    for i in range(ROWS):
        if i % 4 < 2:
            mask[i][mask[i] == 2] = 0
    data = load_data(Ensemble([make_dense("one", PYRAMID, mask)]), CONFIG)
    assert data.notes == ("classes missing from train: c",)


def test_streaming_stays_within_its_budget(make_dense: MakeDense) -> None:
    view = Ensemble([make_dense("one", PYRAMID)])
    budget = 30 * load_data(view, CONFIG).row_bytes  # type: ignore[union-attr]
    data = load_data(view, CONFIG, budget_bytes=budget)
    modes = {split: data.loader(split).mode for split in ("train", "val", "test")}  # type: ignore[union-attr]
    assert modes == {"train": "resident", "val": "resident", "test": "streaming"}  # 20 + 10 + 10 rows
    ring = data.loader("test")._ring()  # type: ignore[union-attr]
    held = sum(t.nbytes for buffers in ring for some in buffers.tensors for t in some)
    assert held <= 4 * CONFIG.batch_size * data.row_bytes  # type: ignore[operator,union-attr]


def test_every_epoch_trains_where_a_compressed_store_is_streamed_in_windows(
    make_dense: MakeDense, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 rows are 3 batches of 7, but 5 where each window of one row group (of 8 rows, 4 in train) is cut by itself."""
    view = Ensemble([make_dense("one", PYRAMID)])
    monkeypatch.setattr(FeatureStore, "direct", lambda store, name: None)  # as of a compressed array
    monkeypatch.setattr(feature_loader, "_WINDOW_BYTES", 1)
    config = CONFIG.with_(epochs=6)
    data = load_data(view, config, budget_bytes=0)
    losses = [point["train_loss"] for point in train(data, [Run(config, 0)])[0].curve]
    assert len(losses) == 6
    assert all(0 < after < before for before, after in itertools.pairwise(losses))
    limited = config.with_(steps=12)  # 5 a epoch
    assert len(train(data, [Run(limited, 0)])[0].curve) == 3


def test_windows_hold_as_many_rows_as_memory_allows(make_dense: MakeDense, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few rows of each row group many groups fit."""
    view = Ensemble([make_dense("one", PYRAMID)])
    monkeypatch.setattr(FeatureStore, "direct", lambda store, name: None)
    data = load_data(view, CONFIG, budget_bytes=0)
    monkeypatch.setattr(feature_loader, "_WINDOW_BYTES", 8 * data.row_bytes)  # type: ignore[union-attr]
    assert [data.loader(s).window_groups for s in ("train", "val")] == [2, 4]  # type: ignore[union-attr]


def test_one_training_sample_is_refused(make_dense: MakeDense) -> None:
    data = load_data(Ensemble([make_dense("one", PYRAMID)]), CONFIG)
    few = dataclasses.replace(data, rows={**data.rows, "train": data.rows["train"][:1]})  # type: ignore[union-attr,type-var]
    with pytest.raises(DatasetError, match="1 training samples of 'm-seg' make no batch of two"):
        train(few, [Run(CONFIG, 0)])


def test_no_split_is_held_twice(make_dense: MakeDense, monkeypatch: pytest.MonkeyPatch) -> None:
    loaders: list[Any] = []
    load = DenseData.loader

    def counted(data: DenseData, split: str, **options: Any) -> Any:
        loaders.append(load(data, split, **options))
        return loaders[-1]

    monkeypatch.setattr(DenseData, "loader", counted)
    train(load_data(Ensemble([make_dense("one", PYRAMID)]), CONFIG), [Run(CONFIG, 0)])
    assert sorted(len(one.rows) for one in loaders) == [10, 10, 20]


def test_decoders_that_do_not_fit_together_are_trained_one_after_the_other(make_dense: MakeDense) -> None:
    data = load_data(Ensemble([make_dense("one", PYRAMID)]), CONFIG)
    runs = [Run(CONFIG, seed) for seed in range(3)]
    together, apart = train(data, runs), train(data, runs, budget_bytes=1)
    assert [[r.stacked_with for r in some] for some in (together, apart)] == [[3, 3, 3], [1, 1, 1]]
    for one, other in zip(together, apart, strict=True):
        assert_equal_runs(one, other)


def test_patience_ends_a_run_early(make_dense: MakeDense) -> None:
    view = Ensemble([make_dense("one", PYRAMID)])
    config = CONFIG.with_(epochs=30, patience=2, learning_rate=1e-9)
    still, moving = Run(config, 0), Run(dataclasses.replace(config, learning_rate=1e-2), 1)
    results = train(load_data(view, config), [still, moving])
    assert len(results[0].curve) < len(results[1].curve)
    assert_equal_runs(results[1], train(load_data(view, config), [moving])[0])


def test_a_plan_tells_sizes_before_anything_is_trained(make_dense: MakeDense) -> None:
    plan = plan_training(Ensemble([make_dense("one", PYRAMID)]), CONFIG, 16, 10, "cpu", None)
    assert plan.parameters == 3 * (6 + 8 + 8 + 8) + 3
    assert (plan.stack, plan.batch_size, plan.resident) == (16, 7, True)
    assert "held in memory" in plan.lines()[2]


@pytest.mark.parametrize("head", ["linear-seg", "fcn", "upernet"])
def test_a_head_heeds_the_settings_that_it_names_and_no_others(make_dense: MakeDense, head: str) -> None:
    view, config = Ensemble([make_dense("one", PYRAMID)]), CONFIG.with_(head=head, epochs=1)
    plain = train(load_data(view, config), [Run(config, 0)])[0].state
    other = {"loss": "dice", "class_weights": "balanced", "label_smoothing": 0.3, "batch_norm": True, "dropout": 0.5}
    assert set(other) == set(NOT_FOR_ALL)
    for name, value in other.items():
        changed = config.with_(**{name: value})
        state = train(load_data(view, changed), [Run(changed, 0)])[0].state
        same = state.keys() == plain.keys() and all(torch.equal(state[k], plain[k]) for k in plain)
        assert same == (name not in get_head(head).heeds), name
