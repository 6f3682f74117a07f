"""Reads a Parquet table as text, and the centres of its geometries where it is GeoParquet."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.datasets._places import checked
from embedcache.errors import DatasetError


@dataclass(frozen=True)
class ParquetRows:
    """A whole table."""

    columns: Sequence[str]
    """Without geometries."""
    rows: Sequence[dict[str, Any]]
    """Cells by column: text, empty where null or NaN; lists are lists of text."""
    places: Sequence[tuple[float, float] | None] | None
    """Latitude and longitude of the centre of each row's geometry, None where it has none; None without geometries."""
    notes: tuple[str, ...] = ()


def read_parquet(path: Path) -> ParquetRows:
    """Read a table with PyArrow, geometries with GeoPandas.

    Raises
    ------
    DatasetError
        If it is no Parquet, or a geometry lies nowhere on Earth.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        known = {*(file.schema_arrow.metadata or {})}
        names = [f.name for f in file.schema_arrow if not _is_binary(f.type)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise DatasetError(f"{str(path)!r} has two columns called {twice[0]!r}.")
        table = file.read(columns=names)
        geometry = _geometries(path) if b"geo" in known else None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{str(path)!r} cannot be read as Parquet ({_first_line(error)}).") from error
    columns = {name: [_text(cell) for cell in table.column(name).to_pylist()] for name in names}
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if geometry is None:
        return ParquetRows(names, rows, None)
    if geometry.crs is None:
        note = "its geometries have no coordinate reference system, so locations are not known"
        return ParquetRows(names, rows, None, (f"{path.name!r}: {note}",))
    return ParquetRows(names, rows, _centres(geometry, path))


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as is_

    nested = is_.is_struct(kind) or (is_.is_list(kind) and is_.is_nested(kind.value_type))
    return bool(is_.is_binary(kind) or is_.is_large_binary(kind) or nested)


def _geometries(path: Path) -> Any:
    import geopandas

    return geopandas.read_parquet(path).geometry


def _centres(geometry: Any, path: Path) -> list[tuple[float, float] | None]:
    """Centre of each geometry's bounds, worked out in its own coordinate reference system."""
    import geopandas

    bounds = geometry.bounds
    middle = geopandas.points_from_xy((bounds.minx + bounds.maxx) / 2, (bounds.miny + bounds.maxy) / 2)
    points = geopandas.GeoSeries(middle, crs=geometry.crs).to_crs(4326)
    absent = (geometry.isna() | geometry.is_empty).to_numpy()
    out: list[tuple[float, float] | None] = []
    for number, (x, y, none) in enumerate(zip(points.x, points.y, absent, strict=True), start=1):
        lat, lon = (None, None) if none else checked(y, x)
        if not none and (lat is None or lon is None):
            raise DatasetError(
                f"{str(path)!r} row {number}: column {geometry.name} lies nowhere on Earth in its coordinate reference "
                f"system {geometry.crs.to_string()[:40]}."
            )
        out.append((lat, lon) if lat is not None and lon is not None else None)
    return out


def _text(cell: Any) -> Any:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, list):
        return [str(_text(part)) for part in cell]
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return cell.isoformat() if isinstance(cell, datetime.date) else str(cell)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
