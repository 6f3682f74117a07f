"""Chooses hyperparameters on the validation split: Optuna's trials, a batch of them trained as one stack.

Paper, Protocol 1: 16 trials of Bayesian search over learning rate and weight decay. Heads that are computed have one
number to choose instead (C, or k), and try a fixed grid of it.
"""

from __future__ import annotations

import fcntl
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embedcache.errors import SettingError
from embedcache.evaluation.metrics import PRIMARY
from embedcache.heads._registry import get_head
from embedcache.heads._spec import HeadSpec
from embedcache.train_config import Run, TrainConfig
from embedcache.training import Data, Progress, TrainResult, train
from embedcache_stores.durable import replace_atomically

STUDY_FILE: Final = "optuna.log"
"""Optuna's own journal of the study, for its dashboard and for going on after an interruption."""
CHOICE_FILE: Final = "choice.json"
LOCK_FILE: Final = "lock"


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """How to search."""

    count: int = 16
    batch: int = 8
    """Trials asked for, and trained, at once; the sampler learns between batches."""
    sampler_seed: int = 0
    run_seed: int = 0
    """Seed of every trial's training: equal initial weights and order, so that only the hyperparameters differ."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1:
            raise SettingError(f"--trials and --trial-batch must be at least 1, got {self.count} and {self.batch}.")

    def to_json(self) -> dict[str, int]:
        """Plain JSON form."""
        return {
            "count": self.count,
            "batch": self.batch,
            "sampler_seed": self.sampler_seed,
            "run_seed": self.run_seed,
        }


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Chosen hyperparameters, and what was tried."""

    chosen: dict[str, Any]
    """Fields of the configuration and their best values."""
    score: float
    """Validation score of the choice."""
    tried: list[dict[str, Any]]
    """Every trial: its values, its score, or why it failed."""
    options: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {"chosen": self.chosen, "score": self.score, "tried": self.tried, "options": self.options}


def search_space(spec: HeadSpec) -> dict[str, Any]:
    """Return what trials vary for a head: field -> (low, high) on a logarithmic scale, or the values of a grid."""
    if spec.grid is not None:
        return {spec.grid[0]: list(spec.grid[1])}
    return {"learning_rate": list(spec.learning_rates), "weight_decay": list(spec.weight_decays)}


