"""Galileo-nano as a plug-in: what a user writes to bring a backbone of their own; nothing of embedcache is edited.

    embedcache extract --dataset folder:chips --backbone galileo_nano:SPEC --weights galileo_nano/encoder.pt

The format is read off the published checkpoint (nasaharvest/galileo, MIT): groups of bands are tokens of their own, one
token per group and patch, with a quarter of the embedding each for group, time step, month and place. Sentinel-2 alone
is given here, of one moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embedcache.backbones import BackboneSpec, BandInput, FeatureExtractor, Features, fill

if TYPE_CHECKING:
    import torch

PATCH, WIDTH, DEPTH, HEADS = 8, 128, 4, 8
MONTH = 6
"""July, counted from 0: what Galileo assumes where no date is known."""

# Mean and standard deviation of its pretraining data (normalization.json, under "13"), in reflectance x 10 000.
STATISTICS = {
    "BLUE": (1395.3408730676722, 917.7041440370853),
    "GREEN": (1338.4026921784578, 913.2988423581528),
    "RED": (1343.09883810357, 1092.678723527555),
    "RED_EDGE_1": (1543.8607982512297, 1047.2206083460424),
    "RED_EDGE_2": (2186.2022069512263, 1048.0101611156767),
    "RED_EDGE_3": (2525.0932853316694, 1143.6903026819996),
    "NIR_BROAD": (2410.3377187373408, 1098.979177731649),
    "NIR_NARROW": (2750.2854646886753, 1204.472755085893),
    "SWIR_1": (2234.911100061487, 1145.9774063078878),
    "SWIR_2": (1474.5311266077113, 980.2429840007796),
}
NDVI = (0.2892116502999044, 0.2720939024500081)
# Each is scaled so that mean - 2 std becomes 0, and mean + 2 std becomes 1.
BANDS = tuple(
    BandInput(name=name, gain=1.0, mean=mean - 2 * std, std=4 * std, required=True)
    for name, (mean, std) in STATISTICS.items()
)
NAMES = tuple(STATISTICS)

# Groups that share a token: where they lie among the checkpoint's seven, and their bands; NDVI is worked out.
GROUPS = {
    "S2_RGB": (1, ("BLUE", "GREEN", "RED")),
    "S2_Red_Edge": (2, ("RED_EDGE_1", "RED_EDGE_2", "RED_EDGE_3")),
    "S2_NIR_10m": (3, ("NIR_BROAD",)),
    "S2_NIR_20m": (4, ("NIR_NARROW",)),
    "S2_SWIR": (5, ("SWIR_1", "SWIR_2")),
    "NDVI": (6, ("NDVI",)),
}
# Groups that are not given here (radar, terrain, weather ...), with their channels: there, so that the file fills all.
SPACE = {"SRTM": 2, "DW": 9, "WC": 5}
TIME = {"ERA5": 2, "TC": 3, "VIIRS": 1}
STATIC = {"LS": 1, "location": 3, "DW_static": 9, "WC_static": 5}


def build() -> torch.nn.Module:
    """Build the encoder under the checkpoint's own names."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (part(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
            return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(functional.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attn = nn.LayerNorm(WIDTH), Attention()
            self.norm2, self.mlp = nn.LayerNorm(WIDTH), Mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class PatchEmbedding(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.proj = nn.Conv2d(channels, WIDTH, PATCH, PATCH)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            given = {name: len(bands) for name, (_, bands) in GROUPS.items()}
            self.space_time_embed = nn.ModuleDict({k: PatchEmbedding(n) for k, n in {"S1": 2, **given}.items()})
            self.space_embed = nn.ModuleDict({k: PatchEmbedding(n) for k, n in SPACE.items()})
            self.time_embed = nn.ModuleDict({k: nn.Linear(n, WIDTH) for k, n in TIME.items()})
            self.static_embed = nn.ModuleDict({k: nn.Linear(n, WIDTH) for k, n in STATIC.items()})
            for kind, groups in (("s_t", 7), ("sp", 3), ("t", 3), ("st", 4)):
                self.register_parameter(f"{kind}_channel_embed", nn.Parameter(torch.zeros(groups, WIDTH // 4)))
            self.pos_embed = nn.Parameter(_waves(torch.arange(24.0), WIDTH // 4))
            self.month_embed = nn.Embedding(12, WIDTH // 4)
            self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            """Return each block's tokens, averaged over the groups: four maps ``(b, channels, y, x)``."""
            grid = images.shape[-1] // PATCH
            bands = {name: images[:, i] for i, name in enumerate(NAMES)} | {"NDVI": _ndvi(images)}
            place = _places(grid, images.device)  # (y * x, WIDTH / 4)
            tokens = []
            for name, (number, members) in GROUPS.items():
                patches = self.space_time_embed[name].proj(torch.stack([bands[b] for b in members], dim=1))
                same = (self.s_t_channel_embed[number], self.pos_embed[0], self.month_embed.weight[MONTH])
                code = torch.cat([*(part.expand(grid * grid, -1) for part in same), place], dim=1)
                tokens.append(patches.flatten(2).transpose(1, 2) + code)
            x = torch.cat(tokens, dim=1)
            levels = []
            for i, block in enumerate(self.blocks):
                x = block(x)
                out = self.norm(x) if i == DEPTH - 1 else x
                levels.append(out.unflatten(1, (len(GROUPS), grid, grid)).mean(dim=1).permute(0, 3, 1, 2))
            return levels

    return Encoder()


def _ndvi(images: torch.Tensor) -> torch.Tensor:
    """NDVI from the reflectances, which are made from the model's inputs again."""
    red, nir = (images[:, i] * BANDS[i].std + BANDS[i].mean for i in (NAMES.index("RED"), NAMES.index("NIR_BROAD")))
    ndvi = (nir - red) / (nir + red).clamp(min=1.0)
    mean, std = NDVI
    return (ndvi - (mean - 2 * std)) / (4 * std)


def _waves(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sines, then cosines, of positions; frequencies fall a quarter as fast as is usual (seen in ``pos_embed``)."""
    import torch

    rates = torch.arange(width // 2, device=positions.device) / (2 * width)
    angles = positions[:, None] / 10000**rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _places(grid: int, device: torch.device) -> torch.Tensor:
    """Code of each patch's place: column, then row, in pixels of 10 m."""
    import torch

    pixels = torch.arange(grid, device=device, dtype=torch.float32) * PATCH
    row, column = torch.meshgrid(pixels, pixels, indexing="ij")
    return torch.cat([_waves(axis.flatten(), WIDTH // 8) for axis in (column, row)], dim=1)


class GalileoNano:
    """What embedcache calls: images in, levels and a pooled vector out."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(
        self, images: torch.Tensor, time: torch.Tensor | None = None, location: torch.Tensor | None = None
    ) -> Features:
        levels = self.module(images)
        return Features(pooled={"mean": levels[-1].float().mean(dim=(2, 3))}, levels=levels)


def load(
    spec: BackboneSpec, bands: tuple[str, ...], input_size: int, state: Mapping[str, Any] | None
) -> FeatureExtractor:
    """Build it, and fill it from the published file: every tensor of the model, and nothing unknown left over."""
    module = build()
    if state is not None:
        fill(module, state)
    return GalileoNano(module)


SPEC = BackboneSpec(
    name="galileo_nano",
    title="Galileo nano",
    bands=BANDS,
    size_multiple=PATCH,
    level_facts=((WIDTH, PATCH),) * DEPTH,
    pooled=("mean",),
    parameters_m=1.038,
    licence="MIT",
    citation="Tseng et al. 2025, Galileo, arXiv 2502.09356",
    hub=None,
    load=load,
    input_size=64,
    token_px=PATCH,
    version="1",
)
