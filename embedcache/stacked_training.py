"""Trains many heads on pooled vectors in one pass: all trials, or all seeds, as one stack of weights.

Runs of one seed and order read the same batches, so their first layers are one large matrix product; runs with orders
of their own are a batched product. Either way the arithmetic of one run never meets another's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedcache.errors import SettingError
from embedcache.evaluation.bootstrap import interval
from embedcache.evaluation.metrics import PRIMARY, evaluate, per_class, primary_scores
from embedcache.feature_loader import free_bytes
from embedcache.heads._spec import HeadSpec
from embedcache.heads._stacked import keep_runs, state_of_run
from embedcache.heads.linear import LinearHeads
from embedcache.loading import PooledData, Vectors
from embedcache.optimizer import StackedAdamW
from embedcache.shuffling import shuffled
from embedcache.train_config import Run, TrainConfig, default_batch_size, learning_rate_factor
from embedcache.training import Progress, TrainResult
from embedcache.vector_losses import balanced_weights, run_losses

Rows = npt.NDArray[np.int64]
_EVALUATE_BYTES = 256 << 20


def most_runs(data: PooledData, spec: HeadSpec, config: TrainConfig, budget_bytes: int | None = None) -> int:
    """How many runs fit into memory at once: weights, gradients, two moments, the best weights, and their batches."""
    budget = free_bytes(data.train.device) // 4 if budget_bytes is None else budget_bytes
    one = build_stack(data, spec, [Run(config, 0)])
    weights = 4 * sum(p.numel() for p in one.parameters())
    batch = config.batch_size or default_batch_size(len(data.train), maps=False)
    return max(1, budget // (5 * weights + 3 * 4 * batch * data.channels))


def train_stack(
    data: PooledData, spec: HeadSpec, runs: Sequence[Run], on_epoch: Progress | None = None
) -> list[TrainResult]:
    """Train runs that differ in seed, learning rate and weight decay only; see :func:`embedcache.training.train`."""
    return _Stack(data, spec, runs).train(on_epoch)


class _Stack:
    """The runs that are still going, and what is known of all."""

    def __init__(self, data: PooledData, spec: HeadSpec, runs: Sequence[Run]) -> None:
        self.data, self.spec, self.runs = data, spec, list(runs)
        self.config = config = runs[0].config
        self.head = build_stack(data, spec, runs).to(data.train.device)
        self.optimizer = StackedAdamW(
            list(self.head.parameters()),
            [r.config.learning_rate for r in runs],
            [r.config.weight_decay for r in runs],
        )
        self.batch = config.batch_size or default_batch_size(len(data.train), maps=False)
        per_epoch = len(self._places())
        self.total = config.steps or config.epochs * per_epoch
        self.epochs = math.ceil(self.total / per_epoch)
        self.weights = None
        if config.class_weights == "balanced":
            self.weights = balanced_weights(data.train.y, data.num_classes)
        self.active = list(range(len(runs)))
        self.curves: list[list[dict[str, float]]] = [[] for _ in runs]
        self.best: list[tuple[float, int, dict[str, torch.Tensor]]] = [(-1.0, 0, {}) for _ in runs]
        self.failed: list[str | None] = [None for _ in runs]

    def train(self, on_epoch: Progress | None) -> list[TrainResult]:
        start = time.perf_counter()
        primary = PRIMARY[self.data.task]
        step = 0
        for epoch in range(1, self.epochs + 1):
            losses, step = self._one_epoch(epoch, step)
            losses = losses[self._give_up("loss", losses, epoch)]
            logits = self._logits(self.data.val)
            finite = self._give_up("validation output", logits.sum(axis=(1, 2), dtype=np.float64), epoch)
            if not self.active:
                break
            if not finite.all():
                losses, logits = losses[finite], logits[finite]
            scores = primary_scores(self.data.task, logits, self.data.val.y.cpu().numpy())
            for place, (run, score, loss) in enumerate(zip(self.active, scores, losses, strict=True)):
                point = {"epoch": epoch, "train_loss": float(loss), f"val_{primary}": float(score)}
                self.curves[run].append(point)
                if score > self.best[run][0]:
                    self.best[run] = (float(score), epoch, state_of_run(self.head, place))
            if on_epoch is not None:
                on_epoch(epoch, self.epochs)
            if self.config.patience:
                self._keep([i for i, r in enumerate(self.active) if epoch - self.best[r][1] < self.config.patience])
                if not self.active:
                    break
        return self._results(start)

    def _one_epoch(self, epoch: int, step: int) -> tuple[npt.NDArray[np.float64], int]:
        """Visit every training sample once; return each active run's mean loss, and the steps taken so far."""
        config = self.config
        self.head.train()
        total = torch.zeros(len(self.active), device=self.data.train.device)
        seen = 0
        for x, y in self._batches(epoch):
            if step >= self.total:
                break
            losses = self._descend(
                x, partial(run_losses, target=y, weights=self.weights, smoothing=config.label_smoothing)
            )
            if config.clip:
                self.optimizer.clip(config.clip)
            self.optimizer.step(learning_rate_factor(config, step, self.total))
            size = x.shape[-2]
            total += losses * size
            seen += size
            step += 1
        return (total / max(1, seen)).cpu().numpy().astype(np.float64), step

    def _descend(self, x: torch.Tensor, losses: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return each run's loss, with the gradients set."""
        if isinstance(self.head, LinearHeads):
            with self._arithmetic():
                return self.head.descend(x, losses)
        with self._arithmetic():
            logits = self.head(x)
        out = losses(logits)
        self.optimizer.zero_grad()
        out.sum().backward()
        return out.detach()

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield ``(b, channel)`` where all active runs have one order, else ``(run, b, channel)``, and the targets."""
        train = self.data.train
        seeds = [0 if self.config.order == "shared" else self.runs[r].seed for r in self.active]
        every = np.arange(len(train))
        drawn = {seed: shuffled(every, seed, epoch) for seed in dict.fromkeys(seeds)}
        orders = drawn[seeds[0]] if len(drawn) == 1 else np.stack([drawn[s] for s in seeds])
        pieces = [orders[..., place] for place in self._places()]
        yield from _ahead(lambda at: self._take(train, at), pieces, threaded=not train.is_resident)

    def _places(self) -> list[slice]:
        """Cut an epoch into batches; a last one of a single sample is left out where it would be normalised."""
        places = [slice(start, start + self.batch) for start in range(0, len(self.data.train), self.batch)]
        if self.config.batch_norm and len(self.data.train) % self.batch == 1:
            places.pop()
        if not places or (self.config.batch_norm and self.batch == 1):
            raise SettingError("--batch-norm needs batches of at least 2 samples; give a larger --batch-size.")
        return places

    def _take(self, split: Vectors, at: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        return self._vectors(split, at), split.y[torch.from_numpy(at).to(split.device)]

    def _vectors(self, split: Vectors, at: Rows) -> torch.Tensor:
        bf16 = self.config.precision == "bf16"
        return self.data.take(split, at, standardise=self.config.standardise, bf16=bf16)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            return torch.autocast(self.data.train.y.device.type, torch.bfloat16)
        return nullcontext()

    def _logits(self, split: Vectors) -> npt.NDArray[np.float32]:
        """Return ``(run, n, class)`` of the active runs."""
        self.head.eval()
        n, runs = len(split), len(self.active)
        out = np.empty((runs, n, self.data.num_classes), dtype=np.float32)
        if not runs:
            return out
        step = max(1, _EVALUATE_BYTES // (4 * runs * max(self.data.num_classes, self.data.channels)))
        with torch.inference_mode(), self._arithmetic():
            for start in range(0, n, step):
                at = np.arange(start, min(start + step, n))
                out[:, start : start + len(at)] = self.head(self._vectors(split, at)).float().cpu().numpy()
        return out

    def _give_up(self, what: str, values: npt.NDArray[np.float64], epoch: int) -> npt.NDArray[np.bool_]:
        """Drop active runs whose value is not finite; return which were kept."""
        finite = np.isfinite(values)
        for i in np.flatnonzero(~finite):
            run = self.runs[self.active[i]]
            self.failed[self.active[i]] = (
                f"the {what} of seed {run.seed} became {values[i]} in epoch {epoch}; lower --learning-rate "
                f"({run.config.learning_rate:g})"
            )
        self._keep(np.flatnonzero(finite).tolist())
        return finite

    def _keep(self, places: Sequence[int]) -> None:
        """Drop runs that ended; the others do not notice."""
        if len(places) == len(self.active):
            return
        self.active = [self.active[i] for i in places]
        keep_runs(self.head, places)
        self.optimizer.keep(places, list(self.head.parameters()))

    def _results(self, start: float) -> list[TrainResult]:
        done = [r for r in range(len(self.runs)) if self.failed[r] is None]
        test: dict[int, npt.NDArray[np.float32]] = {}
        val: dict[int, npt.NDArray[np.float32]] = {}
        if done:
            self.head = build_stack(self.data, self.spec, [self.runs[r] for r in done]).to(self.data.train.device)
            with torch.no_grad():
                for name, tensor in self.head.state_dict().items():
                    tensor.copy_(torch.stack([self.best[r][2][name] for r in done]))
            self.active = done
            val = dict(zip(done, self._logits(self.data.val), strict=True))
            test = dict(zip(done, self._logits(self.data.test), strict=True))
        seconds = (time.perf_counter() - start) / len(self.runs)
        return [self._result(r, val.get(r), test.get(r), seconds) for r in range(len(self.runs))]

    def _result(
        self,
        run: int,
        val: npt.NDArray[np.float32] | None,
        test: npt.NDArray[np.float32] | None,
        seconds: float,
    ) -> TrainResult:
        state = dict(self.best[run][2])
        if self.failed[run] is None and self.config.standardise:
            state["scale.mean"], state["scale.std"] = (t.cpu().clone() for t in self.data.scale)
        return scored_result(
            self.data,
            val,
            test,
            state=state if self.failed[run] is None else {},
            best_epoch=self.best[run][1] if self.failed[run] is None else 0,
            curve=self.curves[run],
            failed=self.failed[run],
            seconds=seconds,
            stacked_with=len(self.runs),
        )


def scored_result(
    data: PooledData, val: npt.NDArray[np.float32] | None, test: npt.NDArray[np.float32] | None, **known: Any
) -> TrainResult:
    """Complete a result with every metric of validation and test logits ``(n, class)``; None where the run failed."""
    if val is None or test is None:
        return TrainResult(val={}, test={}, **known)
    target = data.test.y.cpu().numpy()
    return TrainResult(
        val=evaluate(data.task, val, data.val.y.cpu().numpy()),
        test=evaluate(data.task, test, target),
        per_class=per_class(data.task, test, target, data.num_classes),
        interval=interval(data.task, test, target),
        test_logits=test,
        **known,
    )


def build_stack(data: PooledData, spec: HeadSpec, runs: Sequence[Run]) -> torch.nn.Module:
    """Build untrained heads, one a run, from their seeds."""
    assert spec.stack is not None
    generators = [torch.Generator().manual_seed(r.seed) for r in runs]
    return spec.stack(data.channels, data.num_classes, generators, runs[0].config)


def _ahead(make: Any, pieces: Sequence[Rows], *, threaded: bool) -> Iterator[Any]:
    """Make one piece after the other, the next in a thread while the last is used, where making it waits for a disk."""
    if not threaded:
        yield from map(make, pieces)
        return
    with ThreadPoolExecutor(1, "embedcache-vectors") as pool:
        coming = [pool.submit(make, piece) for piece in pieces[:2]]
        for number in range(len(pieces)):
            if number + 2 < len(pieces):
                coming.append(pool.submit(make, pieces[number + 2]))
            yield coming[number].result()
            coming[number] = None  # type: ignore[call-overload]
