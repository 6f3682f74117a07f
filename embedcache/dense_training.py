"""Trains heads on feature maps: each batch is read once and serves every run.

Unlike vectors' heads, decoders are not stacked into one set of weights: a single one already fills the processor (61
GFLOP an image for UPerNet at 224 px), so stacking would cost memory and win nothing. What runs share is the reading.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from embedcache.dense_data import DenseData, Maps
from embedcache.dense_losses import dense_loss
from embedcache.errors import DatasetError, SettingError
from embedcache.evaluation.bootstrap import interval_segmentation
from embedcache.evaluation.metrics import PRIMARY
from embedcache.evaluation.segmentation_metrics import SegmentationScores
from embedcache.feature_loader import Batch, FeatureLoader, free_bytes
from embedcache.heads._spec import HeadSpec
from embedcache.train_config import Run, TrainConfig, learning_rate_factor
from embedcache.training import Progress, TrainResult

_ORDER_SEED = 0


class _Live:
    """One run that is still going."""

    def __init__(self, data: DenseData, spec: HeadSpec, run: Run) -> None:
        self.run = run
        self.head = build_decoder(data, spec, run)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=run.config.learning_rate, weight_decay=run.config.weight_decay, fused=True
        )
        self.curve: list[dict[str, float]] = []
        self.best, self.best_epoch = -1.0, 0
        self.best_state: dict[str, torch.Tensor] = {}
        self.failed: str | None = None
        self.stopped = False
        self.loss = 0.0

    @property
    def going(self) -> bool:
        return self.failed is None and not self.stopped


def train_dense(
    data: DenseData,
    spec: HeadSpec,
    runs: Sequence[Run],
    on_epoch: Progress | None = None,
    budget_bytes: int | None = None,
) -> list[TrainResult]:
    """Train decoders that differ in seed, learning rate and weight decay only; see :func:`embedcache.training.train`.

    All runs visit the samples in the order of seed 0. A last batch of a single sample is left out: batch
    normalisation of one value has no meaning.
    """
    if data.batch_size < 2:
        raise SettingError("--batch-size must be at least 2 for heads on maps, whose layers normalise over the batch.")
    size = most_decoders(data, spec, runs[0].config, budget_bytes)
    results: list[TrainResult] = []
    for start in range(0, len(runs), size):
        results += _train_together(data, spec, runs[start : start + size], on_epoch)
    return results


def most_decoders(data: DenseData, spec: HeadSpec, config: TrainConfig, budget_bytes: int | None = None) -> int:
    """How many runs' weights, gradients, moments and best weights fit into memory at once."""
    budget = free_bytes(data.device) // 4 if budget_bytes is None else budget_bytes
    weights = 4 * sum(p.numel() for p in build_decoder(data, spec, Run(config, 0)).parameters())
    return max(1, budget // (5 * weights))


def build_decoder(data: DenseData, spec: HeadSpec, run: Run) -> torch.nn.Module:
    """Build one untrained head from its seed, on the data's device."""
    assert spec.decode is not None
    generator = torch.Generator().manual_seed(run.seed)
    head = spec.decode(data.members, data.num_classes, generator, run.config).to(data.device)
    if data.device.startswith("cuda"):  # on a CPU channels-last convolutions were 2.4 times slower
        for parameter in head.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return head


def full_size_logits(head: torch.nn.Module, maps: Maps, size: Sequence[int]) -> torch.Tensor:
    """Return logits ``(b, class, y, x)`` float32 on the grid of the masks."""
    logits: torch.Tensor = head(maps)
    if tuple(logits.shape[2:]) != tuple(size):
        logits = F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return logits.float()


def arithmetic(config: TrainConfig, device: str) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where the configuration says so."""
    if config.precision == "bf16":
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return nullcontext()


def _train_together(
    data: DenseData, spec: HeadSpec, runs: Sequence[Run], on_epoch: Progress | None
) -> list[TrainResult]:
    start = time.perf_counter()
    config = runs[0].config
    live = [_Live(data, spec, run) for run in runs]
    loader = data.loader("train", shuffle=True, seed=_ORDER_SEED)
    steps = _steps_of_epochs(loader, config)
    total, epochs = config.steps or sum(steps), len(steps)
    weights = _class_weights(data) if config.class_weights == "balanced" else None
    validation = data.loader("val")
    primary, step = PRIMARY["segmentation"], 0
    for epoch in range(1, epochs + 1):
        step = _one_epoch(data, live, loader.epoch(epoch), config, weights, (step, total))
        scores = _evaluate(data, [r for r in live if r.going], validation.epoch(0), config)
        for run, score in zip([r for r in live if r.going], scores, strict=True):
            value = score.compute()[primary]
            run.curve.append({"epoch": epoch, "train_loss": run.loss, f"val_{primary}": value})
            if value > run.best:
                run.best, run.best_epoch = value, epoch
                run.best_state = {k: v.detach().cpu().clone() for k, v in run.head.state_dict().items()}
            run.stopped = bool(config.patience) and epoch - run.best_epoch >= config.patience
        if on_epoch is not None:
            on_epoch(epoch, epochs)
        if not any(r.going for r in live):
            break
    return _results(data, live, validation, start)


def _steps_of_epochs(loader: FeatureLoader, config: TrainConfig) -> list[int]:
    """Count the batches of two samples or more of each epoch: windows of a compressed store are cut anew in each."""
    counts: list[int] = []
    while len(counts) < config.epochs if config.steps is None else sum(counts) < config.steps:
        counts.append(sum(size > 1 for size in loader.sizes(len(counts) + 1)))
        if not counts[-1]:
            raise DatasetError(
                f"{len(loader.rows)} training samples of {loader.features.dataset!r} make no batch of two or more; "
                "heads on maps normalise over the batch."
            )
    return counts


def _one_epoch(
    data: DenseData,
    live: Sequence[_Live],
    batches: Iterator[Batch],
    config: TrainConfig,
    weights: torch.Tensor | None,
    progress: tuple[int, int],
) -> int:
    step, total = progress
    sums = [0.0 for _ in live]
    seen = 0
    for run in live:
        run.head.train()
    for batch in batches:
        if step >= total:
            break
        if len(batch.rows) < 2:
            continue
        maps, target = data.maps(batch), _target(batch)
        factor = learning_rate_factor(config, step, total)
        for number, run in enumerate(live):
            if run.going:
                loss = _step(data, run, maps, target, weights, step, factor)
                sums[number] += loss * len(batch.rows)
                if not math.isfinite(loss):
                    data.refuse_lost(batch)
                    run.failed = (
                        f"the loss of seed {run.run.seed} became {loss} in step {step + 1}; lower --learning-rate "
                        f"({run.run.config.learning_rate:g})"
                    )
        seen += len(batch.rows)
        step += 1
    for number, run in enumerate(live):
        run.loss = sums[number] / max(1, seen)
        if run.going and not all(v.isfinite().all() for v in run.head.state_dict().values()):
            run.failed = (
                f"weights of seed {run.run.seed} were not finite after step {step}; lower --learning-rate "
                f"({run.run.config.learning_rate:g})"
            )
    return step


def _step(
    data: DenseData,
    run: _Live,
    maps: Maps,
    target: torch.Tensor,
    weights: torch.Tensor | None,
    step: int,
    factor: float,
) -> float:
    config = run.run.config
    for group in run.optimizer.param_groups:
        group["lr"] = config.learning_rate * factor
    with _own_chance(run.run, step, data.device), arithmetic(config, data.device):
        logits = full_size_logits(run.head, maps, target.shape[1:])
    loss = dense_loss(
        logits,
        target,
        kind=config.loss,
        ignore_index=data.ignore_index,
        weights=weights,
        label_smoothing=config.label_smoothing,
    )
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.clip:
        torch.nn.utils.clip_grad_norm_(run.head.parameters(), config.clip)
    run.optimizer.step()
    return float(loss.detach())


def _own_chance(run: Run, step: int, device: str) -> AbstractContextManager[Any]:
    """Give dropout a seed of this run and step, and the caller its random state back."""
    if not run.config.dropout:
        return nullcontext()
    return _seeded(run.seed * 1_000_003 + step, device)


class _seeded(AbstractContextManager[None]):  # noqa: N801
    def __init__(self, seed: int, device: str) -> None:
        devices = [torch.device(device)] if device.startswith("cuda") else []
        self._fork = torch.random.fork_rng(devices=devices)
        self._seed = seed

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


def _target(batch: Batch) -> torch.Tensor:
    assert batch.y is not None
    return batch.y.to(torch.int64)


def _evaluate(
    data: DenseData, live: Sequence[_Live], batches: Iterator[Batch], config: TrainConfig
) -> list[SegmentationScores]:
    return evaluate_decoders(data, [run.head for run in live], batches, config)


def evaluate_decoders(
    data: DenseData,
    heads: Sequence[torch.nn.Module],
    batches: Iterator[Batch],
    config: TrainConfig,
    on_batch: Callable[[Batch, list[torch.Tensor]], None] | None = None,
) -> list[SegmentationScores]:
    """Score decoders on batches, each read once; ``on_batch`` gets each batch and every head's logits."""
    scores = [SegmentationScores(data.num_classes, data.ignore_index) for _ in heads]
    for head in heads:
        head.eval()
    with torch.inference_mode():
        for batch in batches:
            maps, target = data.maps(batch), _target(batch)
            every = []
            for head, score in zip(heads, scores, strict=True):
                with arithmetic(config, data.device):
                    logits = full_size_logits(head, maps, target.shape[1:])
                confidence, predicted = logits.softmax(dim=1).max(dim=1)
                if not confidence.isfinite().all():
                    data.refuse_lost(batch)
                score.update(predicted.cpu().numpy(), confidence.cpu().numpy(), target.cpu().numpy())
                every.append(logits)
            if on_batch is not None:
                on_batch(batch, every)
    return scores


def _class_weights(data: DenseData) -> torch.Tensor:
    count = torch.from_numpy(data.class_pixels).to(torch.float32)
    present = count > 0
    weights = torch.where(present, count.sum() / (present.sum() * count.clamp_min(1)), torch.zeros_like(count))
    return weights.to(data.device)


def _results(data: DenseData, live: Sequence[_Live], validation: FeatureLoader, start: float) -> list[TrainResult]:
    done = [r for r in live if r.failed is None]
    for run in done:
        run.head.load_state_dict(run.best_state)
    config = live[0].run.config
    val = dict(zip(map(id, done), _evaluate(data, done, validation.epoch(0), config), strict=True))
    test = dict(zip(map(id, done), _evaluate(data, done, data.loader("test").epoch(0), config), strict=True))
    seconds = (time.perf_counter() - start) / len(live)
    out = []
    for run in live:
        scores = test.get(id(run))
        state = dict(run.best_state) if scores else {}
        if scores and data.scale is not None:
            for key, (mean, factor) in data.scale.items():
                state[f"scale.{key}.mean"] = mean.flatten().cpu().clone()
                state[f"scale.{key}.factor"] = factor.flatten().cpu().clone()
        out.append(
            TrainResult(
                state=state,
                best_epoch=run.best_epoch if scores else 0,
                curve=run.curve,
                val=val[id(run)].compute() if scores else {},
                test=scores.compute() if scores else {},
                per_class=scores.per_class() if scores else {},
                interval=interval_segmentation(scores.confusions, ignore_index=data.ignore_index) if scores else None,
                failed=run.failed,
                seconds=seconds,
                stacked_with=len(live),
            )
        )
    return out
