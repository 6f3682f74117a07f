"""AdamW on a stack of runs: each has its own learning rate and weight decay, and none sees another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_BETAS = (0.9, 0.999)
_EPS = 1e-8


class StackedAdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019) with PyTorch's fused step, run by run.

    Parameters have the run as their first axis. The step of one run is one pass over its slice, which stays in the
    processor's cache; equal to :class:`torch.optim.AdamW` of that run alone (a test says so).
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], learning_rates: Sequence[float], weight_decays: Sequence[float]
    ) -> None:
        self.learning_rates, self.weight_decays = list(learning_rates), list(weight_decays)
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]
        self.bind(parameters)
        self._steps = [torch.zeros((), device=p.device) for p in parameters]

    def bind(self, parameters: Sequence[nn.Parameter]) -> None:
        """Go on with these parameters, which hold the same values as before."""
        self.parameters = list(parameters)
        with torch.no_grad():
            self._slices = [[t.unbind(0) for t in tensors] for tensors in (self.parameters, self._first, self._second)]
        alike: dict[tuple[float, float], list[int]] = {}
        for run, pair in enumerate(zip(self.learning_rates, self.weight_decays, strict=True)):
            alike.setdefault(pair, []).append(run)
        self._alike = alike

    def keep(self, runs: Sequence[int], parameters: Sequence[nn.Parameter]) -> None:
        """Drop all but some runs; ``parameters`` have dropped them already."""
        at = list(runs)
        self._first = [m[at].clone() for m in self._first]
        self._second = [v[at].clone() for v in self._second]
        self.learning_rates = [self.learning_rates[r] for r in at]
        self.weight_decays = [self.weight_decays[r] for r in at]
        self.bind(parameters)

    def zero_grad(self) -> None:
        """Forget gradients."""
        for p in self.parameters:
            p.grad = None

    def clip(self, most: float) -> None:
        """Scale each run's gradient down to an L2 norm of ``most``."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for g in gradients:
            g.mul_(factor.view(-1, *(1 for _ in g.shape[1:])))

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Take one step with each run's learning rate times ``factor``."""
        gradients = [p.grad.unbind(0) for p in self.parameters if p.grad is not None]
        torch._foreach_add_(self._steps, 1)
        weights, first, second = self._slices
        for (lr, decay), runs in self._alike.items():  # seeds of one configuration take one call
            torch._fused_adamw_(
                [p[run] for p in weights for run in runs],
                [g[run] for g in gradients for run in runs],
                [m[run] for m in first for run in runs],
                [v[run] for v in second for run in runs],
                [],
                [s for s in self._steps for _ in runs],
                lr=lr * factor,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                weight_decay=decay,
                eps=_EPS,
                amsgrad=False,
                maximize=False,
            )
