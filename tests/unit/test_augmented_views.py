"""Flips and rotations by name, against numpy; chance; and averages of probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedcache.errors import SettingError
from embedcache.views import D4, canonical, draw, mean_logits, parse_views, turned, turned_back, turned_each

NUMPY = {
    "identity": lambda x: x,
    "hflip": np.fliplr,
    "vflip": np.flipud,
    "rot90": lambda x: np.rot90(x, 1),
    "rot180": lambda x: np.rot90(x, 2),
    "rot270": lambda x: np.rot90(x, 3),
    "transpose": np.transpose,
    "transverse": lambda x: np.rot90(np.transpose(x), 2),
}


@pytest.mark.parametrize("view", D4)
def test_a_view_is_what_numpy_makes_of_it_and_is_undone(view: str) -> None:
    x = torch.arange(25).reshape(5, 5)
    np.testing.assert_array_equal(turned(x, view).numpy(), NUMPY[view](x.numpy()))
    stack = torch.arange(2 * 3 * 16).reshape(2, 3, 4, 4)
    for i in range(2):
        for c in range(3):
            np.testing.assert_array_equal(turned(stack, view)[i, c].numpy(), NUMPY[view](stack[i, c].numpy()))
    assert torch.equal(turned_back(turned(stack, view), view), stack)


def test_the_eight_views_are_a_group() -> None:
    x = torch.arange(9).reshape(3, 3)
    every = {tuple(turned(x, v).flatten().tolist()) for v in D4}
    assert len(every) == 8
    for a in D4:
        assert {tuple(turned(turned(x, a), b).flatten().tolist()) for b in D4} == every


def test_each_sample_gets_its_own_view() -> None:
    x = torch.arange(3 * 2 * 16).reshape(3, 2, 4, 4)
    views = ["rot90", "identity", "rot90"]
    out = turned_each(x, views)
    for i, view in enumerate(views):
        assert torch.equal(out[i], turned(x[i], view))
    assert turned_each(x, ["identity"] * 3) is x


def test_names_of_views() -> None:
    assert parse_views("d4") == parse_views(" D4 ") == tuple(D4)
    assert parse_views("rot90, hflip") == ("identity", "hflip", "rot90")
    assert canonical(["identity"]) == ("identity",)
    with pytest.raises(SettingError, match=r"knows identity, hflip, .*, and d4 for all of them; got 'mirror'"):
        parse_views("hflip,mirror")
    with pytest.raises(SettingError, match="names 'hflip' twice"):
        parse_views("hflip,hflip")


def test_views_are_drawn_evenly_by_seed_and_epoch_only() -> None:
    drawn = draw(8000, 8, seed=3, epoch=1)
    counts = np.bincount(drawn, minlength=8)
    assert counts.min() > 850
    np.testing.assert_array_equal(drawn, draw(8000, 8, 3, 1))
    for other in (draw(8000, 8, 4, 1), draw(8000, 8, 3, 2)):
        assert 0.1 < (other == drawn).mean() < 0.15
    assert draw(5, 1, 0, 0).tolist() == [0] * 5
    order = np.random.default_rng([3, 1]).permutation(8000)  # that of the samples, which has the same seed and epoch
    assert abs(np.corrcoef(order, drawn)[0, 1]) < 0.05


def test_averaged_logits_stand_for_averaged_probabilities() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = [5 * torch.randn(6, 4, generator=rng) for _ in range(3)]
    mean = mean_logits(logits, "classification", -1)
    torch.testing.assert_close(mean.softmax(-1), torch.stack([x.softmax(-1) for x in logits]).mean(0))
    torch.testing.assert_close(mean.exp().sum(-1), torch.ones(6))
    multi = mean_logits(logits, "multilabel", -1)
    torch.testing.assert_close(multi.sigmoid(), torch.stack([x.sigmoid() for x in logits]).mean(0))
    maps = [torch.randn(2, 4, 3, 3, generator=rng) for _ in range(2)]
    pixels = mean_logits(maps, "segmentation", 1)
    torch.testing.assert_close(pixels.softmax(1), torch.stack([x.softmax(1) for x in maps]).mean(0))
    sure = [torch.tensor([[200.0, -200.0]]), torch.tensor([[150.0, -150.0]])]
    assert mean_logits(sure, "multilabel", -1).isfinite().all()
    assert mean_logits(sure[:1], "multilabel", -1) is sure[0]
