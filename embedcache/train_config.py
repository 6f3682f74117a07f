"""What a training run is asked to do: plain numbers, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, get_args

from embedcache.errors import SettingError

Schedule = Literal["constant", "cosine", "one-cycle"]
Loss = Literal["cross-entropy", "dice", "focal", "cross-entropy+dice"]
ClassWeights = Literal["none", "balanced"]
Precision = Literal["fp32", "bf16"]
Order = Literal["own", "shared"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How one head is trained; flags of ``train-head`` map to the fields one to one."""

    head: str = "linear"
    pooled: str = "mean"
    """Pooled vectors that a head on vectors reads."""
    channels: str | None = None
    """``START:STOP`` of the joined channels of pooled vectors; None takes all."""
    levels: tuple[int, ...] | None = None
    """Levels that a head on maps reads; None takes all."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    epochs: int = 50
    steps: int | None = None
    """Optimiser steps; where given, ``epochs`` says nothing."""
    batch_size: int | None = None
    """Samples of a step; None: :func:`default_batch_size`."""
    schedule: Schedule = "constant"
    warmup: float = 0.0
    """Share of all steps over which the learning rate rises linearly from 0; ``one-cycle`` has a rise of its own."""
    clip: float = 0.0
    """Largest L2 norm of a run's gradient; 0 is none."""
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    """``balanced``: each class weighs n / (classes * count), as in scikit-learn."""
    loss: Loss = "cross-entropy"
    """For masks; class labels always have (binary) cross-entropy."""
    patience: int = 0
    """A run ends after so many epochs without a better validation score; 0 is never."""
    precision: Precision = "fp32"
    """``bf16``: matrix products in bfloat16 (autocast); weights and optimiser stay float32."""
    standardise: bool = True
    """Centre and scale each channel by the training split's mean and standard deviation."""
    batch_norm: bool = False
    """A batch normalisation without learned scale before the head's first layer (vectors)."""
    hidden: int = 512
    """Width of the hidden layer of ``mlp``."""
    dropout: float = 0.0
    decoder_channels: int = 256
    """Channels inside ``upernet`` and ``fcn``."""
    order: Order = "own"
    """``own``: each run visits the samples in the order of its own seed; ``shared``: all in that of seed 0. Heads on
    maps always share, so that a batch that was read serves every run."""
    c: float = 1.0
    """Inverse strength of the L2 penalty of ``logistic``, as in scikit-learn."""
    k: int = 20
    """Neighbours of ``knn``."""

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise SettingError(f"--{name.replace('_', '-')} must be one of {known}, got {getattr(self, name)!r}.")
        if self.schedule == "one-cycle" and self.warmup:
            raise SettingError("--warmup has no meaning with --schedule one-cycle, which rises over its first 30 %.")
        if self.channels is not None:
            channel_range(self.channels)

    def _check_numbers(self) -> None:
        for name in ("epochs", "steps", "batch_size", "hidden", "decoder_channels", "k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
        for name in ("learning_rate", "weight_decay", "warmup", "clip", "label_smoothing", "dropout", "c"):
            if not math.isfinite(getattr(self, name)):
                raise SettingError(f"--{name.replace('_', '-')} must be a finite number, got {getattr(self, name)}.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise SettingError(
                f"--learning-rate must be above 0 and --weight-decay not below, got {self.learning_rate} and "
                f"{self.weight_decay}."
            )
        for name in ("warmup", "label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(f"--{name.replace('_', '-')} must be in 0..1, below 1, got {getattr(self, name)}.")
        for name, least in (("clip", 0), ("patience", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"--{name} must not be below {least}, got {getattr(self, name)}.")
        if self.c <= 0:
            raise SettingError(f"--c must be above 0, got {self.c}.")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        data = asdict(self)
        data["levels"] = None if self.levels is None else list(self.levels)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Build from :meth:`to_json`'s form.

        Raises
        ------
        SettingError
            If a field is unknown: the record is of another version.
        """
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise SettingError(
                f"a training configuration has no field {unknown[0]!r}; was it written by a later version?"
            )
        levels = data.get("levels")
        return cls(**{**data, "levels": None if levels is None else tuple(levels)})

    def with_(self, **changes: Any) -> TrainConfig:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Run:
    """One head to be trained: a configuration and the seed of all its chance."""

    config: TrainConfig
    seed: int


_CHOICES: Final = {
    "schedule": get_args(Schedule),
    "loss": get_args(Loss),
    "class_weights": get_args(ClassWeights),
    "precision": get_args(Precision),
    "order": get_args(Order),
}


def channel_range(text: str) -> slice:
    """Read ``START:STOP`` (either may be missing).

    Raises
    ------
    SettingError
        If it is something else.
    """
    start, colon, stop = text.partition(":")
    if not colon or not (start or "0").isdecimal() or not (stop or "0").isdecimal():
        raise SettingError(f"--channels must be START:STOP in whole numbers, such as 0:512, got {text!r}.")
    return slice(int(start or 0), int(stop) if stop else None)


def default_batch_size(samples: int, *, maps: bool) -> int:
    """Batch size for a training split: a power of two near n/256, 32 to 1024; for maps near n/64, 4 to 16.

    About 250 steps an epoch keep small sets learning and large ones quick; maps are bounded by memory.
    """
    wanted = samples // (64 if maps else 256)
    low, high = (4, 16) if maps else (32, 1024)
    return min(high, max(low, 1 << max(0, wanted.bit_length() - 1)))


def learning_rate_factor(config: TrainConfig, step: int, total: int) -> float:
    """Factor on the learning rate at a step (from 0) of ``total``.

    ``constant`` is 1; ``cosine`` falls to 0 along half a cosine after the warm-up; ``one-cycle`` rises along half a
    cosine from 1/25 over the first 30 % and falls to 1e-4/25 (Smith and Topin 2018, with PyTorch's defaults).
    """
    from math import cos, pi

    if config.schedule == "one-cycle":
        top = max(1.0, 0.3 * total - 1)
        if step <= top:
            return 1 + (1 / 25 - 1) * (1 + cos(pi * step / top)) / 2
        low = 1e-4 / 25
        return low + (1 - low) * (1 + cos(pi * min(1.0, (step - top) / max(1.0, total - 1 - top)))) / 2
    rise = round(config.warmup * total)
    if step < rise:
        return (step + 1) / rise
    if config.schedule == "cosine":
        return (1 + cos(pi * (step - rise) / max(1, total - rise))) / 2
    return 1.0
