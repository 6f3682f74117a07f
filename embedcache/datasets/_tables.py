"""Lists the images of a table, CSV or (Geo)Parquet: a row an image, paths relative to the table's folder.

Columns: ``path``; one of ``label`` (several as ``forest|water``, or a list), ``label_NAME`` (0 or 1, a column for each
class) and ``mask``; and, where known, ``split``, ``class`` (name of an integer label), ``time``, ``lat`` and ``lon``,
or a ``geometry``. A table whose columns have other names is read with ``--dataset-arg path=file_name``.
"""

from __future__ import annotations

import csv
import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.datasets._folder_tables import SPLIT_NAMES, Row, Table, natural
from embedcache.datasets._parquet import read_parquet
from embedcache.errors import DatasetError, SettingError, unknown_name

ROLES = ("path", "label", "mask", "split", "class", "time", "lat", "lon", "geometry")
"""What columns may be to a dataset."""
_INDICATOR = "label_"
_MULTI = re.compile(r"[|;]")
_PRESENT = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0}


@dataclass(frozen=True)
class Line:
    """One row of a table, for reading and for complaining."""

    where: str
    """File and line."""
    cells: Mapping[str, Any]
    """By column: text, empty where there is none; or a list of text."""

    def text(self, column: str) -> str:
        """Return a cell that is no list, without blanks around it."""
        cell = self.cells.get(column) or ""
        if isinstance(cell, list):
            raise DatasetError(f"{self.where}: column {column} holds a list.")
        return str(cell).strip()

    def filled(self, column: str) -> str:
        """Return a cell that must not be empty."""
        if not self.text(column):
            whose = f" for {self.cells['path']!r}" if column != "path" else ""
            raise DatasetError(f"{self.where}: column {column} is empty{whose}.")
        return str(self.cells[column])


@dataclass(frozen=True)
class _Cells:
    """A table as it was read, its columns called by their roles."""

    lines: Sequence[Line]
    columns: Sequence[str]
    indicators: Mapping[str, str] = field(default_factory=dict)
    """Class of each column that says whether it is there."""
    places: Sequence[tuple[float, float] | None] | None = None
    """Latitude and longitude of each row's geometry."""
    notes: tuple[str, ...] = ()


def rows_of_table(path: Path, roles: Mapping[str, Any] | None = None, *, labelled: bool = True) -> Table:
    """List the images of a table.

    Parameters
    ----------
    path
        ``.csv``, or ``.parquet`` or ``.geoparquet``.
    roles
        Columns by role, where they are called otherwise: ``{"path": "file_name"}``; for ``label``, several columns of
        0 and 1, separated by commas.
    labelled
        Whether images need labels or masks.

    Raises
    ------
    DatasetError
        Naming the row and the column that is wrong.
    """
    cells = _named(path, _read(path), {role: str(column) for role, column in (roles or {}).items()})
    lines, columns = cells.lines, cells.columns
    masked = "mask" in columns
    if masked and ("label" in columns or cells.indicators):
        raise DatasetError(f"{str(path)!r} has both label and mask; leave out what heads shall not learn.")
    bare = not (masked or "label" in columns or cells.indicators)
    missing = [c for c in ("path", *(("label",) if bare and labelled else ())) if c not in columns]
    if missing:
        raise DatasetError(
            f"{str(path)!r} has no column {' nor '.join(missing)}; it has {', '.join(columns) or 'nothing'}. "
            "A dataset CSV or Parquet needs path,label or path,mask and may have split,class,time,lat,lon or geometry; "
            "columns of other names are given as --dataset-arg path=NAME."
        )
    if not lines:
        raise DatasetError(f"{str(path)!r} names no image.")
    rows = [_row_of(line, path, place) for line, place in zip(lines, cells.places or [None] * len(lines), strict=True)]
    if masked:
        masks = [path.parent / line.filled("mask") for line in lines]
        rows = [replace(row, mask=mask) for row, mask in zip(rows, masks, strict=True)]
        return Table(rows=tuple(rows), class_names=(), segmentation=True, notes=cells.notes)
    if bare:
        return Table(rows=tuple(rows), class_names=("unlabelled",), notes=cells.notes)
    if cells.indicators:
        names = tuple(cells.indicators.values())
        targets: list[Any] = [_indicated(line, tuple(cells.indicators)) for line in lines]
        multilabel = True
    else:
        labels = [_labels_of(line) for line in lines]
        multilabel = any(
            len(parts) != 1 or isinstance(line.cells["label"], list) for line, parts in zip(lines, labels, strict=True)
        )
        values = sorted({part for parts in labels for part in parts}, key=natural)
        position = {value: i for i, value in enumerate(values)}
        targets = [_multi_hot(parts, position) if multilabel else position[parts[0]] for parts in labels]
        names = _names_of(lines, labels, values, multilabel)
    return Table(
        rows=tuple(replace(row, target=target) for row, target in zip(rows, targets, strict=True)),
        class_names=names,
        multilabel=multilabel,
        notes=cells.notes,
    )


