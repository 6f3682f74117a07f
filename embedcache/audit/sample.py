"""A sample of images, read and thinned out, so that a whole dataset can be judged from a few megabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from embedcache.bands import WAVELENGTHS_UM
from embedcache.datasets._spec import SampleSource
from embedcache.errors import SampleError

MOST_IMAGES: Final = 32
_FEWEST_IMAGES = 4
_MOST_VALUES = 64 << 20
"""Pixels times bands that are read, unless the fewest images hold more."""
_PIXELS = 4096
"""Pixels kept of each image, on an even grid."""
_GRID = 8
"""Each image is cut into 8 x 8 parts, or fewer of 8 x 8 px, whose mean spectra are judged: noise averages out."""
_PART_PX = 8
_FILL_BELOW: Final = {"dn": -900.0, "reflectance": -0.5, "uint8": -0.5, "unit": -0.5}
"""No reflectance is as dark as this, and no picture: -9999, -32768 and the like stand for no data."""


@dataclass(frozen=True, kw_only=True)
class ImageSample:
    """Some images of a dataset, as they are in its files."""

    bands: tuple[str, ...]
    """Those that the backbone reads, then others of known wavelength."""
    used: frozenset[str]
    pixels: npt.NDArray[np.float64]
    """``(band, pixel)`` over all images; NaN where a pixel is filled, or a band that is not used cannot be read."""
    parts: npt.NDArray[np.float64]
    """``(band, part)``: mean over each part of each image; NaN where all of it is filled."""
    constant: npt.NDArray[np.bool_]
    """``(band, image)``: whether all pixels of an image are equal."""
    filled: npt.NDArray[np.float64]
    """``(band,)``: share of pixels that hold a value which stands for no data."""
    empty: float
    """Share of pixels at which every used band is 0 or filled."""
    unreadable: tuple[SampleError, ...]

    @property
    def images(self) -> int:
        """How many were read."""
        return int(self.constant.shape[1])

    def __getitem__(self, band: str) -> npt.NDArray[np.float64]:
        """Return a band's pixels without the filled ones; empty where it could not be read."""
        values: npt.NDArray[np.float64] = self.pixels[self.bands.index(band)]
        known: npt.NDArray[np.float64] = values[~np.isnan(values)]
        return known


def read_sample(source: SampleSource, indices: Sequence[int], used: Sequence[str]) -> ImageSample:
    """Read images evenly spaced over ``indices``: the same ones every time, and fewer if they are large.

    Raises
    ------
    SampleError
        If none of them can be read.
    """
    used = tuple(dict.fromkeys(used))
    bands = (*used, *(b for b in source.info.bands if b in WAVELENGTHS_UM and b not in used))
    below = _FILL_BELOW[source.info.units]
    thinned, unreadable = [], []
    for index in _chosen(source, indices, used):
        try:
            thinned.append(_thin(_read(source, index, used, bands), len(used), below))
        except SampleError as error:
            unreadable.append(error)
    if not thinned:
        raise unreadable[0]
    weights = np.array([t.weight for t in thinned], dtype=np.float64)
    return ImageSample(
        bands=bands,
        used=frozenset(used),
        pixels=np.concatenate([t.pixels for t in thinned], axis=1),
        parts=np.concatenate([t.parts for t in thinned], axis=1),
        constant=np.stack([t.constant for t in thinned], axis=1),
        filled=np.average([t.filled for t in thinned], axis=0, weights=weights),
        empty=float(np.average([t.empty for t in thinned], weights=weights)),
        unreadable=tuple(unreadable),
    )


def _chosen(source: SampleSource, indices: Sequence[int], used: Sequence[str]) -> Iterator[int]:
    """Yield evenly spaced samples; the size of the first that can be read says how many."""
    most = MOST_IMAGES
    for index in indices[:MOST_IMAGES]:
        try:
            values = source.read(index, used).image[0].size * len(source.info.bands)
        except SampleError:
            continue
        most = min(MOST_IMAGES, max(_FEWEST_IMAGES, _MOST_VALUES // values))
        break
    count = min(most, len(indices))
    for i in range(count):
        yield indices[i * len(indices) // count]


def _read(source: SampleSource, index: int, used: Sequence[str], bands: Sequence[str]) -> npt.NDArray[np.float64]:
    """Read ``(band, y, x)``; bands that are not used are NaN where they make the image unusable."""
    try:
        return source.read(index, bands).image.astype(np.float64)
    except SampleError:
        if len(bands) == len(used):
            raise
    image = source.read(index, used).image.astype(np.float64)
    return np.concatenate([image, np.full((len(bands) - len(used), *image.shape[1:]), np.nan)])


@dataclass(frozen=True, kw_only=True)
class _Thinned:
    pixels: npt.NDArray[np.float64]
    parts: npt.NDArray[np.float64]
    constant: npt.NDArray[np.bool_]
    filled: npt.NDArray[np.float64]
    empty: float
    weight: int


def _thin(image: npt.NDArray[np.float64], used: int, below: float) -> _Thinned:
    filled = (image < below) | (image == 65535)
    constant = image.min(axis=(1, 2)) == image.max(axis=(1, 2))
    empty = ((image[:used] == 0) | filled[:used]).all(axis=0)
    image = np.where(filled, np.nan, image)
    step = max(1, int(np.ceil((image[0].size / _PIXELS) ** 0.5)))
    return _Thinned(
        pixels=image[:, step // 2 :: step, step // 2 :: step].reshape(len(image), -1),
        parts=_means(image),
        constant=constant,
        filled=filled.mean(axis=(1, 2)),
        empty=float(empty.mean()),
        weight=empty.size,
    )


def _means(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over each of at most 8 x 8 parts, ``(band, part)``; NaN where a part has no value."""
    known = ~np.isnan(image)
    total, count = np.where(known, image, 0.0), known.astype(np.float64)
    for axis in (1, 2):
        length = image.shape[axis]
        parts = max(1, min(_GRID, length // _PART_PX))
        starts = np.arange(parts) * length // parts
        total, count = (np.add.reduceat(a, starts, axis=axis) for a in (total, count))
    means = np.full(total.shape, np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return means.reshape(len(image), -1)
