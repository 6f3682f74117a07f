"""Records: found in order, read in every version there was, and named where they are damaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from embedcache.evaluation.record import (
    RecordError,
    RunRecord,
    find_records,
    load_record,
    run_folder,
    save_record,
    save_runs_table,
)
from embedcache.evaluation.report import summarise
from embedcache.train_config import TrainConfig

FIRST_VERSION: dict[str, Any] = {
    "version": 1,
    "dataset": "m-eurosat",
    "features": "prithvi+hiera",
    "fingerprints": {"prithvi": "aa", "hiera": "bb"},
    "random_weights": ["hiera"],
    "channels": {"prithvi": [0, 192], "hiera": [192, 960]},
    "task": "classification",
    "class_names": ["forest", "river"],
    "config": {
        "head": "linear",
        "pooled": "mean",
        "learning_rate": 0.001,
        "weight_decay": 0.01,
        "epochs": 50,
        "batch_size": 64,
    },
    "seed": 3,
    "samples": {"train": 4, "val": 2, "test": 2},
    "metric": "accuracy",
    "best_epoch": 2,
    "val": {"accuracy": 0.5, "f1_macro": 0.25},
    "test": {"accuracy": 0.75, "f1_macro": 0.5},
    "curve": [{"epoch": 1, "train_loss": 0.7, "val_accuracy": 0.5}],
    "seconds": 1.5,
    "created": "2026-01-01T00:00:00+00:00",
    "environment": {"device": "cpu", "torch": "2.5.1"},
    "notes": [],
}


def some(**changes: Any) -> RunRecord:
    return RunRecord(**{**FIRST_VERSION, "version": 2, **changes})


def place(root: Path, record: RunRecord) -> Path:
    return run_folder(root, record.dataset, record.features, record.fingerprints, record.config)


def test_records_of_the_first_version_are_read_reported_and_can_be_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "m-eurosat/prithvi+hiera/linear-00000000"
    folder.mkdir(parents=True)
    (folder / "seed-3.json").write_text(json.dumps(FIRST_VERSION))
    (record,) = find_records(tmp_path)
    assert (record.score, record.interval, record.failed, record.trials, record.grids) == (0.75, None, None, None, {})
    assert (record.stacked_with, record.stack_seeds, record.per_class) == (1, (), {})
    config = TrainConfig.from_json(record.config)
    assert (config.batch_size, config.epochs, config.schedule, config.standardise) == (64, 50, "constant", True)
    (summary,) = summarise([record])
    assert (summary.scores, summary.interval, summary.chosen) == ((0.75,), None, ())
    row = pd.read_parquet(save_runs_table(tmp_path)).iloc[0]
    assert (row["score"], row["config.batch_size"], row["random_weights"]) == (0.75, 64, "hiera")


def test_records_of_both_versions_stand_in_one_table(tmp_path: Path) -> None:
    old, new = some(version=1), some(seed=4, interval=[0.5, 0.9], config=TrainConfig(levels=(0, 2)).to_json())
    for record in (old, new):
        save_record(place(tmp_path, record) / f"seed-{record.seed}.json", record)
    table = pd.read_parquet(save_runs_table(tmp_path)).set_index("seed")
    assert table.loc[4, "config.levels"] == "[0, 2]"
    assert pd.isna(table.loc[3, "config.levels"])
    assert table["interval_high"].isna().tolist() == (table.index == 3).tolist()


def test_the_folder_depends_on_features_and_configuration_and_on_nothing_else(tmp_path: Path) -> None:
    base = some()
    same = some(seed=9, test={}, created="later")
    assert place(tmp_path, same) == place(tmp_path, base)
    assert place(tmp_path, base).parent == tmp_path / "m-eurosat/prithvi+hiera"
    assert place(tmp_path, base).name.startswith("linear-")
    for other in (some(fingerprints={"prithvi": "aa", "hiera": "cc"}), some(config={**base.config, "epochs": 51})):
        assert place(tmp_path, other) != place(tmp_path, base)


def test_records_are_found_in_order_whatever_was_written_first(tmp_path: Path) -> None:
    for seed in (10, 9, 1):
        for dataset in ("m-b", "m-a"):
            record = some(seed=seed, dataset=dataset)
            save_record(place(tmp_path, record) / f"seed-{seed}.json", record)
    shutil.copy(
        place(tmp_path, some(dataset="m-a")) / "seed-9.json", place(tmp_path, some(dataset="m-a")) / "seed-9 copy.json"
    )
    (tmp_path / "m-a/prithvi+hiera/linear-trials-12345678").mkdir()
    (tmp_path / "m-a/prithvi+hiera/linear-trials-12345678/choice.json").write_text("{}")
    found = list(find_records(tmp_path))
    assert [(r.dataset, r.seed) for r in found] == [(d, s) for d in ("m-a", "m-b") for s in (1, 9, 10)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not a result record"),
        ("", "is not a result record"),
        ("[]", "is not a result record"),
        ("null", "is not a result record"),
        ('{"version": 2}', "is not a result record"),
        (json.dumps({**FIRST_VERSION, "extra": 1}), "is not a result record .*extra"),
        (
            json.dumps({**FIRST_VERSION, "version": 99}),
            "is a result record of version 99; this embedcache reads 1 to 2",
        ),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "m-x/a/linear-0/seed-9.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(RecordError, match=rf"seed-9\.json.*{said}"):
        list(find_records(tmp_path))
    with pytest.raises(RecordError, match=r"absent\.json"):
        load_record(tmp_path / "absent.json")


def test_nobody_is_told_to_remove_what_was_never_a_record(tmp_path: Path) -> None:
    (tmp_path / "photo.json").write_text("{}")
    (tmp_path / "seed-3.json").write_text("{")
    for name in ("photo.json", "absent.json", "."):
        with pytest.raises(RecordError, match=r"Records are the seed-K\.json of a results folder\.$"):
            load_record(tmp_path / name)
    with pytest.raises(RecordError, match=r"Remove it, and train again\.$"):
        load_record(tmp_path / "seed-3.json")


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "seed-0.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="is not a result record"):
        load_record(tmp_path / "seed-0.json")


def test_a_folder_without_records_says_how_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no result record; 'embedcache train-head --out"):
        list(find_records(tmp_path))
    with pytest.raises(RecordError, match="does not exist"):
        list(find_records(tmp_path / "absent"))


def test_a_failed_run_has_no_score(tmp_path: Path) -> None:
    failed = some(failed="the loss became nan", test={}, val={}, best_epoch=0, curve=[])
    assert failed.score != failed.score  # NaN
    save_record(tmp_path / "m-x/a/linear-0/seed-3.json", failed)
    assert "NaN" not in (tmp_path / "m-x/a/linear-0/seed-3.json").read_text()
    assert list(find_records(tmp_path)) == [replace(failed, stack_seeds=[])]
    row = pd.read_parquet(save_runs_table(tmp_path)).iloc[0]
    assert row["failed"] == "the loss became nan"
    assert pd.isna(row["score"])
