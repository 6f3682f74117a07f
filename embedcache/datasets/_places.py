"""Latitude and longitude of an image's centre, from a transform and a coordinate reference system."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

_SAFE_CRS = re.compile(r"EPSG:\d{4,6}|[A-Z_]+\[.*", re.DOTALL)
"""A code or WKT. PROJ and GDAL take much else for a CRS, addresses and file names among it, which they would open."""


def centre_of(transform: Sequence[float], crs: Any, height: int, width: int) -> tuple[float | None, float | None]:
    """Return (latitude, longitude) in degrees, or (None, None) where they cannot be worked out.

    Parameters
    ----------
    transform
        The first six numbers of an affine transform: ``x = a*column + b*row + c``, ``y = d*column + e*row + f``.
    crs
        A rasterio CRS, or text from a file that is not trusted: ``EPSG:code`` or WKT, nothing else.
    height, width
        Size of the image in px.
    """
    from rasterio.warp import transform as project

    if isinstance(crs, str) and not _SAFE_CRS.fullmatch(crs.strip()):
        return None, None
    try:
        a, b, c, d, e, f = (float(v) for v in transform[:6])
        x = a * width / 2 + b * height / 2 + c
        y = d * width / 2 + e * height / 2 + f
        (lon,), (lat,) = project(crs, "EPSG:4326", [x], [y])[:2]
    except Exception:  # GDAL and PROJ raise kinds of their own, which rasterio does not export
        return None, None
    return checked(lat, lon)


def checked(lat: float, lon: float) -> tuple[float | None, float | None]:
    """Return the pair if it is a place on Earth, else (None, None)."""
    ok = math.isfinite(lat) and math.isfinite(lon) and abs(lat) <= 90 and abs(lon) <= 180
    return (float(lat), float(lon)) if ok else (None, None)
