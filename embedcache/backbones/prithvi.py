"""Prithvi-EO 1.0 and 2.0: vision transformers pretrained on six HLS bands; TL variants also take time and location.

Architecture, bands and statistics: TerraTorch (Apache-2.0), ``models/backbones/prithvi_vit.py``. Input: surface
reflectance x 10 000. Only the last block's output is layer-normed, as in TerraTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedcache.backbones._spec import BackboneSpec, BandInput, FeatureExtractor, Features, HubFile
from embedcache.backbones._terratorch import terratorch_registry
from embedcache.backbones._vit import features_of_tokens, four_blocks
from embedcache.backbones._weights import fill

if TYPE_CHECKING:
    import torch

_NAMES = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")


def _bands(means: tuple[float, ...], stds: tuple[float, ...]) -> tuple[BandInput, ...]:
    return tuple(
        BandInput(name=name, gain=1.0, mean=mean, std=std, required=name in {"BLUE", "GREEN", "RED"})
        for name, mean, std in zip(_NAMES, means, stds, strict=True)
    )


_V1 = _bands((775.0, 1081.0, 1229.0, 2497.0, 2204.0, 1611.0), (1282.0, 1270.0, 1399.0, 1368.0, 1292.0, 1155.0))
_V2 = _bands((1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0), (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0))


class _Prithvi:
    def __init__(self, model: Any, patch: int, blocks: tuple[int, ...]) -> None:
        self.module: torch.nn.Module = model
        self._forward = model.forward_features  # a real method; model.forward is a closure over the original weights
        self._patch = patch
        self._blocks = blocks

    def __call__(
        self, images: torch.Tensor, time: torch.Tensor | None = None, location: torch.Tensor | None = None
    ) -> Features:
        temporal = None if time is None else time[:, None, :]  # (b, frames, 2)
        outputs = self._forward(images, temporal_coords=temporal, location_coords=location)
        return features_of_tokens([outputs[i] for i in self._blocks], images.shape[-1], self._patch)


def _load(
    spec: BackboneSpec, bands: tuple[str, ...], input_size: int, state: Mapping[str, Any] | None
) -> FeatureExtractor:
    model = terratorch_registry().build(spec.name, pretrained=False, bands=list(bands), num_frames=1)
    if state is not None:
        fill(model, _encoder_state(state, model, bands))
    return _Prithvi(model, spec.size_multiple, four_blocks(len(model.blocks)))


def _encoder_state(state: Mapping[str, Any], model: Any, bands: tuple[str, ...]) -> dict[str, Any]:
    """Turn a published masked-autoencoder checkpoint into the encoder's own names, for the bands at hand."""
    whole = any(k.startswith("encoder.") for k in state)
    own = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.") or not whole}
    own = {k: v for k, v in own.items() if not k.startswith("decoder") and k != "mask_token"}
    if "pos_embed" in own:
        own["pos_embed"] = model.pos_embed  # fixed sine-cosine, depends on the number of frames only
    weight = own.get("patch_embed.proj.weight")
    if weight is not None and weight.ndim == 5 and weight.shape[1] == len(_NAMES):
        own["patch_embed.proj.weight"] = weight[:, [_NAMES.index(b) for b in bands]]
    return own


def _spec(size: str, *, hub: str, parameters_m: float, dim: int, patch: int = 16) -> BackboneSpec:
    return BackboneSpec(
        name=f"prithvi_eo_v2_{size}",
        title=f"Prithvi-EO-2.0 {hub}",
        bands=_V2,
        size_multiple=patch,
        level_facts=((dim, patch),) * 4,
        pooled=("cls", "mean"),
        uses_coords=size.endswith("_tl"),
        parameters_m=parameters_m,
        licence="Apache-2.0",
        citation="Szwarcman et al. 2024, Prithvi-EO-2.0, arXiv 2412.02732",
        hub=HubFile(
            repo=f"ibm-nasa-geospatial/Prithvi-EO-2.0-{hub}", filename=f"Prithvi_EO_V2_{hub.replace('-', '_')}.pt"
        ),
        package="terratorch",
        load=_load,
        token_px=patch,
    )


SPECS = (
    replace(
        _spec("100", hub="100M", parameters_m=86.2, dim=768),
        name="prithvi_eo_v1_100",
        title="Prithvi-EO-1.0 100M",
        bands=_V1,
        citation="Jakubik et al. 2023, Prithvi-EO-1.0, arXiv 2310.18660",
        hub=HubFile(repo="ibm-nasa-geospatial/Prithvi-EO-1.0-100M", filename="Prithvi_EO_V1_100M.pt"),
    ),
    _spec("tiny_tl", hub="tiny-TL", parameters_m=5.6, dim=192),
    _spec("100_tl", hub="100M-TL", parameters_m=86.2, dim=768),
    _spec("300", hub="300M", parameters_m=303.9, dim=1024),
    _spec("300_tl", hub="300M-TL", parameters_m=303.9, dim=1024),
    _spec("600", hub="600M", parameters_m=631.2, dim=1280, patch=14),
    _spec("600_tl", hub="600M-TL", parameters_m=631.2, dim=1280, patch=14),
)
