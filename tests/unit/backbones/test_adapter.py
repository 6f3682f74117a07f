"""TerraTorch's registry through one adapter: what it works out, asks for and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from embedcache.backbones._adapter import adapt
from embedcache.backbones._registry import find_backbones, get_backbone, identity_of
from embedcache.backbones._spec import BackboneSpec
from embedcache.backbones._terratorch import terratorch_registry
from embedcache.backbones._weights import find_weights, load_backbone
from embedcache.errors import SettingError, UnknownNameError, WeightsError

PLAIN = (192, 16)
LAYOUTS = {
    "timm_resnet18": (64, ((64, 4), (128, 8), (256, 16), (512, 32)), ("mean",)),
    "timm_vit_tiny_patch16_224": (64, (PLAIN,) * 4, ("mean",)),
    "timm_swin_tiny_patch4_window7_224": (224, ((96, 4), (192, 8), (384, 16), (768, 32)), ("mean",)),
    "terramind_v1_tiny": (64, (PLAIN,) * 4, ("mean",)),
    "prithvi_eo_tiny": (64, ((256, 16),) * 4, ("cls", "mean")),
    "prithvi_eo_v2_tiny_tl": (64, (PLAIN,) * 4, ("cls", "mean")),
    "dofa_small_patch16_224": (64, ((384, 16),) * 4, ("cls", "mean")),
    "ssl4eos12_vit_small_patch16_224_sentinel2_all_moco": (224, ((384, 16),) * 4, ("mean",)),
    "ssl4eos12_resnet18_sentinel2_rgb_moco": (64, ((64, 4), (128, 8), (256, 16), (512, 32)), ("mean",)),
    "satlas_swin_t_sentinel2_si_ms": (64, ((96, 4), (192, 8), (384, 16), (768, 32)), ("mean",)),
}
"""By name: input size in px, levels, pooled vectors."""


@cache
def adapted(name: str, bands: str = "") -> BackboneSpec:
    return adapt(f"terratorch:{name}{':' if bands else ''}{bands}", LAYOUTS.get(name, (64,))[0])


@cache
def loaded(name: str, seed: int = 0) -> Any:
    spec = adapted(name)
    return load_backbone(spec, find_weights(spec, f"random:{seed}"), names(spec), spec.input_size)


def names(spec: BackboneSpec) -> tuple[str, ...]:
    return tuple(b.name for b in spec.bands)


def images(spec: BackboneSpec, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, len(spec.bands), spec.input_size, spec.input_size, generator=generator)


def flat(features: Any) -> list[torch.Tensor]:
    return [*features.levels, *features.pooled.values()]


@pytest.fixture
def toy() -> Iterator[Any]:
    """Backbones of TerraTorch's registry that are made here, and taken out afterwards."""
    registry = terratorch_registry()._sources["terratorch"]._registry
    before = dict(registry)
    yield registry
    registry.clear()
    registry.update(before)


