"""One's own images: class folders, or a CSV of ``path,label[,split,...]``; JPEG, PNG or GeoTIFF with named bands."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.bands import WAVELENGTHS_UM, canonical_band, parse_bands
from embedcache.datasets._folder_tables import Row, rows_of_csv, rows_of_folders
from embedcache.datasets._places import centre_of
from embedcache.datasets._spec import (
    SPLITS,
    DatasetInfo,
    DatasetKind,
    OpenOptions,
    Sample,
    Units,
    digest,
    first_readable,
    has_nan,
    name_of,
)
from embedcache.errors import BandError, DatasetError, EmbedcacheError, SampleError, SettingError

_GEOTIFF = {".tif", ".tiff"}


class FolderSource:
    """An open folder or CSV of images; see :class:`embedcache.datasets._spec.SampleSource`."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        if options.partition is not None:
            raise SettingError(
                "--partition is for GEO-Bench datasets; a folder takes its splits from folders or the CSV."
            )
        if not path.exists():
            raise DatasetError(f"dataset {str(path)!r} does not exist.")
        table = rows_of_csv(path) if path.is_file() else rows_of_folders(path)
        self._rows = _with_splits(table.rows)
        self.sample_ids = [r.sample_id for r in self._rows]
        self.splits = [str(r.split) for r in self._rows]
        _refuse_duplicates(self.sample_ids, path)
        by_id = {row.sample_id: row for row in self._rows}
        _, (bands, units, georeferenced, named) = first_readable(
            self.sample_ids, lambda sample_id: _look_at(by_id[sample_id], options)
        )
        notes = list(table.notes)
        if any(r.split is None for r in table.rows):
            notes.append("no splits were given; samples were split 60/20/20 by a hash of their path, within each class")
        if not named:
            notes.append(
                "bands are taken to be RED, GREEN, BLUE, as in any three-band picture (--bands says otherwise)"
            )
        self.info = DatasetInfo(
            name=name_of(path),
            task="multilabel" if table.multilabel else "classification",
            bands=bands,
            band_sources=tuple(str(i + 1) for i in range(len(bands))),
            units=units,
            class_names=table.class_names,
            has_time=all(r.time is not None for r in self._rows),
            has_location=georeferenced or all(r.lat is not None and r.lon is not None for r in self._rows),
            notes=tuple(notes),
        )

    def read(self, index: int, bands: Sequence[str]) -> Sample:
        """Read one sample; see :class:`embedcache.datasets._spec.SampleSource`."""
        row = self._rows[index]
        wanted = [self.info.bands.index(b) for b in bands]
        if row.path.suffix.lower() in _GEOTIFF:
            image, lat, lon = _read_geotiff(row, wanted, len(self.info.bands), self.info.has_location)
        else:
            image, lat, lon = _read_picture(row, wanted, len(self.info.bands)), None, None
        if has_nan(image):
            raise SampleError(row.sample_id, "it holds NaN pixels")
        return Sample(
            sample_id=row.sample_id,
            image=image,
            target=row.target,
            time=row.time,
            lat=row.lat if row.lat is not None else lat,
            lon=row.lon if row.lon is not None else lon,
        )

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the image."""
        return (self._rows[index].path,)

    def revision(self, indices: Sequence[int]) -> Mapping[str, Any]:
        """Digest splits and labels; see SampleSource."""
        rows = [self._rows[i] for i in indices]
        missing = [r for r in rows if not r.path.is_file()]
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(rows)} images do not exist, the first is {str(missing[0].path)!r}. "
                "Paths in a CSV are relative to the CSV's folder."
            )
        return {
            "splits": digest(self.splits[i] for i in indices),
            "labels": digest(r.target if isinstance(r.target, int) else r.target.tolist() for r in rows),
        }


def _with_splits(rows: Sequence[Row]) -> list[Row]:
    """Give rows without a split one: 60/20/20 within each class, by a hash of the id, so it never depends on order."""
    if all(r.split is not None for r in rows):
        return list(rows)
    if any(r.split is not None for r in rows):
        first = next(r for r in rows if r.split is None)
        raise DatasetError(
            f"some samples have a split and {first.sample_id!r} has none; give all of them one, or none."
        )
    chosen: dict[str, str] = {}
    by_class: dict[str, list[Row]] = {}
    for row in rows:
        by_class.setdefault(str(row.target), []).append(row)
    for members in by_class.values():
        ordered = sorted(members, key=lambda r: hashlib.sha256(r.sample_id.encode()).digest())
        n_train, n_val = round(len(ordered) * 0.6), round(len(ordered) * 0.2)
        for i, row in enumerate(ordered):
            chosen[row.sample_id] = SPLITS[0] if i < n_train else SPLITS[1] if i < n_train + n_val else SPLITS[2]
    return [row.with_split(chosen[row.sample_id]) for row in rows]


def _refuse_duplicates(ids: Sequence[str], path: Path) -> None:
    twice = [i for i, n in Counter(ids).items() if n > 1]
    if twice:
        raise DatasetError(
            f"{str(path)!r} names {len(twice)} samples more than once, the first is {twice[0]!r}; ids must be unique."
        )


def _look_at(row: Row, options: OpenOptions) -> tuple[tuple[str, ...], Units, bool, bool]:
    """Bands, units, whether georeferenced, and whether the bands were named, judged by one image."""
    described: tuple[str, ...] = ()
    located = False
    if row.path.suffix.lower() in _GEOTIFF:
        with _opened(row) as file:
            count, dtype = file.count, np.dtype(file.dtypes[0])
            described = tuple(d or "" for d in file.descriptions)
            located = file.crs is not None
    else:
        picture = _open_picture(row)
        count, dtype = picture.shape[0], picture.dtype
    bands, named = _name_bands(row, count, described, options)
    return bands, options.units or _units_of(dtype, row), located, named


def _name_bands(row: Row, count: int, described: tuple[str, ...], options: OpenOptions) -> tuple[tuple[str, ...], bool]:
    if options.bands in {"corrected", "as-published"}:
        raise SettingError(f"--bands {options.bands} is for GEO-Bench datasets; name the bands, as in RED,GREEN,BLUE.")
    if options.bands:
        bands = parse_bands(options.bands)
        if len(bands) != count:
            raise BandError(f"--bands names {len(bands)} bands, but {str(row.path)!r} has {count}.")
        return bands, True
    standard = tuple(canonical_band(d) for d in described)
    if standard and all(d in WAVELENGTHS_UM for d in standard) and len(set(standard)) == count:
        return standard, True
    if count == 3 and not any(d in WAVELENGTHS_UM for d in standard):
        return ("RED", "GREEN", "BLUE"), False
    found = f" (they are described as {', '.join(repr(d) for d in described)})" if any(described) else ""
    raise BandError(
        f"{str(row.path)!r} has {count} bands without standard names{found}; name them in file order, for example "
        "--bands B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B10,B11,B12 or --bands BLUE,GREEN,RED,NIR."
    )


def _units_of(dtype: np.dtype[Any], row: Row) -> Units:
    if dtype == np.uint8:
        return "uint8"
    if dtype.kind in "iu":
        return "dn"
    raise SettingError(
        f"{str(row.path)!r} holds {dtype} pixels, whose scale cannot be guessed; say it with --units dn (reflectance x "
        "10000), reflectance (0-1), uint8 (0-255) or unit (a picture scaled to 0-1)."
    )


@contextmanager
def _opened(row: Row) -> Iterator[Any]:
    """Open a GeoTIFF; whatever GDAL makes of a damaged file is the sample's fault."""
    import rasterio

    try:
        with rasterio.open(row.path) as file:
            yield file
    except EmbedcacheError:
        raise
    except Exception as error:  # GDAL's own kinds of error are not exported by rasterio
        raise SampleError(row.sample_id, f"its file {str(row.path)!r} cannot be read ({error})") from error


