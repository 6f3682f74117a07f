"""Reads the image files of a folder dataset: JPEG, PNG, GeoTIFF. Whatever is wrong with one is its sample's fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.datasets._folder_tables import Row
from embedcache.datasets._places import centre_of
from embedcache.errors import EmbedcacheError, SampleError

GEOTIFF = {".tif", ".tiff"}


@contextmanager
def opened(sample_id: str, path: Path) -> Iterator[Any]:
    """Open a GeoTIFF with rasterio.

    Raises
    ------
    SampleError
        Whatever GDAL makes of a damaged file, also while it is being read.
    """
    import rasterio

    try:
        with rasterio.open(path) as file:
            yield file
    except EmbedcacheError:
        raise
    except Exception as error:  # GDAL's own kinds of error are not exported by rasterio
        raise SampleError(sample_id, f"its file {str(path)!r} cannot be read ({error})") from error


@contextmanager
def opened_picture(sample_id: str, path: Path) -> Iterator[Any]:
    """Open a JPEG or PNG with Pillow.

    Raises
    ------
    SampleError
        If it does not exist, is damaged, far too large, or holds 16 bits a colour, which Pillow would cut to 8.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            depth, kind = png_header(path)
            if depth == 16 and kind in {2, 6}:
                raise SampleError(sample_id, "it is a 16-bit colour PNG, which would be cut to 8 bits; use GeoTIFF")
            yield picture
    except FileNotFoundError as error:
        raise SampleError(sample_id, f"its file {str(path)!r} does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(sample_id, f"its file {str(path)!r} cannot be read ({error})") from error


def png_header(path: Path) -> tuple[int, int]:
    """Return bit depth and colour type of a PNG (0 grey, 2 RGB, 3 palette, 4 and 6 with alpha); zeros for others."""
    with path.open("rb") as file:
        header = file.read(26)
    return (header[24], header[25]) if header[:8] == b"\x89PNG\r\n\x1a\n" and len(header) == 26 else (0, 0)


def read_geotiff(
    row: Row, wanted: Sequence[int], count: int, locate: bool
) -> tuple[npt.NDArray[Any], float | None, float | None]:
    """Read some of ``count`` bands, counted from 0, with latitude and longitude of the centre where asked and known."""
    with opened(row.sample_id, row.path) as file:
        if file.count != count:
            raise SampleError(row.sample_id, f"it has {file.count} bands where the others have {count}")
        image = file.read([i + 1 for i in wanted])
        if not locate or file.crs is None:
            return image, None, None
        return image, *centre_of(tuple(file.transform)[:6], file.crs, file.height, file.width)


def read_picture(row: Row, wanted: Sequence[int], count: int) -> npt.NDArray[Any]:
    """Read some of ``count`` channels of a JPEG or PNG, counted from 0."""
    image = open_picture(row)
    if image.shape[0] != count:
        raise SampleError(row.sample_id, f"it has {image.shape[0]} channels where the others have {count}")
    return np.ascontiguousarray(image[list(wanted)])


def open_picture(row: Row) -> npt.NDArray[Any]:
    """Decode a JPEG or PNG to ``(channel, y, x)``; palettes and transparency become RGB."""
    with opened_picture(row.sample_id, row.path) as picture:
        picture.load()
        plain = picture.mode not in {"P", "RGBA", "CMYK", "1", "LA", "YCbCr"}
        array = np.asarray(picture if plain else picture.convert("RGB"))
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)
