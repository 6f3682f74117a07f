"""Where on Earth a sample's image lies: its coordinate reference system and transform, from its own file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.datasets._geobench_files import inside, parse_attribute
from embedcache.datasets._pickles import Stub
from embedcache.datasets._spec import SampleSource

_SAFE_CRS = re.compile(r"EPSG:\d{4,6}|[A-Z_]+\[.*", re.DOTALL)
"""A code or WKT: PROJ takes addresses and file names for a CRS too, and would open them."""


_WRONG_TRANSFORMS = {
    "m-nz-cattle": "pixels are recorded as 0.1 degrees wide",
    "m-NeonTree": "training images record their tile's corner",
}
"""GEO-Bench datasets whose centres are right, or near, and whose transforms are not."""


@dataclass(frozen=True)
class Georeference:
    """Of one image."""

    crs: Any
    """A rasterio CRS."""
    transform: tuple[float, float, float, float, float, float]
    """``x = a*column + b*row + c``, ``y = d*column + e*row + f``, in pixels of the file."""
    height: int
    width: int

    def resampled(self, height: int, width: int) -> Any:
        """Return the affine transform of a grid of other size over the same ground."""
        from rasterio.transform import Affine

        a, b, c, d, e, f = self.transform
        across, down = self.width / width, self.height / height
        return Affine(a * across, b * down, c, d * across, e * down, f)


def georeference_of(source: SampleSource, index: int) -> Georeference | None:
    """Return where a sample lies; None where its file does not say, or cannot be believed or read."""
    path = source.files(index)[0]
    if path.suffix.lower() in {".tif", ".tiff"}:
        return _of_geotiff(path)
    if path.suffix.lower() == ".hdf5" and source.info.has_location and source.info.name not in _WRONG_TRANSFORMS:
        return _of_geobench(path, source.sample_ids[index])
    return None


def _of_geotiff(path: Path) -> Georeference | None:
    import rasterio

    try:
        with rasterio.open(path) as file:
            if file.crs is None or file.transform.is_identity:
                return None
            return Georeference(file.crs, tuple(file.transform)[:6], file.height, file.width)
    except Exception:  # GDAL's own kinds of error are not exported by rasterio
        return None


def _of_geobench(path: Path, sample_id: str) -> Georeference | None:
    from rasterio.crs import CRS

    def look(file: Any) -> tuple[Any, Any]:
        return file.attrs.get("pickle"), [[d for d in file[k].shape if d != 1] for k in file]

    attribute, shapes = inside(path.parent, sample_id, look)
    for band in parse_attribute(sample_id, attribute).values():
        if not isinstance(band, dict):
            continue
        transform, crs = band.get("transform"), _crs_text(band.get("crs"))
        if not isinstance(transform, Stub) or len(transform.args) < 6 or crs is None:
            continue
        try:
            height, width = next(s for s in shapes if len(s) == 2)
            a, b, c, d, e, f = (float(v) for v in transform.args[:6])
            return Georeference(CRS.from_user_input(crs), (a, b, c, d, e, f), height, width)
        except Exception:  # damaged numbers, or whatever PROJ makes of a damaged CRS
            return None
    return None


def _crs_text(crs: Any) -> str | None:
    if isinstance(crs, Stub):
        known = crs.get("wkt") or crs.state
        crs = known if isinstance(known, str) else next((a for a in crs.args if isinstance(a, str)), None)
    return crs if isinstance(crs, str) and _SAFE_CRS.fullmatch(crs.strip()) else None
