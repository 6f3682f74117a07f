"""DOFA: vision transformers whose patch embedding is generated from the wavelengths of the bands.

Architecture: torchgeo (MIT) behind TerraTorch's wrapper, ``models/backbones/dofa_vit.py``. Statistics: the authors'
``pretraining/datasets/ofall_dataset.py``, on Sentinel-2 as Satlas stores it: 8 bits, true colour for RGB and
reflectance x 10 000 / 8160 for the other bands (Satlas ``Normalization.md``; zhu-xlab/DOFA issue 13). Bands: the six
of the paper's Table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embedcache.backbones._spec import TRUE_COLOUR_DN, BackboneSpec, BandInput, FeatureExtractor, Features, HubFile
from embedcache.backbones._terratorch import terratorch_registry
from embedcache.backbones._vit import features_of_tokens, four_blocks
from embedcache.backbones._weights import fill

if TYPE_CHECKING:
    import torch

_PATCH = 16
_SATLAS_DN = 8160.0
_BANDS = tuple(
    BandInput(
        name=name,
        gain=255.0 / (TRUE_COLOUR_DN if visible else _SATLAS_DN),
        ceiling=255.0,
        mean=mean,
        std=std,
        required=visible,
    )
    for name, mean, std, visible in (
        ("RED", 114.11, 77.84, True),
        ("GREEN", 114.81, 69.97, True),
        ("BLUE", 126.64, 67.42, True),
        ("NIR_BROAD", 101.44, 60.30, False),
        ("SWIR_1", 72.33, 47.89, False),
        ("SWIR_2", 56.67, 42.56, False),
    )
)
_UNUSED = ("head.", "fc_norm.")  # the classifier that torchgeo's class carries; features never pass through it


class _Dofa:
    def __init__(self, model: Any) -> None:
        self.module: torch.nn.Module = model

    def __call__(
        self, images: torch.Tensor, time: torch.Tensor | None = None, location: torch.Tensor | None = None
    ) -> Features:
        return features_of_tokens(self.module(images), images.shape[-1], _PATCH)


def _load(
    spec: BackboneSpec, bands: tuple[str, ...], input_size: int, state: Mapping[str, Any] | None
) -> FeatureExtractor:
    depth = 24 if spec.name == "dofa_large" else 12
    model = terratorch_registry().build(
        f"{spec.name}_patch16_224",
        pretrained=False,
        model_bands=list(bands),
        out_indices=list(four_blocks(depth)),
        img_size=input_size,
    )
    if state is not None:
        own = {k.removeprefix("dofa_model."): v for k, v in state.items()}
        if "pos_embed" in own:
            own["pos_embed"] = _resized(own["pos_embed"], input_size // _PATCH)
        fill(model.dofa_model, own, not_needed=_UNUSED)
    return _Dofa(model)


def _resized(pos_embed: torch.Tensor, grid: int) -> torch.Tensor:
    """Resize position embeddings ``(1, 1 + y*x, channels)`` to another square grid, as TerraTorch does."""
    import torch.nn.functional as F  # noqa: N812

    old = round((pos_embed.shape[1] - 1) ** 0.5)
    if old == grid:
        return pos_embed
    patches = pos_embed[:, 1:].transpose(1, 2).unflatten(2, (old, old))
    patches = F.interpolate(patches, size=(grid, grid), mode="bilinear", align_corners=False)
    return F.pad(patches.flatten(2).transpose(1, 2), (0, 0, 1, 0)) + F.pad(pos_embed[:, :1], (0, 0, 0, grid * grid))


def _spec(size: str, *, parameters_m: float, dim: int, filename: str | None) -> BackboneSpec:
    return BackboneSpec(
        name=f"dofa_{size}",
        title=f"DOFA {size}",
        bands=_BANDS,
        size_multiple=_PATCH,
        level_facts=((dim, _PATCH),) * 4,
        pooled=("cls", "mean"),
        parameters_m=parameters_m,
        licence="CC-BY-4.0",
        citation="Xiong et al. 2024, DOFA, arXiv 2403.15356",
        hub=None
        if filename is None
        else HubFile(repo="torchgeo/dofa", filename=filename, revision="b8db318b64a90b9e085ec04ba8851233c5893666"),
        package="terratorch",
        load=_load,
    )


SPECS = (
    _spec("small", parameters_m=34.8, dim=384, filename=None),
    _spec("base", parameters_m=111.4, dim=768, filename="dofa_base_patch16_224-a0275954.pth"),
    _spec("large", parameters_m=337.1, dim=1024, filename="dofa_large_patch16_224-0ff904d3.pth"),
)
