"""Trials: the same choice every time, however often it was interrupted, and failures neither chosen nor hidden."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from embedcache import trials as module
from embedcache.errors import SettingError
from embedcache.heads._registry import get_head
from embedcache.loading import PooledData
from embedcache.train_config import Run, TrainConfig
from embedcache.training import train
from embedcache.trials import CHOICE_FILE, STUDY_FILE, Choice, TrialOptions, choose, describe, search_space

Pooled = Callable[..., PooledData]
CONFIG = TrainConfig(epochs=3, batch_size=16)
OPTIONS = TrialOptions(count=8, batch=3)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[Run]]:
    """Return the runs of every call to ``train``, as they come."""
    calls: list[list[Run]] = []

    def counted(data: Any, runs: Any, **options: Any) -> Any:
        calls.append(list(runs))
        return train(data, runs, **options)

    monkeypatch.setattr(module, "train", counted)
    return calls


def nothing() -> PooledData:
    raise AssertionError("the data were loaded")


def test_trials_come_in_batches_within_the_range_and_the_best_is_chosen(
    pooled: Pooled, tmp_path: Path, trained: list[list[Run]]
) -> None:
    data = pooled()
    choice = choose(lambda: data, CONFIG, OPTIONS, tmp_path / "study")
    assert [len(runs) for runs in trained] == [3, 3, 2]
    assert len(choice.tried) == 8
    assert {run.seed for runs in trained for run in runs} == {0}
    assert len({t["learning_rate"] for t in choice.tried}) == 8
    for t in choice.tried:
        assert 1e-4 <= t["learning_rate"] <= 1e-1
        assert 1e-6 <= t["weight_decay"] <= 1e-1
        alone = train(data, [Run(CONFIG.with_(learning_rate=t["learning_rate"], weight_decay=t["weight_decay"]), 0)])[0]
        assert (t["score"], t["best_epoch"], t["failed"]) == (alone.val["accuracy"], alone.best_epoch, None)
    best = choice.tried[int(np.argmax([t["score"] for t in choice.tried]))]  # the first of equals
    assert choice.chosen == {"learning_rate": best["learning_rate"], "weight_decay": best["weight_decay"]}
    assert choice.score == best["score"]


def test_the_choice_is_a_function_of_its_inputs(pooled: Pooled, tmp_path: Path) -> None:
    np.random.seed(3)
    one = choose(pooled, CONFIG, OPTIONS, tmp_path / "one")
    np.random.seed(4)
    assert choose(pooled, CONFIG, OPTIONS, tmp_path / "two") == one
    searched = CONFIG.with_(learning_rate=0.5, weight_decay=0.5)  # what is searched says nothing
    assert choose(pooled, searched, OPTIONS, tmp_path / "three") == one
    other = TrialOptions(count=8, batch=3, sampler_seed=1)
    assert choose(pooled, CONFIG, other, tmp_path / "four").tried != one.tried


def test_two_at_once_tell_each_trial_once(pooled: Pooled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both train the first batch before either tells; the file lock excludes threads as it does processes."""
    data = pooled()
    alone = choose(lambda: data, CONFIG, OPTIONS, tmp_path / "alone")
    both, begun = threading.Barrier(2, timeout=30), threading.local()

    def together(data: Any, runs: Any, **options: Any) -> Any:
        results = train(data, runs, **options)
        if not hasattr(begun, "yes"):
            begun.yes = both.wait()
        return results

    add = optuna.Study.add_trial

    def slowly(study: optuna.Study, trial: Any) -> None:
        add(study, trial)
        time.sleep(0.02)

    monkeypatch.setattr(module, "train", together)
    monkeypatch.setattr(optuna.Study, "add_trial", slowly)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(choose, lambda: data, CONFIG, OPTIONS, tmp_path / "both") for _ in range(2)]
        assert [a.result() for a in asked] == [alone, alone]


def test_a_damaged_journal_is_named(pooled: Pooled, tmp_path: Path) -> None:
    choose(pooled, CONFIG, OPTIONS, tmp_path / "study")
    (tmp_path / "study" / CHOICE_FILE).unlink()
    file = tmp_path / "study" / STUDY_FILE
    content = file.read_bytes()
    file.write_bytes(content[:300] + b"garbage" + content[320:])
    with pytest.raises(SettingError, match=rf"{STUDY_FILE}' is damaged \(.*Remove it; its trials are run again"):
        choose(pooled, CONFIG, OPTIONS, tmp_path / "study")


