"""The image-encoder trunk of SAM 2 and 2.1 (Hiera) as a plain four-level backbone; the paper's Hiera_200M is ``large``.

Architecture: the ``sam2`` package (Apache-2.0), configurations as in its ``configs/sam2``; 2.1 has the same trunks and
other weights. Input: RGB in 0-1 with ImageNet statistics (``sam2/utils/transforms.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embedcache.backbones._spec import TRUE_COLOUR_DN, BackboneSpec, BandInput, FeatureExtractor, Features, HubFile
from embedcache.backbones._weights import fill
from embedcache.errors import WeightsError

if TYPE_CHECKING:
    import torch

_BANDS = tuple(
    BandInput(name=name, gain=1 / TRUE_COLOUR_DN, ceiling=1.0, mean=mean, std=std, required=True)
    for name, mean, std in (("RED", 0.485, 0.229), ("GREEN", 0.456, 0.224), ("BLUE", 0.406, 0.225))
)

_TRUNKS: dict[str, dict[str, Any]] = {
    "tiny": {
        "embed_dim": 96,
        "num_heads": 1,
        "stages": (1, 2, 7, 2),
        "global_att_blocks": (5, 7, 9),
        "window_pos_embed_bkg_spatial_size": (7, 7),
    },
    "small": {
        "embed_dim": 96,
        "num_heads": 1,
        "stages": (1, 2, 11, 2),
        "global_att_blocks": (7, 10, 13),
        "window_pos_embed_bkg_spatial_size": (7, 7),
    },
    "base_plus": {"embed_dim": 112, "num_heads": 2},
    "large": {
        "embed_dim": 144,
        "num_heads": 2,
        "stages": (2, 6, 36, 4),
        "global_att_blocks": (23, 33, 43),
        "window_pos_embed_bkg_spatial_size": (7, 7),
        "window_spec": (8, 4, 16, 8),
    },
}


class _Trunk:
    """Four levels as they come, strides 4, 8, 16 and 32; the pooled vector is the mean over the coarsest."""

    def __init__(self, trunk: torch.nn.Module) -> None:
        self.module = trunk

    def __call__(
        self, images: torch.Tensor, time: torch.Tensor | None = None, location: torch.Tensor | None = None
    ) -> Features:
        levels = self.module(images)
        return Features(pooled={"mean": levels[-1].float().mean(dim=(2, 3))}, levels=levels)


def _load(
    spec: BackboneSpec, bands: tuple[str, ...], input_size: int, state: Mapping[str, Any] | None
) -> FeatureExtractor:
    from sam2.modeling.backbones.hieradet import Hiera

    trunk = Hiera(**_TRUNKS[spec.name.partition("_hiera_")[2]])
    if state is not None:
        fill(trunk, _trunk_state(state))
    return _Trunk(trunk)


def _trunk_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the trunk out of a whole SAM 2 checkpoint, an image encoder, or a trunk alone."""
    for prefix in ("image_encoder.trunk.", "trunk."):
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if part:
            return part
    if "pos_embed_window" not in state:
        raise WeightsError("it holds no Hiera trunk (no 'image_encoder.trunk.*' nor 'pos_embed_window').")
    return dict(state)


def _spec(release: str, size: str, letter: str, channels: int, parameters_m: float) -> BackboneSpec:
    return BackboneSpec(
        name=f"sam{release.replace('.', '')}_hiera_{size}",
        title=f"SAM {release} image encoder, Hiera {letter}",
        bands=_BANDS,
        size_multiple=32,
        level_facts=((channels, 4), (channels * 2, 8), (channels * 4, 16), (channels * 8, 32)),
        pooled=("mean",),
        parameters_m=parameters_m,
        licence="Apache-2.0",
        citation="Ravi et al. 2024, SAM 2, arXiv 2408.00714; Ryali et al. 2023, Hiera, arXiv 2306.00989",
        hub=HubFile(
            repo=f"facebook/sam{release}-hiera-{size.replace('_', '-')}", filename=f"sam{release}_hiera_{size}.pt"
        ),
        package="sam2",
        load=_load,
    )


SPECS = tuple(
    _spec(release, *size)
    for release in ("2", "2.1")
    for size in (
        ("tiny", "T", 96, 26.8),
        ("small", "S", 96, 33.9),
        ("base_plus", "B+", 112, 68.7),
        ("large", "L", 144, 212.1),
    )
)
