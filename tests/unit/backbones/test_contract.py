"""What every backbone promises, tried on the small member of each family."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from embedcache.backbones._registry import get_backbone, list_backbones
from embedcache.bands import WAVELENGTHS_UM
from embedcache.errors import SettingError, UnknownNameError

SMALL = ("sam2_hiera_tiny", "sam21_hiera_tiny", "prithvi_eo_v2_tiny_tl", "dofa_small")
Load = Callable[..., Any]

NAMES = {
    *(f"{release}_hiera_{s}" for release in ("sam2", "sam21") for s in ("tiny", "small", "base_plus", "large")),
    "prithvi_eo_v1_100",
    *(f"prithvi_eo_v2_{s}" for s in ("tiny_tl", "100_tl", "300", "300_tl", "600", "600_tl")),
    *(f"dofa_{s}" for s in ("small", "base", "large")),
}


def images(name: str, count: int = 2, size: int = 224, seed: int = 1, bands: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, bands or len(get_backbone(name).bands), size, size, generator=generator)


def flat(features: Any) -> list[torch.Tensor]:
    return [*features.levels, *features.pooled.values()]


def test_every_backbone_of_the_paper_is_there() -> None:
    assert set(list_backbones()) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_facts_make_sense(name: str) -> None:
    spec = get_backbone(name)
    assert all(b.std > 0 and b.gain > 0 and b.name in WAVELENGTHS_UM for b in spec.bands)
    assert {"RED", "GREEN", "BLUE"} <= {b.name for b in spec.bands if b.required}
    levels = spec.levels(224)
    assert len(levels) == 4
    assert all(math.isclose(level.height * level.reduction, 224) for level in levels)
    assert [level.height for level in levels] == sorted((level.height for level in levels), reverse=True)
    assert spec.hub is None or (spec.hub.repo.count("/") == 1 and spec.hub.filename)


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_sam_21_is_sam_2_with_other_weights(size: str) -> None:
    from dataclasses import replace

    older, newer = get_backbone(f"sam2_hiera_{size}"), get_backbone(f"sam21_hiera_{size}")
    assert newer == replace(older, name=newer.name, title=newer.title, hub=newer.hub)
    assert newer.hub is not None
    assert newer.hub.repo == f"facebook/sam2.1-hiera-{size.replace('_', '-')}"
    assert newer.hub.filename == f"sam2.1_hiera_{size}.pt"


def test_prithvi_1_has_statistics_of_its_own() -> None:
    first, second = get_backbone("prithvi_eo_v1_100"), get_backbone("prithvi_eo_v2_100_tl")
    assert [b.name for b in first.bands] == [b.name for b in second.bands]
    assert [b.mean for b in first.bands] == [775, 1081, 1229, 2497, 2204, 1611]
    assert [b.std for b in first.bands] == [1282, 1270, 1399, 1368, 1292, 1155]
    assert not first.uses_coords


def test_an_unknown_name_offers_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'dofa_base'"):
        get_backbone("dofa_bse")


@pytest.mark.parametrize(
    ("name", "size", "offer"), [("sam2_hiera_large", 240, "224 or 256"), ("dofa_base", 8, "16 or 32")]
)
def test_a_size_that_does_not_fit_offers_some_that_do(name: str, size: int, offer: str) -> None:
    with pytest.raises(SettingError, match=offer):
        get_backbone(name).levels(size)


@pytest.mark.parametrize("size", [224, 64])
@pytest.mark.parametrize("name", SMALL)
def test_declared_levels_are_the_real_ones(loaded: Load, name: str, size: int) -> None:
    spec = get_backbone(name)
    with torch.inference_mode():
        features = loaded(name, size=size)(images(name, size=size))
    declared = [(level.channels, level.height, level.width) for level in spec.levels(size)]
    assert declared == [tuple(level.shape[1:]) for level in features.levels]
    assert {k: v.shape for k, v in features.pooled.items()} == dict.fromkeys(spec.pooled, (2, spec.pooled_channels))


@pytest.mark.parametrize("name", SMALL)
def test_parameters_are_as_declared(loaded: Load, name: str) -> None:
    counted = sum(p.numel() for p in loaded(name).module.parameters()) / 1e6
    assert counted == pytest.approx(get_backbone(name).parameters_m, rel=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_it_is_frozen_and_repeats_itself_bit_for_bit(loaded: Load, name: str) -> None:
    model = loaded(name)
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    with torch.inference_mode():
        first, second = flat(model(images(name))), flat(model(images(name)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_equals_its_images_one_by_one(loaded: Load, name: str) -> None:
    model, batch = loaded(name), images(name, count=3)
    with torch.inference_mode():
        together = flat(model(batch))
        alone = [flat(model(batch[i : i + 1])) for i in range(3)]
    for k, tensor in enumerate(together):
        torch.testing.assert_close(tensor, torch.cat([a[k] for a in alone]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_weights_and_nothing_else_is_disturbed(loaded: Load, name: str) -> None:
    before = torch.random.get_rng_state()
    again = loaded.__wrapped__(name) if hasattr(loaded, "__wrapped__") else loaded(name)
    other = loaded(name, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    x = images(name)
    with torch.inference_mode():
        same, different = flat(again(x))[-1], flat(other(x))[-1]
        assert torch.equal(same, flat(loaded(name)(x))[-1])
    assert not torch.allclose(same, different)


def test_prithvi_tl_uses_time_and_location(loaded: Load) -> None:
    model, x = loaded("prithvi_eo_v2_tiny_tl"), images("prithvi_eo_v2_tiny_tl")
    time, place = torch.tensor([[2020.0, 10.0], [2021.0, 200.0]]), torch.tensor([[45.0, 9.0], [-20.0, 30.0]])
    with torch.inference_mode():
        plain, timed, placed = (m.pooled["mean"] for m in (model(x), model(x, time), model(x, None, place)))
    assert not torch.allclose(plain, timed)
    assert not torch.allclose(plain, placed)
    assert not torch.allclose(timed, placed)


@pytest.mark.parametrize("name", ["prithvi_eo_v2_tiny_tl", "dofa_small"])
def test_three_bands_are_enough(loaded: Load, name: str) -> None:
    model = loaded(name, bands=("RED", "GREEN", "BLUE"))
    with torch.inference_mode():
        features = model(images(name, bands=3))
    assert all(torch.isfinite(t).all() for t in flat(features))