def test_a_lock_of_a_killed_process_stops_nobody(pooled: Pooled, tmp_path: Path) -> None:
    alone = choose(pooled, CONFIG, OPTIONS, tmp_path / "alone")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / f"{STUDY_FILE}.lock").symlink_to(tmp_path / "killed" / STUDY_FILE)
    start = time.monotonic()
    assert choose(pooled, CONFIG, OPTIONS, tmp_path / "killed") == alone
    assert time.monotonic() - start < 20


def test_the_sampler_learns_from_one_batch_to_the_next(pooled: Pooled, tmp_path: Path) -> None:
    """With scores that grow with the learning rate, later trials have larger ones than random trials."""

    def scored(data: Any, runs: list[Run], **options: Any) -> Any:
        from types import SimpleNamespace

        score = [1 + np.log10(r.config.learning_rate) / 5 for r in runs]
        return [SimpleNamespace(val={"accuracy": s}, best_epoch=1, failed=None) for s in score]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", scored)
        tried = choose(pooled, CONFIG, TrialOptions(count=48, batch=8), tmp_path / "s").tried
    rates = np.log10([t["learning_rate"] for t in tried])
    assert rates[24:].mean() > rates[:8].mean() + 0.5


def test_a_damaged_choice_is_named(pooled: Pooled, tmp_path: Path) -> None:
    choose(pooled, CONFIG, TrialOptions(count=2, batch=2), tmp_path)
    (tmp_path / "choice.json").write_text('{"chosen": ')
    with pytest.raises(SettingError, match=r"choice\.json' is damaged"):
        choose(pooled, CONFIG, TrialOptions(count=2, batch=2), tmp_path)


@pytest.mark.parametrize("after", [0, 1, 5, 8])
def test_an_interrupted_study_continues_to_the_same_trials(
    pooled: Pooled, tmp_path: Path, trained: list[list[Run]], after: int
) -> None:
    whole = choose(pooled, CONFIG, OPTIONS, tmp_path / "whole")
    epochs = 0

    def stop(done: int, total: int) -> None:
        nonlocal epochs
        if epochs == after:
            raise KeyboardInterrupt
        epochs += 1

    trained.clear()
    with pytest.raises(KeyboardInterrupt):
        choose(pooled, CONFIG, OPTIONS, tmp_path / "stopped", stop)
    assert not (tmp_path / "stopped" / CHOICE_FILE).exists()
    assert choose(pooled, CONFIG, OPTIONS, tmp_path / "stopped") == whole
    batches = 3 + 1  # the one that was interrupted is trained anew, no other
    assert len(trained) == batches


@pytest.mark.parametrize("lost", [1, 2, 4, 7])
@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_in_the_middle_of_writing_continues_to_the_same_trials(
    pooled: Pooled, tmp_path: Path, lost: int, torn: bool
) -> None:
    """The journal has a line a trial; the last ones are taken away, the first of those perhaps in half."""
    folder = tmp_path / "study"
    whole = choose(pooled, CONFIG, OPTIONS, folder)
    for _ in range(2):
        (folder / CHOICE_FILE).unlink()
        lines = (folder / STUDY_FILE).read_bytes().splitlines(keepends=True)
        kept = lines[: len(lines) - lost]
        if torn:
            kept.append(lines[len(lines) - lost][:40])
        (folder / STUDY_FILE).write_bytes(b"".join(kept))
        assert choose(pooled, CONFIG, OPTIONS, folder) == whole


