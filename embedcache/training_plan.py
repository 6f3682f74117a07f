"""What a training would do, in numbers, before anything starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from embedcache.dense_data import DenseData
from embedcache.ensemble import Ensemble
from embedcache.feature_loader import free_bytes
from embedcache.heads._registry import get_head
from embedcache.train_config import Run, TrainConfig, default_batch_size
from embedcache.training import load_data


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Sizes of one training."""

    features: str
    head: str
    trials: int
    seeds: int
    samples: dict[str, int]
    batch_size: int
    parameters: int
    """Of one head; 0 for one that is computed."""
    feature_bytes: int
    """Of all splits in memory."""
    resident: bool
    """Whether the features stay in memory; otherwise they are read batch by batch."""
    stack: int
    """Runs trained in one pass."""
    stack_bytes: int
    """Weights, gradients, moments and best weights of those runs."""
    free_bytes: int
    device: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Describe the plan for a person."""
        counts = ", ".join(f"{n} {name}" for name, n in self.samples.items())
        where = "held in memory" if self.resident else "read batch by batch"
        out = [
            f"{self.features}: {self.head}, {self.trials} trials, then {self.seeds} seeds, on {self.device}",
            f"  samples    {counts}, batches of {self.batch_size}",
            f"  features   {self.feature_bytes / 1e6:.1f} MB, {where} ({self.free_bytes / 1e9:.1f} GB are free)",
        ]
        if self.parameters:
            out.append(
                f"  head       {self.parameters:,} weights; {self.stack} runs in one pass take "
                f"{self.stack_bytes / 1e6:.1f} MB"
            )
        return out


def plan_training(
    features: Ensemble, config: TrainConfig, trials: int, seeds: int, device: str, budget_bytes: int | None
) -> TrainingPlan:
    """Work out sizes; of the features little is read, and nothing is trained.

    Raises
    ------
    EmbedcacheError
        Whatever training would raise before its first step.
    """
    data = load_data(features, config, device, budget_bytes=budget_bytes)
    spec = get_head(config.head)
    runs = max(seeds, trials)
    if isinstance(data, DenseData):
        from embedcache.dense_training import build_decoder, most_decoders

        weights = sum(p.numel() for p in build_decoder(data, spec, Run(config, 0)).parameters())
        stack = min(runs, most_decoders(data, spec, config))
        samples = {k: len(v) for k, v in data.rows.items()}
        loader = data.loader("train")
        facts = (data.batch_size, data.row_bytes * sum(samples.values()), loader.mode == "resident")
    else:
        samples = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
        weights, stack = 0, 1
        if spec.stack is not None:
            from embedcache.stacked_training import build_stack, most_runs

            weights = sum(p.numel() for p in build_stack(data, spec, [Run(config, 0)]).parameters())
            stack = min(runs, most_runs(data, spec, config))
        batch = config.batch_size or default_batch_size(len(data.train), maps=False)
        facts = (batch, data.nbytes, data.train.is_resident)
    return TrainingPlan(
        features=features.name,
        head=config.head,
        trials=trials if spec.grid is None or not trials else len(spec.grid[1]),
        seeds=1 if spec.fit is not None else seeds,
        samples=samples,
        batch_size=facts[0],
        parameters=weights,
        feature_bytes=facts[1],
        resident=facts[2],
        stack=stack,
        stack_bytes=5 * 4 * weights * stack,
        free_bytes=free_bytes(device),
        device=device,
    )
