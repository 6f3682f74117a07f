"""Heads that are computed rather than trained: the same answer whatever the seed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from embedcache.errors import SettingError
from embedcache.heads._spec import HeadSpec
from embedcache.loading import PooledData, Vectors
from embedcache.stacked_training import scored_result
from embedcache.train_config import Run, TrainConfig
from embedcache.training import Progress, TrainResult


def fit_runs(
    data: PooledData, spec: HeadSpec, runs: Sequence[Run], on_epoch: Progress | None = None
) -> list[TrainResult]:
    """Fit one head per run, one after the other; runs of equal configuration share one fit.

    Raises
    ------
    SettingError
        If the vectors do not fit into memory: these heads visit all of them at once.
    """
    if not data.train.is_resident:
        raise SettingError(
            f"head {spec.name!r} needs all training vectors in memory; give it more (--memory), fewer channels "
            "(--channels), or train a linear head, which streams."
        )
    done: dict[str, TrainResult] = {}
    out = []
    for number, run in enumerate(runs, start=1):
        key = repr(run.config)
        if key not in done:
            done[key] = _fit(data, spec, run.config)
        out.append(done[key])
        if on_epoch is not None:
            on_epoch(number, len(runs))
    return out


def _fit(data: PooledData, spec: HeadSpec, config: TrainConfig) -> TrainResult:
    assert spec.fit is not None
    start = time.perf_counter()

    def vectors(split: Vectors) -> torch.Tensor:
        return data.take(split, np.arange(len(split)), standardise=config.standardise)

    with torch.inference_mode():
        head = spec.fit(vectors(data.train), data.train.y, data.num_classes, config)
        val, test = (head(vectors(split)).float().cpu().numpy() for split in (data.val, data.test))
    state = {k: v.detach().cpu().clone() for k, v in head.state_dict().items()}
    if config.standardise:
        state["scale.mean"], state["scale.std"] = (t.cpu().clone() for t in data.scale)
    return scored_result(
        data,
        val,
        test,
        state=state,
        best_epoch=0,
        curve=[],
        failed=None,
        seconds=time.perf_counter() - start,
        stacked_with=1,
    )
