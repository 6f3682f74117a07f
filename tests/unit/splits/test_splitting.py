"""Splits by chance, class, ground and region: shares, separation, seeds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.earth import blocks, grid_regions, nearest_km
from embedcache.ensemble import Ensemble
from embedcache.errors import DatasetError, SettingError
from embedcache.named_split import NamedSplit
from embedcache.splitting import SplitOptions, class_counts, make_split
from embedcache.stratification import budget_rows, stratified_parts

Make = Callable[..., Ensemble]
THREE = (0.6, 0.2, 0.2)


def options(by: Any, **more: Any) -> SplitOptions:
    return SplitOptions(by=by, **more)


def shares(view: Ensemble, split: NamedSplit) -> np.ndarray:
    return np.array([list(classes.values()) for classes in class_counts(view, split).values()])[:3]


def test_fractions_are_met_and_only_the_seed_decides(make: Make) -> None:
    view = make(np.zeros((101, 2), np.float32))
    one = make_split(view, "x", options("random", seed=3))
    assert one.counts == {"train": 61, "val": 20, "test": 20, "unused": 0}
    assert one.digest == make_split(view, "y", options("random", seed=3)).digest
    assert one.digest != make_split(view, "x", options("random", seed=4)).digest


def test_every_class_is_divided_like_the_whole_to_within_one_sample(make: Make) -> None:
    rng = np.random.default_rng(0)
    label = rng.choice(9, 500, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.03, 0.01, 0.01])
    view = make(np.zeros((500, 2), np.float32), label, classes=9)
    for seed in range(5):
        split = make_split(view, "x", options("stratified", seed=seed))
        wanted = np.outer(THREE, np.bincount(label, minlength=9))
        assert np.abs(shares(view, split) - wanted).max() < 1
        assert np.abs(np.array(list(split.counts.values()))[:3] - 500 * np.array(THREE)).max() <= 1
    whole = stratified_parts(np.repeat([0, 1], 10), THREE, np.random.default_rng(0))  # shares that are whole stay so
    assert [np.bincount(whole[:10]).tolist(), np.bincount(whole[10:]).tolist()] == [[6, 2, 2], [6, 2, 2]]


def test_several_labels_are_stratified_better_than_by_chance() -> None:
    rng = np.random.default_rng(1)
    label = (rng.random((600, 12)) < np.linspace(0.01, 0.4, 12)).astype(np.uint8)

    def worst(parts: np.ndarray) -> float:
        got = np.stack([label[parts == p].sum(axis=0) for p in range(3)])
        return float(np.abs(got - np.outer(THREE, label.sum(axis=0))).max())

    chance = [worst(rng.choice(3, 600, p=THREE)) for _ in range(5)]
    made = [worst(stratified_parts(label, THREE, np.random.default_rng(s))) for s in range(5)]
    assert max(made) < 0.6 * min(chance)
    assert np.abs(np.bincount(stratified_parts(label, THREE, rng)) - 600 * np.array(THREE)).max() < 12


def test_blocks_keep_neighbours_together_and_a_buffer_keeps_parts_apart(make: Make) -> None:
    rng = np.random.default_rng(2)
    lat, lon = rng.uniform(40, 44, 800), rng.uniform(5, 10, 800)
    view = make(np.zeros((800, 2), np.float32), lat=lat, lon=lon)
    split = make_split(view, "x", options("blocks", block_km=40, seed=1))
    parts = np.array(split.parts)
    number = blocks(lat, lon, 40)
    assert all(len(set(parts[number == b])) == 1 for b in np.unique(number))
    assert split.made["blocks"] == len(np.unique(number))
    assert abs(split.counts["train"] / 800 - 0.6) < 0.05

    apart = make_split(view, "x", options("blocks", block_km=40, seed=1, buffer_km=10))
    kept = np.array(apart.parts)
    for own, other in (("train", ("val", "test")), ("val", ("test",))):
        here, there = kept == own, np.isin(kept, other)
        km = np.array([haversine(lat[i], lon[i], lat[there], lon[there]).min() for i in np.flatnonzero(here)])
        assert km.min() >= 10
    taken = apart.made["in_buffer"]
    assert 0 < taken == apart.counts["unused"]
    assert (kept[kept != "unused"] == parts[kept != "unused"]).all()


def haversine(lat: float, lon: float, others: np.ndarray, others_lon: np.ndarray) -> np.ndarray:
    a, b = np.radians(lat), np.radians(others)
    h = np.sin((b - a) / 2) ** 2 + np.cos(a) * np.cos(b) * np.sin(np.radians(others_lon - lon) / 2) ** 2
    return np.asarray(2 * 6371.0088 * np.arcsin(np.sqrt(h)))


def test_distances_and_blocks_hold_at_the_poles_and_across_the_date_line() -> None:
    lat, lon = np.array([0.0, 0.0, 89.9, 89.9]), np.array([179.9, -179.9, 0.0, 180.0])
    km, at = nearest_km(lat, lon, lat, lon, same=True)
    assert at.tolist() == [1, 0, 3, 2]
    assert km == pytest.approx([haversine(lat[i], lon[i], lat[[j]], lon[[j]])[0] for i, j in enumerate(at)], rel=1e-9)
    twice = nearest_km(
        *np.array([[1.0, 1.0, 50.0], [1.0, 1.0, 3.0]]), *np.array([[1.0, 1.0, 50.0], [1.0, 1.0, 3.0]]), same=True
    )
    assert twice[0][:2].tolist() == [0, 0]
    assert twice[1][:2].tolist() == [1, 0]
    rng = np.random.default_rng(0)
    many = np.degrees(np.arcsin(rng.uniform(-1, 1, 20_000))), rng.uniform(-180, 180, 20_000)  # even on the sphere
    sizes = np.bincount(blocks(*many, 2000))
    assert 0.6 < sizes.min() / sizes.mean() < sizes.max() / sizes.mean() < 1.5  # of about equal area


def test_a_region_left_out_is_seen_by_the_test_alone(make: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    centres = np.array([[10.0, 10.0], [10.0, 60.0], [50.0, 10.0], [-30.0, 100.0], [-60.0, -60.0]])
    home = rng.integers(0, 5, 300)
    lat, lon = (centres[home] + rng.normal(size=(300, 2))).T
    view = make(np.zeros((300, 2), np.float32), lat=lat, lon=lon)
    by_kmeans = make_split(view, "x", options("regions", regions="kmeans:5", test_regions=("region-0",)))
    parts = np.array(by_kmeans.parts)
    assert ((parts == "test") == (home == 4)).all()  # region-0 is the westernmost
    assert {"train", "val"} == set(parts[home != 4])

    names = np.array([f"land {h}" for h in home])
    table = tmp_path / "regions.csv"
    table.write_text("sample_id,region\n" + "".join(f"s{i},{n}\n" for i, n in enumerate(names)))
    by_table = make_split(
        view, "x", options("regions", regions=str(table), test_regions=("land 1", "land 2"), val_regions=("land 3",))
    )
    assert by_table.made["regions_of"] == {
        "train": ["land 0", "land 4"],
        "val": ["land 3"],
        "test": ["land 1", "land 2"],
    }
    assert ((np.array(by_table.parts) == "test") == np.isin(home, (1, 2))).all()

    by_chance = make_split(view, "x", options("regions", regions="grid:20", seed=2))
    cells = grid_regions(lat, lon, 20)
    parts = np.array(by_chance.parts)
    assert not set(cells[parts == "test"]) & set(cells[parts != "test"])
    assert grid_regions(np.array([-0.1, 41.0]), np.array([-0.1, 8.0]), 10).tolist() == ["S10W010", "N40E000"]


def test_budgets_keep_each_class_and_a_smaller_one_is_part_of_a_larger(make: Make) -> None:
    label = np.repeat([0, 1, 2], [200, 60, 3])
    split = ["train", "train", "train", "val", "test"] * 53
    view = make(np.zeros((263, 2), np.float32), label, split[:263])
    of_train = np.bincount(label[np.array(split[:263]) == "train"], minlength=3)
    kept: list[set[str]] = []
    for k in (1, 5, 20):
        made = make_split(view, "x", options("stored", per_class=k))
        assert shares(view, made)[0].tolist() == [min(k, n) for n in of_train]
        kept.append({i for i, p in zip(made.sample_ids, made.parts, strict=True) if p == "train"})
    assert kept[0] < kept[1] < kept[2]
    tenth = make_split(view, "x", options("stored", train_fraction=0.1))
    assert shares(view, tenth)[0].tolist() == [max(1, round(0.1 * n)) for n in of_train]
    stored = make_split(view, "x", options("stored"))
    for name in ("val", "test"):
        assert stored.counts[name] == tenth.counts[name] == split[:263].count(name)
    assert tenth.counts["unused"] == stored.counts["train"] - tenth.counts["train"]

    many = (np.random.default_rng(0).random((200, 5)) < (0.02, 0.1, 0.3, 0.5, 0.9)).astype(int)
    rows = budget_rows(many, np.arange(200), np.random.default_rng(0), per_class=4)
    assert (many[rows].sum(axis=0) >= np.minimum(4, many.sum(axis=0))).all()
    assert len(rows) <= 20


def test_masks_are_stratified_by_the_classes_in_them(make: Make) -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((120, 4, 4), np.int16)
    rare = rng.permutation(120)[:10]
    mask[rare, 1, 1] = 2
    mask[:, 3, 3] = 255
    view = make(np.zeros((120, 2), np.float32), mask=mask)
    made = make_split(view, "x", options("stratified"))
    assert shares(view, made)[:, 2].tolist() == [6, 2, 2]
    assert class_counts(view, made)["train"]["class 1"] == 0
    few = make_split(view, "x", options("stratified", per_class=3))
    assert class_counts(view, few)["train"]["class 2"] == 3


def test_skipped_images_take_no_part(make: Make) -> None:
    split = ["skipped" if i % 10 == 0 else "train" for i in range(60)]
    view = make(np.zeros((60, 2), np.float32), split=split)
    made = make_split(view, "x", options("random"))
    assert {p for i, p in enumerate(made.parts) if i % 10 == 0} == {"unused"}
    assert made.counts["unused"] == 6
    assert set(view.with_split(made).split[::10]) == {"skipped"}


def test_a_file_says_who_belongs_where(make: Make, tmp_path: Path) -> None:
    view = make(np.zeros((6, 2), np.float32))
    table = tmp_path / "mine.csv"
    table.write_text(
        "sample_id,split\ns0,train\ns1,Validation\ns2,test\ns3,training\ns4,unused\ns5,test\nother,train\n"
    )
    assert make_split(view, "x", options("file", file=str(table))).parts == (
        "train",
        "val",
        "test",
        "train",
        "unused",
        "test",
    )
    partition = tmp_path / "0.10x_train_partition.json"
    partition.write_text(json.dumps({"train": ["s5"], "valid": ["s1", "s2"], "test": ["s0"]}))
    assert make_split(view, "x", options("file", file=str(partition))).parts == (
        "test", "val", "val", "unused", "unused", "train",
    )  # fmt: skip

    for content, message in (
        ("id,split\ns0,train\n", "no column 'sample_id'"),
        ("sample_id,split\ns0,train\n", "names no part of 5 of 6 samples, the first is 's1'"),
        ("sample_id,split\ns0,train\ns0,test\n", "'s0' twice"),
        ("sample_id,split\ns0,\n", "line 2: sample_id or split is empty"),
        ("sample_id,split\n" + "".join(f"s{i},elsewhere\n" for i in range(6)), "into 'elsewhere'"),
    ):
        table.write_text(content)
        with pytest.raises(DatasetError, match=message):
            make_split(view, "x", options("file", file=str(table)))
    partition.write_text(json.dumps({"train": ["x1"], "valid": ["x2"], "test": ["x3"]}))
    with pytest.raises(DatasetError, match="names none of the 6 samples, whose ids are like 's0'"):
        make_split(view, "x", options("file", file=str(partition)))
    with pytest.raises(DatasetError, match="cannot be read"):
        make_split(view, "x", options("file", file=str(tmp_path / "none.csv")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "blocks"}, "--by blocks needs --block-km"),
        ({"by": "random", "block_km": 3}, "--block-km is for --by blocks, not for --by random"),
        ({"by": "regions"}, "needs --regions"),
        ({"by": "random", "test_regions": ("a",)}, "--test-region and --val-region are for --by regions"),
        ({"by": "random", "fractions": (0.5, 0.2, 0.2)}, "sum to 1"),
        ({"by": "random", "fractions": (0.8, 0.2, 0.0)}, "three numbers above 0"),
        ({"by": "random", "seed": -1}, "--seed"),
        ({"by": "blocks", "block_km": 3, "buffer_km": -1}, "--buffer-km"),
        ({"by": "elsewhere"}, "--by must be one of"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SplitOptions(**given)


def test_what_a_dataset_cannot_give_is_one_sentence(make: Make, tmp_path: Path) -> None:
    plain = make(np.zeros((30, 2), np.float32))
    with pytest.raises(DatasetError, match="no latitude and longitude"):
        make_split(plain, "x", options("blocks", block_km=10))
    lat = np.full(30, 45.0)
    lost = lat.copy()
    lost[[4, 7]] = np.nan
    with pytest.raises(DatasetError, match=r"2 of 30 samples .* the first is 's4'"):
        make_split(
            make(np.zeros((30, 2), np.float32), name="b", lat=lost, lon=lat), "x", options("blocks", block_km=10)
        )
    one_place = make(np.zeros((30, 2), np.float32), name="c", lat=lat, lon=lat)
    with pytest.raises(SettingError, match=r"leaves no val sample .* smaller blocks"):
        make_split(one_place, "x", options("blocks", block_km=10))
    with pytest.raises(SettingError, match="2 to 1 regions of 1 different places"):
        make_split(one_place, "x", options("regions", regions="kmeans:3"))
    with pytest.raises(SettingError, match="'atlantis' is no region; there are N40E040"):
        make_split(one_place, "x", options("regions", regions="grid:20", test_regions=("atlantis",)))
    with pytest.raises(SettingError, match="larger than 0"):
        make_split(one_place, "x", options("blocks", block_km=-4))
    with pytest.raises(SettingError, match="not both"):
        make_split(plain, "x", options("random", train_fraction=0.1, per_class=3))
    with pytest.raises(SettingError, match="above 0 and below 1"):
        make_split(plain, "x", options("random", train_fraction=1.5))
