"""Trains heads on stored features: a run is a function of features, configuration and seed, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from embedcache.dense_data import DenseData, open_dense
from embedcache.ensemble import Ensemble
from embedcache.errors import SettingError
from embedcache.heads._registry import get_head
from embedcache.heads._spec import HeadSpec
from embedcache.loading import PooledData, load_pooled
from embedcache.train_config import Run, TrainConfig

if TYPE_CHECKING:
    import torch

Data = PooledData | DenseData
"""What heads read: pooled vectors, or maps and masks."""

VARIED = ("learning_rate", "weight_decay")
"""Fields of the configuration in which runs trained together may differ."""

Progress = Callable[[int, int], None]
"""Called with the epochs done and the epochs in all."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A trained head and how it came about."""

    state: dict[str, torch.Tensor]
    """Weights of the best epoch, on the CPU; empty where the run failed."""
    best_epoch: int
    """Counted from 1; 0 for a head that is computed, or failed."""
    curve: list[dict[str, float]]
    """Training loss and the validation metric after each epoch."""
    val: dict[str, float]
    test: dict[str, float]
    """Every metric, 0 to 1; empty where the run failed."""
    per_class: dict[str, list[float | None]] = field(default_factory=dict)
    """Test metrics class by class; None where a class is absent."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval of the primary metric over test samples."""
    failed: str | None = None
    """Why the run was given up; None where it was not."""
    seconds: float
    """Wall time of the stack that the run was part of, divided by its runs."""
    stacked_with: int
    """Runs trained in the same pass, this one included."""
    test_logits: npt.NDArray[Any] | None = None
    """``(n, class)`` float32 for class labels, in the order of the test split."""


def load_data(features: Ensemble, config: TrainConfig, device: str = "cpu", *, budget_bytes: int | None = None) -> Data:
    """Load what a head reads: pooled vectors, or a plan for streaming feature maps.

    Raises
    ------
    EmbedcacheError
        If the head cannot learn from these features and targets.
    """
    spec = head_for(features, config)
    if spec.decode is not None:
        return open_dense(features, config, device, budget_bytes=budget_bytes)
    return load_pooled(features, config.pooled, device, channels=config.channels, budget_bytes=budget_bytes)


def head_for(features: Ensemble, config: TrainConfig) -> HeadSpec:
    """Return the head's spec.

    Raises
    ------
    SettingError
        If it cannot learn the targets at hand (the message names heads that can), or reads something else than the
        configuration selects.
    """
    spec = get_head(config.head)
    _check_task(spec, features.task)
    if spec.decode is None and config.levels is not None:
        raise SettingError(f"--levels is for heads on maps; head {spec.name!r} reads pooled vectors (--channels).")
    if spec.decode is not None and config.channels is not None:
        raise SettingError(f"--channels is for heads on pooled vectors; head {spec.name!r} reads maps (--levels).")
    return spec


def train(
    data: Data, runs: Sequence[Run], *, on_epoch: Progress | None = None, budget_bytes: int | None = None
) -> list[TrainResult]:
    """Train runs together, as many at once as memory allows; the result of each is the same as alone, to rounding.

    The epoch with the best validation score counts; ties go to the earlier one. All chance of a run (initial weights,
    order of samples, dropout) comes from its seed. A run whose loss is not finite any more is given up, and says so
    in its result; the others go on.

    Parameters
    ----------
    data
        Of :func:`load_data`.
    runs
        May differ in seed, learning rate and weight decay; for heads that are computed, in everything.
    on_epoch
        Told of progress.
    budget_bytes
        Memory for weights, optimiser and batches; None is a quarter of what is free on the device.

    Raises
    ------
    SettingError
        If the runs differ in something else, or the head cannot learn the task.
    """
    if not runs:
        return []
    spec = get_head(runs[0].config.head)
    _check_task(spec, data.task)
    if spec.fit is not None:
        from embedcache.fitted_training import fit_runs

        return fit_runs(_pooled(data), spec, runs, on_epoch)
    common = runs[0].config.to_json()
    for run in runs[1:]:
        other = run.config.to_json()
        if changed := [k for k in common if k not in VARIED and common[k] != other[k]]:
            raise SettingError(f"runs trained together must not differ in {changed[0]}.")
    if spec.decode is not None:
        from embedcache.dense_training import train_dense

        return train_dense(_dense(data), spec, runs, on_epoch, budget_bytes)
    from embedcache.stacked_training import most_runs, train_stack

    vectors = _pooled(data)
    size = most_runs(vectors, spec, runs[0].config, budget_bytes)
    results: list[TrainResult] = []
    for start in range(0, len(runs), size):
        results += train_stack(vectors, spec, runs[start : start + size], on_epoch)
    return results


def train_head(data: Data, config: TrainConfig, seed: int) -> TrainResult:
    """Train one run alone; see :func:`train`."""
    return train(data, [Run(config, seed)])[0]


def _check_task(spec: HeadSpec, task: str) -> None:
    if task not in spec.tasks:
        from embedcache.heads._registry import list_heads

        able = [n for n in list_heads() if task in get_head(n).tasks]
        raise SettingError(
            f"head {spec.name!r} learns {' and '.join(spec.tasks)}, the targets are for {task}; "
            f"heads for those are {', '.join(able)}."
        )


def _pooled(data: Data) -> PooledData:
    if not isinstance(data, PooledData):
        raise SettingError("this head reads pooled vectors, and was given feature maps.")
    return data


def _dense(data: Data) -> DenseData:
    if isinstance(data, PooledData):
        raise SettingError("this head reads feature maps, and was given pooled vectors.")
    return data
