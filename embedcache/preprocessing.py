"""From the pixels of a file to the numbers a backbone was trained on: bands, units, normalisation, size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.backbones._spec import TRUE_COLOUR_DN, BackboneSpec
from embedcache.bands import match_bands
from embedcache.datasets._spec import DatasetInfo
from embedcache.errors import BandError

if TYPE_CHECKING:
    import torch

DN_PER_UNIT: Final = {"dn": 1.0, "reflectance": 1e4, "uint8": TRUE_COLOUR_DN / 255, "unit": TRUE_COLOUR_DN}
"""Digital numbers (reflectance x 10 000) per unit of the file, by the dataset's units.

An 8-bit picture has no physical scale; it is taken for the usual true-colour stretch, in which white is a reflectance
of 0.3. A backbone that wants 8-bit RGB therefore gets an 8-bit picture back unchanged.
"""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Plain numbers that turn file values into model inputs; part of a store's fingerprint.

    Per band: ``clip(value * gain, 0, ceiling)`` (no clip without a ceiling), ``(. - mean) / std``; then a bilinear
    resize, anti-aliased where it shrinks, to a square of ``input_size`` px.
    """

    bands: tuple[str, ...]
    """What the backbone takes each channel for, in its own order."""
    source_bands: tuple[str, ...]
    """The dataset's band that fills each channel."""
    gain: tuple[float, ...]
    ceiling: tuple[float | None, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int
    resize: str = "bilinear-antialias"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form for the provenance."""
        return {
            "bands": list(self.bands),
            "source_bands": list(self.source_bands),
            "gain": list(self.gain),
            "ceiling": list(self.ceiling),
            "mean": list(self.mean),
            "std": list(self.std),
            "input_size": self.input_size,
            "resize": self.resize,
        }

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Prepare a batch of equally sized images on whatever device they are.

        Parameters
        ----------
        images
            ``(b, band, y, x)``, any real dtype, in file units.

        Returns
        -------
        torch.Tensor
            ``(b, band, input_size, input_size)`` float32.
        """
        import torch
        import torch.nn.functional as F  # noqa: N812

        def per_band(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=images.device)[:, None, None]

        x = images.to(torch.float32) * per_band(self.gain)
        if any(c is not None for c in self.ceiling):
            top = per_band([float("inf") if c is None else c for c in self.ceiling])
            floor = per_band([float("-inf") if c is None else 0.0 for c in self.ceiling])
            x = torch.minimum(torch.maximum(x, floor), top)
        x = (x - per_band(self.mean)) / per_band(self.std)
        if x.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        return x


def plan_preprocessing(
    backbone: BackboneSpec, dataset: DatasetInfo, input_size: int
) -> tuple[Preprocessing, list[str]]:
    """Work out the preprocessing of a dataset for a backbone, and which of the backbone's bands the data lack.

    Raises
    ------
    BandError
        If a band that the backbone cannot do without is missing.
    """
    try:
        pairs, absent = match_bands(
            [b.name for b in backbone.bands], [b.name for b in backbone.bands if b.required], dataset.bands
        )
    except BandError as error:
        raise BandError(f"backbone {backbone.name!r} cannot read dataset {dataset.name!r}: {error}") from error
    by_name = {b.name: b for b in backbone.bands}
    used = [by_name[wanted] for wanted, _ in pairs]
    scale = DN_PER_UNIT[dataset.units]
    return Preprocessing(
        bands=tuple(wanted for wanted, _ in pairs),
        source_bands=tuple(source for _, source in pairs),
        gain=tuple(b.gain * scale for b in used),
        ceiling=tuple(b.ceiling for b in used),
        mean=tuple(b.mean for b in used),
        std=tuple(b.std for b in used),
        input_size=input_size,
    ), absent


def resize_mask(mask: npt.NDArray[Any], size: int) -> npt.NDArray[np.int16]:
    """Resize a mask ``(y, x)`` to a square by the nearest pixel, so that no label is invented."""
    rows = ((np.arange(size) + 0.5) * mask.shape[0] / size).astype(np.int64)
    columns = ((np.arange(size) + 0.5) * mask.shape[1] / size).astype(np.int64)
    return mask[np.ix_(rows, columns)].astype(np.int16)
