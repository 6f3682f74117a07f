"""Named splits: one file for all stores of a dataset, in the identity of every run that used it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedcache.ensemble import Ensemble, open_ensemble
from embedcache.errors import SettingError
from embedcache.evaluation.record import find_records, save_runs_table
from embedcache.evaluation.report import summarise
from embedcache.named_split import list_splits, load_split, save_split
from embedcache.protocol import run_protocol
from embedcache.rerun import rerun
from embedcache.splitting import SplitOptions, make_split
from embedcache.train_config import TrainConfig
from embedcache.trials import TrialOptions
from embedcache_stores.errors import SampleIdMismatchError
from embedcache_stores.manifest import find_stores

Make = Callable[..., Ensemble]
CONFIG = TrainConfig(head="logistic")


@pytest.fixture
def view(make: Make) -> Ensemble:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 150)
    return make((rng.normal(size=(150, 5)) + label[:, None]).astype(np.float32), label)


def test_a_split_is_read_back_and_touches_no_store(view: Ensemble, tmp_path: Path) -> None:
    store = tmp_path / "cache/m-x/a.zarr"
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    made = make_split(view, "fair-1", SplitOptions(by="stratified"))
    where, written = save_split(tmp_path / "cache", made)
    assert written
    assert Path(where) == tmp_path / "cache/m-x/splits/fair-1.json"
    assert not save_split(tmp_path / "cache", replace(made, made={"by": "the same, otherwise"}))[1]
    back = load_split(tmp_path / "cache", "m-x", "fair-1")
    assert (back.digest, back.counts, back.made) == (made.digest, made.counts, made.made)
    assert list_splits(tmp_path / "cache", "m-x") == ["fair-1"]
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before
    assert [m.name for m in find_stores(tmp_path / "cache")] == ["a"]

    other = make_split(view, "fair-1", SplitOptions(by="stratified", seed=1))
    with pytest.raises(SettingError, match=r"another split 'fair-1' .* --force"):
        save_split(tmp_path / "cache", other)
    save_split(tmp_path / "cache", other, force=True)
    assert load_split(tmp_path / "cache", "m-x", "fair-1").digest == other.digest


def test_splits_that_are_not_there_or_damaged_are_named(view: Ensemble, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(SettingError, match=r"has no split 'none' .* it has none"):
        load_split(cache, "m-x", "none")
    where, _ = save_split(cache, make_split(view, "one", SplitOptions(by="random")))
    with pytest.raises(SettingError, match="it has one"):
        load_split(cache, "m-x", "../one")
    data = json.loads(Path(where).read_text())
    data["samples"]["test"].append(data["samples"]["train"].pop())
    Path(where).write_text(json.dumps(data))
    with pytest.raises(SettingError, match="not those of its digest"):
        load_split(cache, "m-x", "one")
    Path(where).write_text("{")
    with pytest.raises(SettingError, match="not a split, or damaged"):
        load_split(cache, "m-x", "one")
    for bad in ("a/b", "", ".hidden", "stored"):
        with pytest.raises(SettingError, match="split's name"):
            make_split(view, bad, SplitOptions(by="random"))


def test_one_split_serves_every_store_in_whatever_order_and_no_other_samples(
    view: Ensemble, make: Make, tmp_path: Path
) -> None:
    made = make_split(view, "one", SplitOptions(by="random"))
    save_split(tmp_path / "cache", made)
    reverse = [str(i) for i in view.sample_ids[::-1]]
    make(np.zeros((150, 2), np.float32), ids=reverse, name="turned")
    turned = open_ensemble(tmp_path / "cache", "m-x", "turned", "one")
    straight = open_ensemble(tmp_path / "cache", "m-x", "a", "one")
    assert turned.split[::-1].tolist() == straight.split.tolist() == list(made.parts)
    assert open_ensemble(tmp_path / "cache", "m-x", "a", "stored").assigned is None
    make(np.zeros((149, 2), np.float32), name="fewer")
    with pytest.raises(
        SampleIdMismatchError, match="made for 150 samples, and 'fewer' has 149: 's149' is not in the fea"
    ):
        open_ensemble(tmp_path / "cache", "m-x", "fewer", "one")
    make(np.zeros((150, 2), np.float32), ids=[f"t{i}" for i in range(150)], name="strange")
    with pytest.raises(SampleIdMismatchError, match="'t0' is not in the split"):
        open_ensemble(tmp_path / "cache", "m-x", "strange", "one")


def test_runs_on_different_splits_are_different_protocols(view: Ensemble, tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "results"
    for seed in (0, 1):
        save_split(cache, make_split(view, f"split{seed}", SplitOptions(by="random", seed=seed)))
    names = [None, "split0", "split1"]
    trials = TrialOptions(count=2)
    for name in names:
        result = run_protocol(open_ensemble(cache, "m-x", "a", name), CONFIG, [0], out, trials=trials)
        assert result.trained == 1
        assert run_protocol(open_ensemble(cache, "m-x", "a", name), CONFIG, [0], out, trials=trials).trained == 0
    records = list(find_records(out))
    assert sorted(str(r.split and r.split["name"]) for r in records) == ["None", "split0", "split1"]
    summaries = summarise(records)
    assert len(summaries) == 3
    assert len({s.setting for s in summaries}) == 3
    import pandas as pd

    table = pd.read_parquet(save_runs_table(out))
    assert set(table["split"].dropna()) == {"split0", "split1"}
    assert table["split_digest"].nunique() == 2

    recorded = next(r for r in records if r.split and r.split["name"] == "split1")
    assert recorded.samples == {"train": 90, "val": 30, "test": 30}
    assert recorded.split is not None
    assert recorded.split["made"]["by"] == "random"
    assert rerun(recorded, cache).test == recorded.test
    save_split(cache, make_split(view, "split1", SplitOptions(by="random", seed=9)), force=True)
    with pytest.raises(SettingError, match="split 'split1' of 'm-x' is not the one of the record"):
        rerun(recorded, cache)


def test_a_run_without_a_named_split_has_the_place_it_always_had(view: Ensemble, tmp_path: Path) -> None:
    result = run_protocol(view, CONFIG, [0], tmp_path / "results")
    import hashlib

    from embedcache_stores.schema import canonical_json

    digest = hashlib.sha256(canonical_json([view.fingerprints, result.records[0].config]).encode()).hexdigest()[:8]
    assert (tmp_path / "results/m-x/a" / f"logistic-{digest}" / "seed-0.json").is_file()