def test_a_finished_study_is_read_back_without_data(pooled: Pooled, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    whole = choose(pooled, CONFIG, OPTIONS, folder)
    assert choose(nothing, CONFIG, OPTIONS, folder) == whole
    written = json.loads((folder / CHOICE_FILE).read_text())
    assert written == json.loads(json.dumps(whole.to_json()))
    assert set(written) == {"chosen", "score", "tried", "options"}
    assert set(written["tried"][0]) == {"learning_rate", "weight_decay", "score", "best_epoch", "failed"}
    assert written["options"] == {
        "count": 8,
        "batch": 3,
        "sampler_seed": 0,
        "run_seed": 0,
        "space": {"learning_rate": [1e-4, 1e-1], "weight_decay": [1e-6, 1e-1]},
    }


def test_optuna_opens_the_study(pooled: Pooled, tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    choice = choose(pooled, CONFIG, OPTIONS, tmp_path / "study")
    study = optuna.load_study(
        study_name="study", storage=JournalStorage(JournalFileBackend(str(tmp_path / "study" / STUDY_FILE)))
    )
    assert [t.value for t in study.trials] == [t["score"] for t in choice.tried]
    assert study.best_params == choice.chosen


def diverging(limit: float) -> Any:
    """Return a ``train`` that fails runs whose learning rate is above a limit, as a loss that is NaN does."""

    def some_fail(data: Any, runs: list[Run], **options: Any) -> Any:
        return train(
            data,
            [
                Run(r.config.with_(learning_rate=1e38), r.seed) if r.config.learning_rate > limit else r
                for r in runs[:1]
            ],
            **options,
        ) + (some_fail(data, runs[1:], **options) if runs[1:] else [])

    return some_fail


def test_failed_trials_are_recorded_with_their_reason_and_not_chosen(
    pooled: Pooled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", diverging(2e-3))
    choice = choose(pooled, CONFIG, OPTIONS, tmp_path / "study")
    failed = [t for t in choice.tried if t["failed"]]
    assert 0 < len(failed) < 8
    assert all(t["learning_rate"] > 2e-3 and t["score"] is None and t["best_epoch"] == 0 for t in failed)
    assert all("became" in t["failed"] for t in failed)
    assert choice.chosen["learning_rate"] <= 2e-3
    assert f"8 trials, {len(failed)} failed: learning rate " in describe(choice)
    (tmp_path / "study" / CHOICE_FILE).unlink()
    assert choose(pooled, CONFIG, OPTIONS, tmp_path / "study") == choice  # from the journal
    assert choose(nothing, CONFIG, OPTIONS, tmp_path / "study") == choice  # from the file


def test_a_study_whose_trials_all_failed_says_why(
    pooled: Pooled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", diverging(0.0))
    with pytest.raises(SettingError, match=r"all 4 trials failed: the .* of seed 0 became (nan|inf) in epoch \d"):
        choose(pooled, CONFIG, TrialOptions(count=4, batch=3), tmp_path / "study")
    assert not (tmp_path / "study" / CHOICE_FILE).exists()


@pytest.mark.parametrize("head", ["logistic", "knn"])
def test_heads_that_are_computed_try_their_grid(pooled: Pooled, tmp_path: Path, head: str) -> None:
    data = pooled(train=80)
    config = TrainConfig(head=head)
    choice = choose(lambda: data, config, OPTIONS, tmp_path / "study")
    grid = get_head(head).grid
    assert grid is not None
    name, values = grid
    assert [t[name] for t in choice.tried] == list(values)
    scores = [train(data, [Run(config.with_(**{name: v}), 0)])[0].val["accuracy"] for v in values]
    assert [t["score"] for t in choice.tried] == scores
    assert choice.chosen == {name: values[int(np.argmax(scores))]}
    assert choose(nothing, config, OPTIONS, tmp_path / "study") == choice
    assert search_space(get_head(head)) == {name: list(values)}


def test_several_labels_are_judged_by_f1(pooled: Pooled, tmp_path: Path) -> None:
    data = pooled("multilabel")
    choice = choose(lambda: data, CONFIG, TrialOptions(count=2, batch=2), tmp_path / "study")
    best = train(data, [Run(CONFIG.with_(**choice.chosen), 0)])[0]
    assert choice.score == best.val["f1_micro"]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"batch": 0}])
def test_no_trials_at_all_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="--trials and --trial-batch must be at least 1"):
        TrialOptions(**wrong)


def test_the_description_says_what_and_how_good() -> None:
    choice = Choice(
        chosen={"learning_rate": 0.00123, "weight_decay": 1e-5},
        score=0.71,
        tried=[{"score": 0.71}] * 16,
        options={},
    )
    assert describe(choice) == "16 trials: learning rate 0.00123, weight decay 1e-05 (validation 71.0 %)"
