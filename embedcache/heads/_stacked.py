"""Layers that hold several runs at once: every parameter and buffer has the run as its first axis.

A run's part never touches another's, so run k of a stack is what run k alone would be, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class StackedLinear(nn.Module):
    """As many linear layers as there are generators: ``y[r] = x[r] @ weight[r].T + bias[r]``."""

    def __init__(self, inputs: int, outputs: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        bound = inputs**-0.5  # torch's own initialisation of nn.Linear, from our generators
        drawn = [
            (
                torch.empty(outputs, inputs).uniform_(-bound, bound, generator=g),
                torch.empty(outputs).uniform_(-bound, bound, generator=g),
            )
            for g in generators
        ]
        self.weight = nn.Parameter(torch.stack([w for w, _ in drawn]))
        self.bias = nn.Parameter(torch.stack([b for _, b in drawn]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(run, b, output)`` of ``(b, input)``, which all runs share, or of ``(run, b, input)``."""
        if x.ndim == 2:  # one large product instead of many small ones
            runs, outputs, inputs = self.weight.shape
            flat = nn.functional.linear(x, self.weight.view(runs * outputs, inputs), self.bias.view(-1))
            return flat.view(len(x), runs, outputs).transpose(0, 1)
        # weights on the left: with few outputs, MKL takes half as long as for x @ weight.T
        return torch.baddbmm(self.bias[:, :, None], self.weight, x.transpose(1, 2)).transpose(1, 2)

    @torch.no_grad()
    def set_gradients(self, x: torch.Tensor, slope: torch.Tensor) -> None:
        """Set the gradients of weight and bias, into buffers that are kept from step to step.

        What autograd does, without allocating a gradient as large as the weights in every step: on a CPU the new pages
        cost as much as the product that fills them.

        Parameters
        ----------
        x
            What :meth:`forward` was given.
        slope
            ``(run, b, output)``: derivative of the loss by what it returned.
        """
        if self.weight.grad is None or self.bias.grad is None:
            self.weight.grad, self.bias.grad = torch.empty_like(self.weight), torch.empty_like(self.bias)
        torch.sum(slope, dim=1, out=self.bias.grad)
        slope = slope.to(x.dtype)
        exact = x.dtype == self.weight.dtype
        out = self.weight.grad if exact else torch.empty_like(self.weight, dtype=x.dtype)
        if x.ndim == 2:
            flat = slope.transpose(0, 1).reshape(len(x), -1)
            torch.mm(flat.T, x, out=out.view(-1, x.shape[1]))
        else:
            torch.bmm(slope.transpose(1, 2), x, out=out)
        if not exact:
            self.weight.grad.copy_(out)


class StackedBatchNorm(nn.Module):
    """Batch normalisation of vectors without learned scale, with statistics of its own for every run."""

    def __init__(self, channels: int, runs: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.mean: torch.Tensor
        self.var: torch.Tensor
        self.register_buffer("mean", torch.zeros(runs, channels))
        self.register_buffer("var", torch.ones(runs, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``(b, channel)`` or ``(run, b, channel)``; the same shape, or with runs where statistics differ."""
        if not self.training:
            if x.ndim == 2:
                x = x[None]
            return (x - self.mean[:, None]) * torch.rsqrt(self.var[:, None] + self.eps)
        wide = x.float()
        var, mean = torch.var_mean(wide, dim=-2, correction=0, keepdim=True)
        with torch.no_grad():
            n = x.shape[-2]
            self.mean.lerp_(mean.squeeze(-2).expand_as(self.mean), self.momentum)
            self.var.lerp_((var * (n / max(1, n - 1))).squeeze(-2).expand_as(self.var), self.momentum)
        return ((wide - mean) * torch.rsqrt(var + self.eps)).to(x.dtype)


class StackedDropout(nn.Module):
    """Dropout whose masks come from each run's own generator."""

    def __init__(self, rate: float, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.rate, self.generators = rate, list(generators)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero a share of ``(run, b, channel)`` while training, and scale the rest up."""
        if not self.training or not self.rate:
            return x
        kept = torch.stack([torch.rand(x.shape[1:], generator=g) >= self.rate for g in self.generators])
        return x * kept.to(x.device) / (1 - self.rate)


def keep_runs(module: nn.Module, runs: Sequence[int]) -> None:
    """Drop all but some runs from a stack, in place."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, StackedDropout):
                part.generators = [part.generators[r] for r in runs]
            for name, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(parameter[list(runs)].clone(), parameter.requires_grad))
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, buffer[list(runs)].clone())


def state_of_run(module: nn.Module, run: int) -> dict[str, torch.Tensor]:
    """Return one run's weights and buffers on the CPU, without the run axis."""
    return {name: tensor[run].detach().cpu().clone() for name, tensor in module.state_dict().items()}
