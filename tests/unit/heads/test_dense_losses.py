"""Losses of masks: against torch, numpy, torchvision and segmentation_models_pytorch; ignored pixels do not exist."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from embedcache.dense_losses import dense_loss
from embedcache.train_config import Loss

KINDS = get_args(Loss)
IGNORE = 255
CLASSES = 4
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


def batch(seed: int = 0, *, ignored: float = 0.3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits (3, 4, 5, 6) and a target with some pixels 255 and some -1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, CLASSES, 5, 6, generator=generator, dtype=dtype)
    target = torch.randint(0, CLASSES, (3, 5, 6), generator=generator)
    chance = torch.rand(3, 5, 6, generator=generator)
    target[chance < ignored] = IGNORE
    target[chance < ignored / 3] = -1
    return logits.requires_grad_(), target


def loss_of(kind: str, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    return dense_loss(logits, target, kind=kind, ignore_index=IGNORE, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def smp() -> Any:
    from embedcache.backbones._terratorch import repair_torchvision

    repair_torchvision()
    import segmentation_models_pytorch

    return segmentation_models_pytorch


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_torchs(weights: Tensor | None, smoothing: float) -> None:
    logits, target = batch()
    got = loss_of("cross-entropy", logits, target, weights=weights, label_smoothing=smoothing)
    negative = target.where(target != IGNORE, -1)
    want = F.cross_entropy(logits, negative, weights, ignore_index=-1, label_smoothing=smoothing)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (got, want)))


def numpy_dice(logits: Tensor, target: Tensor, weights: Tensor | None) -> float:
    e = np.exp(logits.detach().double().numpy())
    p = np.moveaxis(e / e.sum(axis=1, keepdims=True), 1, -1)
    y, valid = target.numpy(), (target.numpy() >= 0) & (target.numpy() != IGNORE)
    scores, shares = [], []
    for c in range(CLASSES):
        mask = y[valid] == c
        if mask.any():
            scores.append(1 - 2 * p[valid][mask, c].sum() / (p[valid][:, c].sum() + mask.sum()))
            shares.append(1.0 if weights is None else float(weights[c]))
    return float(np.average(scores, weights=shares))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("absent", [None, 2])
def test_dice_is_its_definition_over_classes_that_are_present(weights: Tensor | None, absent: int | None) -> None:
    logits, target = batch(1)
    if absent is not None:
        target[target == absent] = 0
    got = loss_of("dice", logits, target, weights=weights)
    assert float(got.detach()) == pytest.approx(numpy_dice(logits, target, weights), rel=1e-5)


def test_dice_is_that_of_segmentation_models_pytorch(smp: Any) -> None:
    logits, target = batch(2)
    reference = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)
    merged = target.where(target >= 0, IGNORE)
    torch.testing.assert_close(loss_of("dice", logits, target), reference(logits, merged))
    merged[merged == 1] = 0  # an absent class counts as 0 there, and not at all here
    torch.testing.assert_close(loss_of("dice", logits, merged), reference(logits, merged) * CLASSES / (CLASSES - 1))


def test_dice_of_a_perfect_answer_is_zero_and_of_a_wrong_one_is_one() -> None:
    target = torch.tensor([[[0, 1], [2, 2]]])
    right = F.one_hot(target, 3).permute(0, 3, 1, 2) * 100.0
    assert float(loss_of("dice", right, target)) == pytest.approx(0, abs=1e-6)
    assert float(loss_of("dice", right.roll(1, dims=1), target)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_is_its_definition(weights: Tensor | None) -> None:
    logits, target = batch(3, dtype=torch.float64)
    valid = (target >= 0) & (target != IGNORE)
    p = logits.detach().softmax(dim=1).permute(0, 2, 3, 1)[valid].numpy()
    y = target[valid].numpy()
    right = p[np.arange(len(y)), y]
    share = np.ones(len(y)) if weights is None else weights.numpy()[y]
    want = np.average(-((1 - right) ** 2) * np.log(right), weights=share)
    assert float(loss_of("focal", logits, target, weights=weights).detach()) == pytest.approx(want, rel=1e-9)


def test_focal_of_two_classes_is_torchvisions(smp: Any) -> None:
    from torchvision.ops import sigmoid_focal_loss

    logits, target = batch(4, ignored=0)
    logits, target = logits[:, :2], target % 2
    difference = logits[:, 1] - logits[:, 0]
    want = sigmoid_focal_loss(difference, target.float(), alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(loss_of("focal", logits, target), want)


def test_the_sum_is_the_sum() -> None:
    logits, target = batch(5)
    options = {"weights": WEIGHTS, "label_smoothing": 0.1}
    parts = [loss_of(kind, logits, target, **options) for kind in ("cross-entropy", "dice")]
    torch.testing.assert_close(loss_of("cross-entropy+dice", logits, target, **options), parts[0] + parts[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ignored_pixels_change_nothing_and_get_no_gradient(kind: str, weights: Tensor | None) -> None:
    logits, target = batch(6)
    left_out = (target < 0) | (target == IGNORE)
    loss = loss_of(kind, logits, target, weights=weights)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient.permute(0, 2, 3, 1)[left_out] == 0).all()
    assert (gradient.permute(0, 2, 3, 1)[~left_out] != 0).any(dim=1).all()
    other = logits.detach().clone()
    other.permute(0, 2, 3, 1)[left_out] = 50.0
    torch.testing.assert_close(loss_of(kind, other, target, weights=weights), loss.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, WEIGHTS, torch.zeros(CLASSES)])
@pytest.mark.parametrize("value", [-1, IGNORE])
def test_a_batch_without_a_pixel_that_counts_has_zero_loss_and_gradient(
    kind: str, weights: Tensor | None, value: int
) -> None:
    logits, target = batch(7)
    loss = loss_of(kind, logits, torch.full_like(target, value), weights=weights, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.shape == ()
    assert float(loss.detach()) == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("right", [True, False])
def test_gradients_are_finite_however_sure_the_logits_are(kind: str, scale: float, right: bool) -> None:
    target = batch(8, ignored=0.2)[1]
    sure = F.one_hot(target.where((target >= 0) & (target != IGNORE), 0), CLASSES).permute(0, 3, 1, 2).float()
    logits = (scale * (sure if right else -sure)).requires_grad_()
    target[target == 3] = 1  # class 3 is absent, and where scale is large its probability is 0 everywhere
    loss = loss_of(kind, logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_gradients_are_right(kind: str, weights: Tensor | None) -> None:
    logits, target = batch(9, dtype=torch.float64)
    small = logits[:2, :, :2, :3].detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: loss_of(kind, x, target[:2, :2, :3], weights=weights, label_smoothing=0.1), [small]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits_have_a_loss_in_float32(kind: str) -> None:
    logits, target = batch(10)
    half = logits.detach().bfloat16()
    loss = loss_of(kind, half, target, weights=WEIGHTS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(kind, half.float(), target, weights=WEIGHTS), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_without_ignore_index_only_negative_pixels_are_left_out(kind: str) -> None:
    logits, target = batch(11)
    target = target.where(target != IGNORE, -7)
    none = dense_loss(logits, target, kind=kind, ignore_index=None)
    torch.testing.assert_close(none, loss_of(kind, logits, target), rtol=0, atol=0)
    as_class = dense_loss(logits, target, kind=kind, ignore_index=0)
    torch.testing.assert_close(as_class, loss_of(kind, logits, target.where(target != 0, IGNORE)), rtol=0, atol=0)


def test_grids_that_differ_are_refused() -> None:
    logits, target = batch()
    with pytest.raises(ValueError, match=r"\(3, 4, 5, 6\) and target \(3, 5, 5\)"):
        loss_of("dice", logits, target[:, :, :5])