def choose(
    data: Callable[[], Data],
    config: TrainConfig,
    options: TrialOptions,
    folder: Path,
    on_epoch: Progress | None = None,
) -> Choice:
    """Return the best hyperparameters of a study; finished trials are read back, the others are run.

    An interrupted study continues with the trials it would have had: each batch is drawn by a sampler whose seed is
    that of the study and the batch's number, from the results of the batches before it.

    Parameters
    ----------
    data
        Loads the data; called only where something must be trained.
    config
        The base; the searched fields in it say nothing.
    options
        Trials and seeds.
    folder
        Of this study; its name must depend on everything that decides the results.
    on_epoch
        Told of progress.

    Raises
    ------
    SettingError
        If every trial failed.
    """
    path = folder / CHOICE_FILE
    if path.exists():
        try:
            return Choice(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise SettingError(f"{str(path)!r} is damaged ({error}). Remove it; its trials are kept.") from error
    spec, loaded = get_head(config.head), data()
    folder.mkdir(parents=True, exist_ok=True)
    run = _grid if spec.grid is not None else _study
    tried = run(loaded, spec, config, options, folder, on_epoch)
    finished = [t for t in tried if t["score"] is not None]
    if not finished:
        raise SettingError(f"all {len(tried)} trials failed: {tried[0]['failed']}.")
    best = max(finished, key=lambda t: t["score"])  # the first of equals
    fields = list(search_space(spec))
    choice = Choice(
        chosen={name: best[name] for name in fields},
        score=best["score"],
        tried=tried,
        options={**options.to_json(), "space": search_space(spec)},
    )
    replace_atomically(path, json.dumps(choice.to_json(), indent=1) + "\n")
    return choice


def _grid(
    data: Data,
    spec: HeadSpec,
    config: TrainConfig,
    options: TrialOptions,
    folder: Path,
    on_epoch: Progress | None,
) -> list[dict[str, Any]]:
    assert spec.grid is not None
    name, values = spec.grid
    runs = [Run(config.with_(**{name: value}), options.run_seed) for value in values]
    return [
        _tried(data, {name: value}, result)
        for value, result in zip(values, train(data, runs, on_epoch=on_epoch), strict=True)
    ]


def _study(
    data: Data,
    spec: HeadSpec,
    config: TrainConfig,
    options: TrialOptions,
    folder: Path,
    on_epoch: Progress | None,
) -> list[dict[str, Any]]:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {
        name: optuna.distributions.FloatDistribution(low, high, log=True)
        for name, (low, high) in search_space(spec).items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its own batch sampling experimental
        with _alone(folder):
            _mend_journal(folder / STUDY_FILE)
            try:
                kept = optuna.create_study(
                    study_name=folder.name,
                    storage=JournalStorage(JournalFileBackend(str(folder / STUDY_FILE))),
                    direction="maximize",
                    load_if_exists=True,
                )
            except (ValueError, KeyError, TypeError) as error:
                raise SettingError(
                    f"{str(folder / STUDY_FILE)!r} is damaged ({error}). Remove it; its trials are run again."
                ) from error
        batches = math.ceil(options.count / options.batch)
        for number in range(batches):
            first = number * options.batch
            size = min(options.batch, options.count - first)
            if len(kept.trials) >= first + size:
                continue
            sampler = optuna.samplers.TPESampler(
                seed=_mixed(options.sampler_seed, number),
                n_startup_trials=options.batch,
                multivariate=True,
                constant_liar=True,
            )
            asked = optuna.create_study(direction="maximize", sampler=sampler)
            asked.add_trials(kept.trials[:first])
            params = [asked.ask(distributions).params for _ in range(size)]
            runs = [Run(config.with_(**p), options.run_seed) for p in params]
            results = train(data, runs, on_epoch=on_epoch)
            with _alone(folder):
                told = len(kept.trials) - first  # by a run that was killed halfway, or one beside this
                for p, result in list(zip(params, results, strict=True))[told:]:
                    one = _tried(data, p, result)
                    state = TrialState.COMPLETE if one["score"] is not None else TrialState.FAIL
                    kept.add_trial(
                        create_trial(
                            params=p,
                            distributions=distributions,
                            value=one["score"],
                            state=state,
                            user_attrs={"failed": one["failed"], "best_epoch": one["best_epoch"]},
                        )
                    )
        return [
            {
                **t.params,
                "score": t.value if t.state == TrialState.COMPLETE else None,
                "best_epoch": t.user_attrs["best_epoch"],
                "failed": t.user_attrs["failed"],
            }
            for t in kept.trials[: options.count]
        ]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes' results out meanwhile: several that run one study tell each trial once, in order."""
    with (folder / LOCK_FILE).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file, and with the process
        (folder / f"{STUDY_FILE}.lock").unlink(
            missing_ok=True
        )  # Optuna's own, of one that was killed: it waits for 30 s
        yield


def _mend_journal(path: Path) -> None:
    """Cut off a last line that was written in part (a power cut, a full disk): Optuna would write on behind it."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _tried(data: Data, values: dict[str, Any], result: TrainResult) -> dict[str, Any]:
    score = result.val.get(PRIMARY[data.task])
    return {**values, "score": score, "best_epoch": result.best_epoch, "failed": result.failed}


def _mixed(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**32


def describe(choice: Choice) -> str:
    """Say what was chosen, for people."""
    values = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in choice.chosen.items())
    failed = sum(1 for t in choice.tried if t["score"] is None)
    lost = f", {failed} failed" if failed else ""
    return f"{len(choice.tried)} trials{lost}: {values} (validation {100 * choice.score:.1f} %)"
