"""What a backbone is: facts first, the model only when loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from embedcache.errors import SettingError
from embedcache_stores.schema import LevelSpec

if TYPE_CHECKING:
    import torch

TRUE_COLOUR_DN = 3000.0
"""Reflectance x 10 000 shown as white in the usual Sentinel-2 true-colour stretch.

The one constant that ties 8-bit pictures and reflectance together, in both directions: Satlas and EuroSAT-RGB were
made with about this stretch.
"""


@dataclass(frozen=True, kw_only=True)
class BandInput:
    """One input channel of a backbone, and how a digital number becomes what the model was trained on.

    ``model value = clip(dn * gain, 0, ceiling)`` (no clip without a ceiling), then ``(value - mean) / std``; a digital
    number (DN) is surface reflectance x 10 000.
    """

    name: str
    gain: float
    mean: float
    std: float
    ceiling: float | None = None
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A weights file on the Hugging Face hub."""

    repo: str
    filename: str
    revision: str | None = None


@dataclass(frozen=True)
class Features:
    """What a backbone makes of a batch of ``b`` images."""

    pooled: Mapping[str, torch.Tensor]
    """Pooled vectors by kind (``cls``, ``mean``), each ``(b, channels)``, of the last level."""
    levels: Sequence[torch.Tensor]
    """Feature maps, finest first, each ``(b, channels, height, width)`` on its native grid."""


class FeatureExtractor(Protocol):
    """A loaded, frozen backbone in evaluation mode."""

    @property
    def module(self) -> torch.nn.Module:
        """The model, to move to a device or count."""
        ...

    def __call__(
        self, images: torch.Tensor, time: torch.Tensor | None = None, location: torch.Tensor | None = None
    ) -> Features:
        """Encode images.

        Parameters
        ----------
        images
            ``(b, band, y, x)`` float32, normalised.
        time
            ``(b, 2)`` float32: year, day of year from 0. Used by backbones with ``uses_coords``.
        location
            ``(b, 2)`` float32: latitude, longitude in degrees.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Static facts of one backbone; reading them imports neither torch nor any model library."""

    name: str
    title: str
    bands: tuple[BandInput, ...]
    """Input bands in the model's own order."""
    size_multiple: int
    """Input height and width must be a multiple of this (px)."""
    level_facts: tuple[tuple[int, int], ...]
    """(channels, reduction) of each level, finest first, where the reduction is a whole number of pixels."""
    pooled: tuple[str, ...]
    uses_coords: bool = False
    """Whether it takes acquisition time and location (Prithvi's TL variants)."""
    parameters_m: float
    """Parameters in millions."""
    licence: str
    citation: str
    hub: HubFile | None
    package: str = ""
    """Distribution that holds the architecture; its version decides what random weights are. Empty: one's own file."""
    load: Callable[[BackboneSpec, tuple[str, ...], int, Mapping[str, Any] | None], FeatureExtractor]
    """``load(spec, bands, input_size, state)``: build for these bands, load ``state`` strictly (None: leave random)."""
    input_size: int = 224
    token_px: int = 16
    """Input pixels per token where most of the arithmetic happens; for estimates of time only."""
    version: str = ""
    """Of a plug-in's code: raised whenever it would make other features. Part of the fingerprint, as are its bands."""
    pretrained: Callable[[BackboneSpec, tuple[str, ...], int], FeatureExtractor] | None = None
    """``pretrained(spec, bands, input_size)``: a model library's own way to its weights, where there is no ``hub``."""
    reference: str = ""
    """What names it on the command line, where that is not its name. Set where it is found."""
    notes: tuple[str, ...] = ()
    """What was worked out about it, for people."""

    def facts(self) -> dict[str, Any]:
        """Return what decides features beside the weights: part of the fingerprint of what is not built in."""
        return {
            "version": self.version,
            "bands": [[b.name, b.gain, b.mean, b.std, b.ceiling] for b in self.bands],
            "levels": [list(facts) for facts in self.level_facts],
            "pooled": list(self.pooled),
        }

    def gflop(self, input_size: int) -> float:
        """Return about how many GFLOP one image takes: two per parameter and token (within 5 % of counted ones)."""
        return 2e-3 * self.parameters_m * (input_size / self.token_px) ** 2

    @property
    def pooled_channels(self) -> int:
        """Length of each pooled vector."""
        return self.level_facts[-1][0]

    def levels(self, input_size: int) -> tuple[LevelSpec, ...]:
        """Return the levels for a square input of ``input_size`` px, finest first.

        Raises
        ------
        SettingError
            If the model cannot take that size.
        """
        if input_size < self.size_multiple or input_size % self.size_multiple:
            low = max(self.size_multiple, input_size // self.size_multiple * self.size_multiple)
            raise SettingError(
                f"backbone {self.name!r} takes input sizes that are multiples of {self.size_multiple} px, "
                f"got {input_size}; try {low} or {low + self.size_multiple}."
            )
        return tuple(
            LevelSpec(
                index=i,
                channels=channels,
                reduction=float(reduction),
                height=input_size // reduction,
                width=input_size // reduction,
            )
            for i, (channels, reduction) in enumerate(self.level_facts)
        )