def read_lines(path: Path) -> tuple[list[tuple[int, dict[str, str]]], Sequence[str]]:
    """Return the filled lines of a CSV with their numbers, and its columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            lines = [(reader.line_num, {k: v for k, v in line.items() if isinstance(k, str)}) for line in reader]
            return lines, reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{str(path)!r} is not a CSV in UTF-8 ({error}).") from error


def _read(path: Path) -> _Cells:
    if path.suffix.lower() == ".csv":
        lines, columns = read_lines(path)
        return _Cells([Line(f"{str(path)!r} line {number}", line) for number, line in lines], list(columns))
    found = read_parquet(path)
    lines_ = [Line(f"{str(path)!r} row {number}", cells) for number, cells in enumerate(found.rows, start=1)]
    return _Cells(lines_, found.columns, places=found.places, notes=found.notes)


def _named(path: Path, cells: _Cells, roles: Mapping[str, str]) -> _Cells:
    """Call columns by their roles, and find those that say whether a class is there."""
    for role, column in roles.items():
        if role not in ROLES:
            raise unknown_name("column role", role, ROLES, f"Columns of a table may be {', '.join(ROLES)}.")
        for one in column.split(",") if role == "label" else [column]:
            if one not in cells.columns:
                raise SettingError(
                    f"--dataset-arg {role}={column}: {str(path)!r} has no column {one!r}; it has "
                    f"{', '.join(cells.columns)}."
                )
    several = roles.get("label", "").split(",") if "," in roles.get("label", "") else []
    new = {column: role for role, column in roles.items() if not (role == "label" and several)}
    taken = {role for role in new.values() if role in cells.columns and roles[role] != role}  # hidden by the renamed

    def renamed(line: Mapping[str, Any]) -> dict[str, Any]:
        return {new.get(k, k): v for k, v in line.items() if k in new or k not in taken}

    columns = list(renamed(dict.fromkeys(cells.columns)))
    indicators = {c: c.removeprefix(_INDICATOR) for c in several}
    if not several and "label" not in columns and "mask" not in columns:
        indicators = {c: c.removeprefix(_INDICATOR) for c in columns if c.startswith(_INDICATOR) and c != _INDICATOR}
    return replace(
        cells,
        lines=[Line(line.where, renamed(line.cells)) for line in cells.lines],
        columns=columns,
        indicators=indicators,
    )


def _row_of(line: Line, path: Path, place: tuple[float, float] | None) -> Row:
    """Return all of a row but its label."""
    name = line.filled("path")
    lat, lon = _degrees(line, "lat", 90), _degrees(line, "lon", 180)
    if lat is None and lon is None:
        lat, lon = place or _of_wkt(line) or (None, None)
    return Row(
        sample_id=Path(name).as_posix(), path=path.parent / name, split=_split_of(line), lat=lat, lon=lon,
        time=_time(line),
    )  # fmt: skip


def _labels_of(line: Line) -> list[str]:
    cell = line.cells["label"]
    if isinstance(cell, list):
        return cell  # of Parquet, where none of the classes may be there
    parts = [part.strip() for part in _MULTI.split(cell)]
    if "" in parts:
        raise DatasetError(f"{line.where}: column label is empty for {line.cells['path']!r}.")
    return parts


def _multi_hot(parts: Sequence[str], position: dict[str, int]) -> npt.NDArray[np.uint8]:
    target = np.zeros(len(position), dtype=np.uint8)
    target[[position[p] for p in parts]] = 1
    return target


def _indicated(line: Line, columns: Sequence[str]) -> npt.NDArray[np.uint8]:
    target = np.zeros(len(columns), dtype=np.uint8)
    for i, column in enumerate(columns):
        text = line.text(column)
        if text.lower() not in _PRESENT:
            raise DatasetError(
                f"{line.where}: {column} {text!r} is neither 0 nor 1; such a column says whether a class is there. "
                "One class an image belongs into a column 'label'."
            )
        target[i] = _PRESENT[text.lower()]
    return target


def _names_of(
    lines: Sequence[Line], labels: Sequence[Sequence[str]], values: Sequence[str], multilabel: bool
) -> tuple[str, ...]:
    """Class names in index order: the ``class`` column's where there is one, else the labels themselves."""
    named: dict[str, str] = {}
    for line, parts in zip(lines, labels, strict=True):
        name = line.cells.get("class", "")
        if name and not multilabel and named.setdefault(parts[0], name) != name:
            raise DatasetError(f"{line.where}: label {parts[0]!r} is called {name!r}, and {named[parts[0]]!r} above.")
    return tuple(named.get(value) or value for value in values)


def _split_of(line: Line) -> str | None:
    text = line.text("split").lower()
    if not text:
        return None
    if text not in SPLIT_NAMES:
        raise DatasetError(f"{line.where}: split {text!r} is not train, val or test.")
    return SPLIT_NAMES[text]


def _degrees(line: Line, column: str, most: float) -> float | None:
    text = line.text(column)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise DatasetError(f"{line.where}: {column} {text!r} is not a number.") from None
    if not abs(value) <= most:  # NaN fails this too
        raise DatasetError(f"{line.where}: {column} {text} is not between -{most} and {most} degrees.")
    return value


def _time(line: Line) -> float | None:
    text = line.text("time")
    if not text:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise DatasetError(f"{line.where}: time {text!r} is not a date such as 2020-06-30.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _of_wkt(line: Line) -> tuple[float, float] | None:
    """Centre of a geometry written as WKT in longitude and latitude."""
    text = line.text("geometry")
    if not text:
        return None
    import shapely

    from embedcache.datasets._places import checked

    try:
        west, south, east, north = shapely.from_wkt(text).bounds
    except (shapely.errors.GEOSException, ValueError):
        raise DatasetError(
            f"{line.where}: geometry {text[:40]!r} is not WKT, as in POINT (11.5 48.1), longitude first."
        ) from None
    lat, lon = checked((south + north) / 2, (west + east) / 2)
    if lat is None or lon is None:
        raise DatasetError(f"{line.where}: geometry {text[:40]!r} does not lie on Earth in degrees, longitude first.")
    return lat, lon
