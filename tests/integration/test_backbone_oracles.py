"""Our extractors against the model libraries' own ways of running the same weights."""

from __future__ import annotations

import torch

from embedcache.backbones._registry import get_backbone, list_backbones
from embedcache.backbones._terratorch import terratorch_registry
from embedcache.backbones._weights import find_weights, load_backbone


def images(bands: int) -> torch.Tensor:
    return torch.randn(2, bands, 224, 224, generator=torch.Generator().manual_seed(0))


def test_hiera_equals_sam2s_own_configuration() -> None:
    import sam2  # noqa: F401 - sets up its hydra configurations
    from hydra import compose
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    for name, config in (
        ("sam2_hiera_tiny", "sam2/sam2_hiera_t"),
        ("sam2_hiera_base_plus", "sam2/sam2_hiera_b+"),
        ("sam21_hiera_small", "sam2.1/sam2.1_hiera_s"),
    ):
        spec = get_backbone(name)
        ours = load_backbone(spec, find_weights(spec, "random"), ("RED", "GREEN", "BLUE"))
        whole = compose(config_name=f"configs/{config}.yaml")
        OmegaConf.resolve(whole)
        encoder = instantiate(whole.model.image_encoder, _recursive_=True).eval()
        encoder.trunk.load_state_dict(ours.module.state_dict(), strict=True)
        with torch.inference_mode():
            theirs, mine = encoder.trunk(images(3)), ours(images(3)).levels
        assert all(torch.equal(a, b) for a, b in zip(theirs, mine, strict=True))


def test_prithvi_equals_terratorchs_model() -> None:
    spec = get_backbone("prithvi_eo_v2_tiny_tl")
    bands = tuple(b.name for b in spec.bands)
    ours = load_backbone(spec, find_weights(spec, "random"), bands)
    theirs = terratorch_registry().build(spec.name, pretrained=False, bands=list(bands), out_indices=[2, 5, 8, 11])
    theirs.load_state_dict(ours.module.state_dict(), strict=True)
    time, place = torch.tensor([[2019.0, 40.0], [2022.0, 300.0]]), torch.tensor([[45.0, 9.0], [-3.0, 101.0]])
    with torch.inference_mode():
        tokens = theirs.eval()(images(6), temporal_coords=time[:, None], location_coords=place)
        maps = theirs.prepare_features_for_image_model(tokens)
        mine = ours(images(6), time, place)
    assert all(torch.equal(a, b) for a, b in zip(maps, mine.levels, strict=True))
    assert torch.equal(mine.pooled["cls"], tokens[-1][:, 0])
    torch.testing.assert_close(mine.pooled["mean"], maps[-1].mean(dim=(2, 3)))


def test_prithvis_statistics_are_terratorchs() -> None:
    terratorch_registry()
    from terratorch.models.backbones.prithvi_vit import pretrained_weights, prithvi_cfgs

    for name, spec in list_backbones().items():
        if name.startswith("prithvi"):
            assert [b.mean for b in spec.bands] == prithvi_cfgs[name]["mean"]
            assert [b.std for b in spec.bands] == prithvi_cfgs[name]["std"]
            assert [b.name for b in spec.bands] == [str(b.value) for b in prithvi_cfgs[name]["bands"]]
            assert spec.hub is not None
            published = pretrained_weights[name]
            assert (spec.hub.repo, spec.hub.filename) == (published["hf_hub_id"], published["hf_hub_filename"])


def test_sam2s_files_are_those_of_its_own_loader() -> None:
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    ours = {s.hub.repo: s.hub.filename for n, s in list_backbones().items() if n.startswith("sam2") and s.hub}
    assert ours == {repo: filename for repo, (_, filename) in HF_MODEL_ID_TO_FILENAMES.items()}


def test_dofa_equals_terratorchs_wrapper() -> None:
    spec = get_backbone("dofa_small")
    bands = [b.name for b in spec.bands]
    ours = load_backbone(spec, find_weights(spec, "random"), tuple(bands))
    build = terratorch_registry().build
    theirs = build("dofa_small_patch16_224", pretrained=False, model_bands=bands, out_indices=[2, 5, 8, 11])
    theirs.load_state_dict(ours.module.state_dict(), strict=True)
    with torch.inference_mode():
        tokens, mine = theirs.eval()(images(6)), ours(images(6))
    for expected, level in zip(tokens, mine.levels, strict=True):
        assert torch.equal(expected[:, 1:].transpose(1, 2).reshape(2, -1, 14, 14), level)
    assert torch.equal(mine.pooled["cls"], tokens[-1][:, 0])
