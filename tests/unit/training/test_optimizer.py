"""The stacked optimiser, schedules and losses are PyTorch's and scikit-learn's, run by run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from embedcache.optimizer import StackedAdamW
from embedcache.train_config import TrainConfig, learning_rate_factor
from embedcache.vector_losses import balanced_weights, run_losses

RATES, DECAYS = (1e-3, 3e-2, 0.5), (0.0, 1e-2, 0.3)
SHAPES = ((4, 5), (4,), (2, 3, 2))


def draw(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def stack() -> list[nn.Parameter]:
    return [nn.Parameter(draw((3, *shape), i)) for i, shape in enumerate(SHAPES)]


def test_each_run_of_the_optimiser_is_torchs_adamw() -> None:
    ours = stack()
    theirs = [[nn.Parameter(p[r].detach().clone()) for p in ours] for r in range(3)]
    alone = [
        torch.optim.AdamW(p, lr=lr, weight_decay=d, foreach=False, fused=False)
        for p, lr, d in zip(theirs, RATES, DECAYS, strict=True)
    ]
    together = StackedAdamW(ours, RATES, DECAYS)
    for step in range(50):
        factor = 1 / (1 + step % 7)
        for i, p in enumerate(ours):
            p.grad = draw(tuple(p.shape), 1000 + 10 * step + i, scale=10.0 ** (step % 5 - 3))
        for r, optimizer in enumerate(alone):
            for mine, p in zip(theirs[r], ours, strict=True):
                assert p.grad is not None
                mine.grad = p.grad[r].clone()
            optimizer.param_groups[0]["lr"] = RATES[r] * factor
            optimizer.step()
        together.step(factor)
    for r in range(3):
        for mine, p in zip(theirs[r], ours, strict=True):
            torch.testing.assert_close(p[r], mine, rtol=1e-5, atol=1e-6)
            assert not torch.allclose(p[r], p[(r + 1) % 3])


def test_dropping_runs_leaves_the_others_their_moments_and_rates() -> None:
    """Ten steps of three runs, then ten of the last and first, equal twenty of those two."""
    whole, part = stack(), stack()
    a, b = StackedAdamW(whole, RATES, DECAYS), StackedAdamW(part, RATES, DECAYS)
    kept = [0, 1, 2]
    for step in range(20):
        if step == 10:
            kept = [2, 0]
            part = [nn.Parameter(p[kept].detach().clone()) for p in part]
            b.keep(kept, part)
        for i, (p, q) in enumerate(zip(whole, part, strict=True)):
            p.grad = draw(tuple(p.shape), 50 * step + i)
            q.grad = p.grad[kept].clone()
        a.step(1.0)
        b.step(1.0)
    for p, q in zip(whole, part, strict=True):
        assert torch.equal(p[kept], q)


@pytest.mark.parametrize("most", [1e-3, 1.0, 1e6])
def test_clip_is_torchs_run_by_run(most: float) -> None:
    ours = stack()
    for i, p in enumerate(ours):
        p.grad = draw(tuple(p.shape), i) * torch.tensor([0.01, 1.0, 100.0]).view(3, *([1] * (p.ndim - 1)))
    expected = []
    for r in range(3):
        alone = [nn.Parameter(p[r].detach().clone()) for p in ours]
        for mine, p in zip(alone, ours, strict=True):
            assert p.grad is not None
            mine.grad = p.grad[r].clone()
        nn.utils.clip_grad_norm_(alone, most)
        expected.append([p.grad for p in alone])
    StackedAdamW(ours, RATES, DECAYS).clip(most)
    for r in range(3):
        for p, g in zip(ours, expected[r], strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad[r], g, rtol=1e-5, atol=1e-9)


def test_clip_of_a_run_that_is_not_finite_leaves_the_others() -> None:
    ours = stack()
    for i, p in enumerate(ours):
        p.grad = draw(tuple(p.shape), i)
        p.grad[1] = float("nan")
    StackedAdamW(ours, RATES, DECAYS).clip(0.5)
    for r in (0, 2):
        total = sum(float(p.grad[r].square().sum()) for p in ours if p.grad is not None)
        assert total**0.5 == pytest.approx(0.5, rel=1e-4)


def rates(scheduler: Any, optimizer: torch.optim.Optimizer, total: int) -> list[float]:
    out = []
    for step in range(total):
        out.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    return out


@pytest.mark.parametrize("total", [10, 37, 400])
def test_schedules_are_torchs(total: int) -> None:
    for name, build in (
        ("one-cycle", lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=total)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=total)),
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
    ):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        config = TrainConfig(schedule=name)
        ours = [learning_rate_factor(config, step, total) for step in range(total)]
        np.testing.assert_allclose(ours, rates(build(optimizer), optimizer, total), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_schedules_of_very_few_steps_are_sane(total: int) -> None:
    for schedule in ("one-cycle", "cosine", "constant"):
        config = TrainConfig(schedule=schedule)
        factors = [learning_rate_factor(config, step, total) for step in range(total)]
        assert all(0 <= f <= 1 for f in factors)
        assert max(factors) > 0


def test_warm_up_rises_in_a_line_and_then_the_schedule_follows() -> None:
    for schedule in ("constant", "cosine"):
        config = TrainConfig(schedule=schedule, warmup=0.2)
        factors = [learning_rate_factor(config, step, 50) for step in range(50)]
        np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
        rest = [learning_rate_factor(TrainConfig(schedule=schedule), step, 40) for step in range(40)]
        np.testing.assert_allclose(factors[10:], rest)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_losses_are_torchs(smoothing: float, weighted: bool, shared: bool) -> None:
    logits = draw((3, 11, 4), 0, scale=3)
    weights = torch.tensor([0.2, 1.0, 3.0, 0.7]) if weighted else None
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (3, 11), generator=generator)
    flags = (torch.rand(3, 11, 4, generator=generator) > 0.6).float()
    if shared:
        labels, flags = labels[:1].expand(3, 11), flags[:1].expand(3, 11, 4)
    ours = run_losses(logits, labels[0] if shared else labels, weights, smoothing)
    binary = run_losses(logits, flags[0] if shared else flags, weights, smoothing)
    assert ours.shape == binary.shape == (3,)
    for r in range(3):
        theirs = F.cross_entropy(logits[r], labels[r], weight=weights, label_smoothing=smoothing)
        assert float(ours[r]) == pytest.approx(float(theirs), rel=1e-5)
        wanted = flags[r] * (1 - smoothing) + smoothing / 2
        theirs = F.binary_cross_entropy_with_logits(logits[r], wanted, pos_weight=weights)
        assert float(binary[r]) == pytest.approx(float(theirs), rel=1e-5)


def test_the_gradient_of_a_run_holds_nothing_of_another() -> None:
    logits = draw((3, 7, 4), 0).requires_grad_()
    loss = run_losses(logits, torch.arange(7) % 4, None, 0.0)
    (gradient,) = torch.autograd.grad(loss[1], logits)
    assert not gradient[[0, 2]].any()
    assert gradient[1].any()


def test_balanced_weights_are_scikit_learns() -> None:
    y = np.repeat([0, 1, 3, 4], [50, 3, 20, 1])
    ours = balanced_weights(torch.from_numpy(y), 6)
    theirs = compute_class_weight("balanced", classes=np.unique(y), y=y)
    np.testing.assert_allclose(ours[[0, 1, 3, 4]], theirs, rtol=1e-6)
    assert ours[[2, 5]].tolist() == [0, 0]


def test_balanced_weights_of_several_labels_are_negatives_over_positives() -> None:
    y = torch.zeros(400, 4)
    y[:100, 0] = 1
    y[:1, 1] = 1  # 399, bounded to 100
    y[:, 2] = 1  # always there: 0, bounded to 0.01
    assert balanced_weights(y, 4).tolist() == pytest.approx([3.0, 100.0, 0.01, 100.0])