def _read_geotiff(
    row: Row, wanted: Sequence[int], count: int, locate: bool
) -> tuple[npt.NDArray[Any], float | None, float | None]:
    with _opened(row) as file:
        if file.count != count:
            raise SampleError(row.sample_id, f"it has {file.count} bands where the others have {count}")
        image = file.read([i + 1 for i in wanted])
        if not locate or file.crs is None:
            return image, None, None
        return image, *centre_of(tuple(file.transform)[:6], file.crs, file.height, file.width)


def _read_picture(row: Row, wanted: Sequence[int], count: int) -> npt.NDArray[Any]:
    image = _open_picture(row)
    if image.shape[0] != count:
        raise SampleError(row.sample_id, f"it has {image.shape[0]} channels where the others have {count}")
    return np.ascontiguousarray(image[list(wanted)])


def _open_picture(row: Row) -> npt.NDArray[Any]:
    """Decode a JPEG or PNG to ``(channel, y, x)``; palettes and transparency become RGB."""
    from PIL import Image

    try:
        with Image.open(row.path) as picture:
            if _is_16_bit_colour(row.path):
                raise SampleError(row.sample_id, "it is a 16-bit colour PNG, which would be cut to 8 bits; use GeoTIFF")
            picture.load()
            plain = picture.mode not in {"P", "RGBA", "CMYK", "1", "LA", "YCbCr"}
            array = np.asarray(picture if plain else picture.convert("RGB"))
    except FileNotFoundError as error:
        raise SampleError(row.sample_id, f"its file {str(row.path)!r} does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(row.sample_id, f"its file {str(row.path)!r} cannot be read ({error})") from error
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


def _is_16_bit_colour(path: Path) -> bool:
    """Whether a PNG's header says 16 bits and colour: Pillow would read it as 8 bits without a word."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[:8] == b"\x89PNG\r\n\x1a\n" and header[24] == 16 and header[25] in {2, 6}


KIND = DatasetKind(name="folder", title="class folders, or a CSV of path,label,split", open=FolderSource)