@pytest.mark.parametrize("name", LAYOUTS)
def test_levels_and_pooled_vectors_are_worked_out(name: str) -> None:
    size, levels, pooled = LAYOUTS[name]
    spec = adapted(name)
    assert (spec.level_facts, spec.pooled, spec.input_size) == (levels, pooled, size)
    with torch.inference_mode():
        features = loaded(name)(images(spec))
    declared = [(level.channels, level.height, level.width) for level in spec.levels(size)]
    assert [tuple(level.shape[1:]) for level in features.levels] == declared
    assert {k: tuple(v.shape) for k, v in features.pooled.items()} == dict.fromkeys(pooled, (2, levels[-1][0]))
    assert any(f"once at {size} px: of " in note for note in spec.notes)
    assert sum(p.numel() for p in loaded(name).module.parameters()) / 1e6 == pytest.approx(spec.parameters_m, abs=1e-3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_contract(name: str) -> None:
    spec, model = adapted(name), loaded(name)
    x = images(spec)
    assert not model.module.training
    with torch.inference_mode():
        first, second, alone = flat(model(x)), flat(model(x)), [flat(model(x[i : i + 1])) for i in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for k, together in enumerate(first):
        torch.testing.assert_close(together, torch.cat([a[k] for a in alone]), rtol=1e-4, atol=1e-4)


def test_it_equals_our_own_prithvi() -> None:
    own = get_backbone("prithvi_eo_v2_tiny_tl")
    ours = load_backbone(own, find_weights(own, "random"), names(own), 64)
    spec = adapted("prithvi_eo_v2_tiny_tl")
    theirs = load_backbone(spec, find_weights(spec, "random:9"), names(spec), 64)
    theirs.module.load_state_dict(ours.module.state_dict())
    assert spec.bands == tuple(replace(b, required=True) for b in own.bands)
    x = images(own)[..., :64, :64]
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(flat(ours(x)), flat(theirs(x)), strict=True))


def test_timms_hiera_equals_our_own_levels_shape() -> None:
    assert adapted("timm_sam2_hiera_tiny").level_facts == get_backbone("sam2_hiera_tiny").level_facts


def test_normalisation_is_what_terratorch_and_torchgeo_say() -> None:
    terramind = {b.name: (b.gain, b.mean, b.std, b.ceiling) for b in adapted("terramind_v1_tiny").bands}
    assert len(terramind) == 12
    assert terramind["RED"] == (1.0, 1853.91, 2134.138, None)
    rgb = adapted("timm_resnet18").bands
    assert [(b.name, b.mean, b.std, b.ceiling) for b in rgb] == [
        ("RED", 0.485, 0.229, 1.0),
        ("GREEN", 0.456, 0.224, 1.0),
        ("BLUE", 0.406, 0.225, 1.0),
    ]
    ssl = adapted("ssl4eos12_vit_small_patch16_224_sentinel2_all_moco").bands
    assert [b.name for b in ssl][7:9] == ["NIR_BROAD", "NIR_NARROW"]
    assert {(b.gain, b.mean, b.std) for b in ssl} == {(1.0, 0.0, 10000.0)}
    satlas = {b.name: (b.gain, b.std, b.ceiling) for b in adapted("satlas_swin_t_sentinel2_si_ms").bands}
    assert satlas["RED"] == (255 / 3000, 255.0, 255.0)
    assert satlas["NIR_BROAD"] == (1.0, 8160.0, 8160.0)


def test_chained_normalisations_are_one() -> None:
    red = adapted("seco_resnet18_sentinel2_rgb_seco").bands[0]
    value = 50.0  # of an 8-bit picture
    theirs = ((value - 3) / 85 * 255 - 0.485) / 0.229
    assert (value - red.mean) / red.std == pytest.approx(theirs)


def test_bands_may_be_chosen_and_statistics_given() -> None:
    few = adapted("terramind_v1_tiny", "RED,GREEN,BLUE")
    assert names(few) == ("RED", "GREEN", "BLUE")
    assert few.parameters_m < adapted("terramind_v1_tiny").parameters_m
    assert few.reference == "terratorch:terramind_v1_tiny:RED,GREEN,BLUE"
    four = adapted("timm_resnet18", "R,G,B,NIR=2734/1850")
    assert (four.bands[3].name, four.bands[3].mean, four.bands[3].std) == ("NIR", 2734.0, 1850.0)
    assert identity_of(four) != identity_of(adapted("timm_resnet18"))
    landsat = adapted("ssl4eol_resnet18_landsat_tm_toa_moco", "BLUE=1/2,GREEN=1/2,RED=1/2")
    assert names(landsat) == ("BLUE", "GREEN", "RED")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("convnextv2_atto", "does not say which bands 'convnextv2_atto' takes.*RED=MEAN/STD"),
        ("ssl4eol_resnet18_landsat_tm_toa_moco", "does not say which bands"),
        ("ssl4eos12_resnet50_sentinel1_all_moco", "does not say which bands"),
        ("timm_clay_v1_base", "does not say which bands"),
        ("timm_resnet18:RED,NIR", "takes band 'NIR'; .*NIR=MEAN/STD. Known are RED, GREEN, BLUE"),
        ("timm_resnet18:RED=1", "write it as NAME=MEAN/STD"),
        ("timm_resnet18:RED=1/0", "above 0"),
        ("timm_resnet18:RED,RED", "name one twice"),
        ("prithvi_eo_tiny:RED,NOT_A_BAND", "NOT_A_BAND"),
        ("IdentityBackbone:RED=1/2", "'IdentityBackbone' cannot be run on 1 bands at 64 px"),
    ],
)
def test_what_is_not_known_is_asked_for(reference: str, said: str) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        find_backbones(f"terratorch:{reference}", 64)
    assert "\n" not in str(caught.value)


def test_a_size_that_makes_uneven_maps_is_refused() -> None:
    with pytest.raises(SettingError, match=r"map of \d+ px from 100 px"):
        adapt("terratorch:timm_resnet18", 100)


def test_an_unknown_name_offers_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'terramind_v1_tiny'"):
        find_backbones("terratorch:terramind_v1_tinny")


