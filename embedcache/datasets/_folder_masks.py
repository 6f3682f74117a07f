"""Reads masks: numbers of a PNG or GeoTIFF, indices of a palette, or colours, as ``classes.csv`` says."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.datasets._class_table import CLASS_TABLE, IGNORED, ClassTable, shown
from embedcache.datasets._folder_images import GEOTIFF, opened, opened_picture, png_header
from embedcache.datasets._folder_tables import Row
from embedcache.datasets._spec import first_readable
from embedcache.errors import DatasetError, SampleError

_UNNAMED_MOST = 254
"""Largest value that is taken for a class number without being told: 255 is as often 'no label' as the only class."""
_SCAN_THREADS = 4


@dataclass(frozen=True)
class RawMask:
    """A mask as its file has it."""

    values: npt.NDArray[np.int64]
    """``(y, x)``: numbers, or colours as 0xRRGGBB."""
    colours: bool
    nodata: int | None = None
    """Value that the file itself declares to be none."""


def load_mask(row: Row, *, colours: bool = False, shape: Sequence[int] | None = None) -> RawMask:
    """Read the mask of a row; of a palette its indices, or with ``colours`` its colours.

    Raises
    ------
    SampleError
        If it cannot be read, is not ``shape``, or is of a kind that does not hold labels.
    """
    assert row.mask is not None
    if row.mask.suffix.lower() in GEOTIFF:
        return _load_geotiff(row, row.mask, shape)
    return _load_picture(row, row.mask, colours, shape)


def labels_of(raw: RawMask, row: Row, table: ClassTable) -> npt.NDArray[np.int16]:
    """Turn the values of a mask into classes.

    Raises
    ------
    SampleError
        If it holds values that the table does not name, with the value, the file and the number of pixels.
    """
    if raw.colours != table.colours:
        kinds = ("numbers", "colours")
        raise SampleError(
            row.sample_id,
            f"its mask {str(row.mask)!r} holds {kinds[raw.colours]}, and {table.origin} names {kinds[table.colours]}",
        )
    known = np.array(table.values, dtype=np.int64)
    at = np.searchsorted(known, raw.values).clip(max=len(known) - 1)
    named = known[at] == raw.values
    labels = np.where(named, np.array(table.classes, dtype=np.int16)[at], np.int16(IGNORED))
    strange = ~named & (raw.values >= 0)
    if raw.nodata is not None:
        strange &= raw.values != raw.nodata
        if not table.stated:  # a table that names the file's nodata as a class is believed
            labels[raw.values == raw.nodata] = IGNORED
    if strange.any():
        found, counts = np.unique(raw.values[strange], return_counts=True)
        most = int(counts.argmax())
        more = f" and {len(found) - 1} more values" if len(found) > 1 else ""
        raise SampleError(
            row.sample_id,
            f"its mask {str(row.mask)!r} holds {shown(int(found[most]), raw.colours)} in {counts[most]} px{more}, "
            f"which {table.origin} does not name",
        )
    return labels


def scan_classes(rows: Sequence[Row], folder: Path) -> ClassTable:
    """Find the classes of masks without a table: ``class 0`` to the largest number in any of them.

    Raises
    ------
    DatasetError
        If the masks hold colours, numbers beyond 254, or none; it says what to write into a table.
    SampleError
        If none of the first masks can be read.
    """
    by_id = {row.sample_id: row for row in rows}
    first_readable(list(by_id), lambda sample_id: load_mask(by_id[sample_id]))
    with ThreadPoolExecutor(_SCAN_THREADS, "embedcache-masks") as pool:
        found = [f for f in pool.map(_look, rows) if f is not None]
    table = f"write {str(folder / CLASS_TABLE)!r} with the columns class,value,ignore"
    for row, values, colours in found:
        if colours:
            some = ", ".join(shown(v, colours=True) for v in values[:8])
            raise DatasetError(
                f"mask {str(row.mask)!r} holds colours ({some}), whose classes nobody can guess; {table}, "
                "as in 'Building,#3C1098,'."
            )
    every = sorted({value for _, values, _ in found for value in values})
    if not every:
        raise DatasetError(f"no mask of {str(folder)!r} has a labelled pixel.")
    if every[-1] > _UNNAMED_MOST:
        row = next(row for row, values, _ in found if every[-1] in values)
        some = ", ".join(map(str, every[:8])) + (" ..." if len(every) > 8 else "")
        raise DatasetError(
            f"the masks of {str(folder)!r} hold {some}, and {every[-1]} (in {str(row.mask)!r}) may be a class or mean "
            f"that there is none; {table}, as in 'water,1,' and 'none,{every[-1]},ignore'."
        )
    numbers = tuple(range(every[-1] + 1))
    return ClassTable(
        names=tuple(f"class {n}" for n in numbers),
        values=numbers,
        classes=numbers,
        colours=False,
        stated=False,
        origin=f"no {CLASS_TABLE} is there: what was found when all masks were read",
        notes=(f"classes 0 to {numbers[-1]} were found by reading all masks; {CLASS_TABLE} (class,value) names them",),
    )


def _look(row: Row) -> tuple[Row, list[int], bool] | None:
    """Return the labels in a mask, and whether they are colours; None where it cannot be read: that is told later."""
    try:
        raw = load_mask(row)
    except SampleError:
        return None
    values = raw.values[(raw.values >= 0) & (raw.values != (-1 if raw.nodata is None else raw.nodata))]
    if raw.colours or (values.size and values.max() > 65535):
        return row, [int(v) for v in np.unique(values)], raw.colours
    return row, [int(v) for v in np.flatnonzero(np.bincount(values))], False


def _load_geotiff(row: Row, path: Path, shape: Sequence[int] | None) -> RawMask:
    with opened(row.sample_id, path) as file:
        _check_size(row, (file.height, file.width), shape)
        dtypes = {np.dtype(d) for d in file.dtypes}
        if file.count == 1 and all(d.kind in "iu" and d.itemsize <= 4 for d in dtypes):
            nodata = int(file.nodata) if file.nodata is not None and float(file.nodata).is_integer() else None
            return RawMask(file.read(1).astype(np.int64), colours=False, nodata=nodata)
        if file.count == 3 and dtypes == {np.dtype(np.uint8)}:
            return RawMask(_packed(np.moveaxis(file.read(), 0, 2)), colours=True)
        kinds = ", ".join(sorted(str(d) for d in dtypes))
        raise SampleError(
            row.sample_id,
            f"its mask {str(path)!r} has {file.count} bands of {kinds}; a mask has one of whole numbers, or three of "
            "8-bit colour",
        )


def _load_picture(row: Row, path: Path, colours: bool, shape: Sequence[int] | None) -> RawMask:
    with opened_picture(row.sample_id, path) as picture:
        _check_size(row, (picture.height, picture.width), shape)
        if picture.format == "JPEG":
            raise SampleError(row.sample_id, f"its mask {str(path)!r} is a JPEG, which blurs labels; use PNG or TIFF")
        picture.load()
        if picture.mode == "RGBA" and picture.getextrema()[3][0] < 255:
            raise SampleError(row.sample_id, f"its mask {str(path)!r} is partly transparent, which is no label")
        if picture.mode in {"RGB", "RGBA"} or (picture.mode == "P" and colours):
            return RawMask(_packed(np.asarray(picture.convert("RGB"))), colours=True)
        if picture.mode not in {"1", "L", "P", "I", "I;16", "I;16B"}:
            raise SampleError(
                row.sample_id, f"its mask {str(path)!r} holds pixels of kind {picture.mode}, not numbers or colours"
            )
        values = np.asarray(picture).astype(np.int64)
        depth, kind = png_header(path)
        if kind == 0 and depth in {2, 4}:
            values //= 255 // (2**depth - 1)  # Pillow stretches such greys to 0..255
        return RawMask(values, colours=False)


def _check_size(row: Row, size: tuple[int, int], shape: Sequence[int] | None) -> None:
    from PIL import Image

    if shape is not None and size != tuple(shape):
        raise SampleError(
            row.sample_id, f"its mask {str(row.mask)!r} is {size[1]} x {size[0]} px, its image {shape[1]} x {shape[0]}"
        )
    if size[0] * size[1] > 2 * (Image.MAX_IMAGE_PIXELS or 10**9):  # where Pillow refuses pictures, too
        raise SampleError(row.sample_id, f"its mask {str(row.mask)!r} says that it is {size[1]} x {size[0]} px")


def _packed(pixels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Turn ``(y, x, 3)`` colours into 0xRRGGBB."""
    wide = pixels.astype(np.int64)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
