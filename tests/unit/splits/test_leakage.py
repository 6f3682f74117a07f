"""The leakage report against brute force, and on splits that leak by construction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from embedcache.ensemble import Ensemble
from embedcache.errors import FeatureError, SettingError
from embedcache.leakage import measure_leakage
from embedcache.neighbours import nearest
from embedcache.splitting import SplitOptions, make_split

Make = Callable[..., Ensemble]


def test_neighbours_in_pieces_equal_the_whole_similarity_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    keys, queries = rng.normal(size=(300, 7)).astype(np.float32), rng.normal(size=(40, 7)).astype(np.float32)
    keys[200] = 3 * keys[10]  # as similar: the lower row is taken
    cosine = (queries @ keys.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(keys, axis=1)
    monkeypatch.setattr("embedcache.neighbours._BLOCK_BYTES", 4 * 40 * 23)  # 23 keys at a time
    for k in (1, 5):
        pieces = ((np.arange(s, s + 60), keys[s : s + 60]) for s in range(0, 300, 60))
        rows, similarity = nearest(queries, pieces, k)
        order = np.argsort(-cosine.round(6), axis=1, kind="stable")[:, :k]
        assert (rows == order).all()
        assert similarity == pytest.approx(np.take_along_axis(cosine, order, axis=1), abs=1e-6)
    own = np.arange(0, 300, 8)
    rows, _ = nearest(keys[own], [(np.arange(300), keys)], 2, own=own)
    assert not (rows == own[:, None]).any()
    few, similarity = nearest(queries, [(np.arange(2), keys[:2])], 3)
    assert (few[:, 2] == -1).all()
    assert np.isneginf(similarity[:, 2]).all()


def test_the_report_equals_brute_force(make: Make) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(240, 6)).astype(np.float32) * (1, 50, 1, 1, 0, 1) + 7
    lat, lon = rng.uniform(40, 50, 240), rng.uniform(0, 20, 240)
    view = make(x.astype(np.float32), lat=lat, lon=lon)
    report = measure_leakage(view, near=0.98, pairs=1000)
    split = view.split
    train = np.flatnonzero(split == "train")
    std = x[train].std(axis=0)
    z = (x - x[train].mean(axis=0)) / np.where(std > 0, std, 1)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosine = z @ z[train].T
    inside = cosine[train].copy()
    np.fill_diagonal(inside, -np.inf)
    within = 1 - inside.max(axis=1)
    assert report.train_distance == pytest.approx(np.median(within), abs=1e-5)
    expected = set()
    for part in report.parts:
        rows = np.flatnonzero(split == part.part)
        outside = 1 - cosine[rows].max(axis=1)
        assert part.distance == pytest.approx(np.median(outside), abs=1e-5)
        assert part.closer_share == pytest.approx((outside < np.quantile(within, 0.05)).mean())
        assert part.nearness == pytest.approx((outside[:, None] < within[None]).mean(), abs=1e-6)
        near = cosine[rows].max(axis=1) >= 0.98
        assert part.near_duplicates == near.sum()
        expected |= {(f"s{r}", f"s{train[cosine[r].argmax()]}") for r in rows[near]}
        a, b = np.radians(lat[rows])[:, None], np.radians(lat[train])[None]
        d = np.radians(lon[rows])[:, None] - np.radians(lon[train])[None]
        arc = np.arccos(np.clip(np.sin(a) * np.sin(b) + np.cos(a) * np.cos(b) * np.cos(d), -1, 1)) * 6371.0088
        assert part.km is not None
        assert part.km["median"] == pytest.approx(np.median(arc.min(axis=1)), abs=1e-3)
        assert part.km["smallest"] == pytest.approx(arc.min(), abs=1e-3)
    assert expected
    assert {(p.sample_id, p.train_id) for p in report.pairs} == expected


def test_copies_across_a_split_are_found_and_a_split_by_chance_is_not_blamed(make: Make) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(600, 24)).astype(np.float32)
    fair = measure_leakage(make(x))
    for part in fair.parts:
        assert 0.4 < part.nearness < 0.6
        assert part.closer_share < 0.12
        assert part.near_duplicates == part.same_files == 0
    assert fair.pairs == ()
    hashes = [f"h{i}" for i in range(600)]
    for test in range(2, 122, 3):  # rows 2, 5 ... are test, 300, 303 ... train
        x[test], hashes[test] = x[300 + test - 2], hashes[300 + test - 2]
    leaky = measure_leakage(make(x, name="b", hashes=hashes), pairs=7)
    val, test = leaky.parts
    assert (test.near_duplicates, test.same_files, val.near_duplicates, val.same_files) == (40, 40, 0, 0)
    assert test.closer_share == pytest.approx(0.2, abs=0.06)
    assert test.nearness > val.nearness + 0.08
    assert len(leaky.pairs) == 7
    assert all(p.same_files and p.part == "test" and p.similarity > 0.99999 for p in leaky.pairs)


def test_a_split_by_ground_lies_farther_from_training_than_one_by_chance(make: Make) -> None:
    rng = np.random.default_rng(3)
    lat, lon = rng.uniform(40, 44, 500), rng.uniform(5, 10, 500)
    waves = rng.normal(scale=1.5, size=(2, 20))
    x = np.sin(np.stack([lat, lon], 1) @ waves + rng.uniform(0, 6, 20)) + 0.05 * rng.normal(size=(500, 20))
    view = make(x.astype(np.float32), lat=lat, lon=lon)
    reports = []
    for by, more in (("random", {}), ("blocks", {"block_km": 100, "buffer_km": 20})):
        made = make_split(view, by, SplitOptions(by=by, **more))  # type: ignore[arg-type]
        reports.append(measure_leakage(view.with_split(made)))
    chance, ground = (r.parts[1] for r in reports)
    assert reports[1].split == "blocks"
    assert ground.nearness < 0.25
    assert chance.nearness > 0.4
    assert ground.km is not None
    assert chance.km is not None
    assert ground.km["smallest"] >= 20 > chance.km["smallest"]


def test_a_sample_of_the_queries_is_seeded_and_memory_stays_bounded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    view = make(rng.normal(size=(400, 8)).astype(np.float32))
    whole = measure_leakage(view)
    monkeypatch.setattr("embedcache.leakage._PIECE_BYTES", 4 * 8 * 17)  # 17 rows at a time
    read: list[int] = []
    plain = Ensemble.read_pooled

    def watched(self: Ensemble, kind: str, rows: np.ndarray) -> np.ndarray:
        read.append(len(rows))
        return plain(self, kind, rows)

    monkeypatch.setattr(Ensemble, "read_pooled", watched)
    pieces = measure_leakage(view)
    assert pieces.train_distance == pytest.approx(whole.train_distance, abs=1e-6)
    for a, b in zip(pieces.parts, whole.parts, strict=True):
        assert (a.distance, a.nearness) == pytest.approx((b.distance, b.nearness), abs=1e-5)
    assert max(read) == 17
    some = measure_leakage(view, sample=20, seed=1)
    assert [p.compared for p in some.parts] == [20, 20]
    assert [p.samples for p in some.parts] == [p.samples for p in whole.parts]
    assert some == measure_leakage(view, sample=20, seed=1)
    assert some != measure_leakage(view, sample=20, seed=2)


def test_numbers_and_vectors_that_make_no_sense_are_refused(make: Make) -> None:
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    view = make(x)
    with pytest.raises(SettingError, match="--near"):
        measure_leakage(view, near=2)
    with pytest.raises(SettingError, match="--sample"):
        measure_leakage(view, sample=0)
    x[4, 1] = np.nan
    with pytest.raises(FeatureError, match=r"row 4 \('s4'\)"):
        measure_leakage(make(x, name="b"))
