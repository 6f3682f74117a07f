"""Trains one head: a pure function of features, configuration and seed."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from embedcache.errors import SettingError
from embedcache.evaluation.metrics import PRIMARY, evaluate
from embedcache.heads._registry import get_head
from embedcache.loading import PooledData, SplitData


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Plain numbers; flags of ``train-head`` map to them one to one."""

    head: str = "linear"
    pooled: str = "mean"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    epochs: int = 50
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise SettingError(
                f"--learning-rate must be above 0 and --weight-decay not below, got {self.learning_rate} and "
                f"{self.weight_decay}."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class TrainResult:
    """A trained head and how it came about."""

    state: dict[str, torch.Tensor]
    """Weights of the best epoch, on the CPU."""
    best_epoch: int
    """Counted from 1."""
    curve: list[dict[str, float]]
    """Training loss and validation metrics after each epoch."""
    val: dict[str, float]
    test: dict[str, float]
    seconds: float


def train_head(data: PooledData, config: TrainConfig, seed: int) -> TrainResult:
    """Train one head with AdamW, keep the epoch with the best validation metric, and score it on test.

    All chance (initial weights, order of samples) comes from a generator of this seed: the result does not depend on
    what ran before, or beside it. Ties between epochs go to the earlier one.

    Raises
    ------
    SettingError
        If the head cannot learn this task, or the loss stops being finite.
    """
    spec = get_head(config.head)
    if data.task not in spec.tasks:
        raise SettingError(f"head {config.head!r} learns {' and '.join(spec.tasks)}, the targets are for {data.task}.")
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    device = data.train.x.device
    head = spec.build(data.channels, data.num_classes, generator).to(device)
    fit_scale = getattr(head, "fit_scale", None)
    if fit_scale is not None:
        fit_scale(data.train.x)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    primary = PRIMARY[data.task]
    curve: list[dict[str, float]] = []
    best, best_epoch, best_state = -1.0, 0, head.state_dict()
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(len(data.train), generator=generator).to(device)
        total = torch.zeros((), device=device)
        for rows in order.split(config.batch_size):
            loss = _loss(head(data.train.x[rows]), data.train.y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        mean_loss = float(total) / len(data.train)
        if not np.isfinite(mean_loss):
            raise SettingError(
                f"the loss of seed {seed} became {mean_loss} in epoch {epoch}; lower --learning-rate "
                f"({config.learning_rate})."
            )
        scores = score(head, data.val, data.task)
        curve.append({"epoch": epoch, "train_loss": mean_loss, **{f"val_{k}": v for k, v in scores.items()}})
        if scores[primary] > best:
            best, best_epoch = scores[primary], epoch
            best_state = {k: v.detach().cpu().clone() for k, v in head.state_dict().items()}
    head.load_state_dict(best_state)
    return TrainResult(
        state=best_state,
        best_epoch=best_epoch,
        curve=curve,
        val=score(head, data.val, data.task),
        test=score(head, data.test, data.task),
        seconds=time.perf_counter() - start,
    )


def score(head: torch.nn.Module, split: SplitData, task: str) -> dict[str, float]:
    """Score a head on one split; see :func:`embedcache.evaluation.metrics.evaluate`."""
    with torch.inference_mode():
        return evaluate(task, head(split.x).cpu().numpy(), split.y.cpu().numpy())


def _loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if target.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.cross_entropy(logits, target)