def test_a_file_fills_it_exactly_with_or_without_prefix_and_classifier(tmp_path: Path) -> None:
    name = "ssl4eos12_resnet18_sentinel2_rgb_moco"
    spec, original = adapted(name), loaded(name, seed=5)
    state = original.module.state_dict()
    x = images(spec)
    bare = {k.removeprefix("resnet_model."): v for k, v in state.items()}
    headless = {k: v for k, v in bare.items() if not k.startswith("fc.")}
    with torch.inference_mode():
        expected = flat(original(x))
        for kept in (state, bare, headless, {**headless, "fc.weight": torch.zeros(7, 3)}):
            torch.save(kept, tmp_path / "w.pt")
            model = load_backbone(spec, find_weights(spec, str(tmp_path / "w.pt")), names(spec), 64)
            assert all(torch.equal(a, b) for a, b in zip(flat(model(x)), expected, strict=True))
    for wrong, said in (
        ({k: v for k, v in bare.items() if k != "conv1.weight"}, "1 of .* missing .*conv1"),
        ({**bare, "extra.weight": torch.zeros(1)}, "1 are unknown"),
        ({**bare, "conv1.weight": torch.zeros(64, 4, 7, 7)}, "another shape"),
        ({"fc.weight": torch.zeros(1)}, "nothing that the model has"),
    ):
        torch.save(wrong, tmp_path / "w.pt")
        with pytest.raises(WeightsError, match=said):
            load_backbone(spec, find_weights(spec, str(tmp_path / "w.pt")), names(spec), 64)


def test_seeds_decide_random_weights_and_what_drew_them_is_recorded() -> None:
    spec = adapted("timm_resnet18")
    x = images(spec)
    with torch.inference_mode():
        one, other = (loaded("timm_resnet18", seed)(x).pooled["mean"] for seed in (0, 1))
        again = load_backbone(spec, find_weights(spec, "random:0"), names(spec), 64)(x).pooled["mean"]
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert "timm" in find_weights(spec, "random").identity


def published(value: float, *, partly: bool = False, head: bool = True) -> Any:
    def embedcache_toy(pretrained: bool = False, bands: Any = (), **_: Any) -> torch.nn.Module:
        class Toy(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.proj, self.last = torch.nn.Conv2d(len(bands), 4, 8, 8), torch.nn.Conv2d(4, 4, 1)
                if head:
                    self.head = torch.nn.Linear(4, 10)  # never trained, as in many published files
                if pretrained:
                    for p in (*self.proj.parameters(), *(() if partly else self.last.parameters())):
                        torch.nn.init.constant_(p, value)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.last(self.proj(x))

        return Toy()

    return embedcache_toy


def test_pretrained_goes_through_terratorchs_loader_and_is_hashed(toy: Any) -> None:
    reference = "terratorch:embedcache_toy:RED=1/2,NIR=1/2"

    def found(constructor: Any) -> Any:
        toy["embedcache_toy"] = constructor
        spec = adapt(reference, 32)
        return spec, find_weights(spec, "pretrained")

    spec, weights = found(published(0.5))
    assert weights.identity == found(published(0.5))[1].identity
    assert weights.identity == found(published(0.5, head=False))[1].identity  # no feature depends on the head
    assert weights.identity != found(published(0.25))[1].identity
    assert weights.source == "terratorch's own loader"
    toy["embedcache_toy"] = published(0.5)
    with torch.inference_mode():
        assert load_backbone(spec, weights, names(spec), 32)(images(spec)).levels[0].shape == (2, 4, 4, 4)
    toy["embedcache_toy"] = published(0.25)
    with pytest.raises(WeightsError, match="other weights by its loader"):
        load_backbone(spec, weights, names(spec), 32)
    spec, weights = found(published(0.5, partly=True))
    with pytest.raises(WeightsError, match="part of them is random"):
        load_backbone(spec, weights, names(spec), 32)


def test_pretrained_weights_that_cannot_be_had_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"could not be had from terratorch.*--weights FILE"):
        find_weights(adapted("terramind_v1_tiny"), "pretrained")


def test_a_mapping_is_made_where_the_model_takes_one() -> None:
    seen: list[Any] = []
    spec = adapted("terramind_v1_tiny")
    model = load_backbone(spec, find_weights(spec, "random"), names(spec), 64)
    model.module.register_forward_pre_hook(lambda _, given: seen.extend(given))
    with torch.inference_mode():
        model(images(spec))
    assert [list(s) for s in seen] == [["S2L2A"]]
    assert "input S2L2A" in spec.version
