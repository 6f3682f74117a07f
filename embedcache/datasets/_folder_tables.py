"""Lists the images of a folder dataset with their labels and splits, from class folders or from a CSV."""

from __future__ import annotations

import csv
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.errors import DatasetError

_IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_MULTI = re.compile(r"[|;]")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a folder dataset."""

    sample_id: str
    """Path relative to the dataset, with forward slashes."""
    path: Path
    target: int | npt.NDArray[np.uint8]
    split: str | None = None
    time: float | None = None
    lat: float | None = None
    lon: float | None = None

    def with_split(self, split: str) -> Row:
        """Return the same row in a split."""
        return replace(self, split=split)


@dataclass(frozen=True, kw_only=True)
class Table:
    """All images of a folder dataset."""

    rows: tuple[Row, ...]
    class_names: tuple[str, ...]
    multilabel: bool = False
    notes: tuple[str, ...] = ()


def rows_of_folders(root: Path) -> Table:
    """List ``root/<class>/<image>`` or ``root/<split>/<class>/<image>``.

    Raises
    ------
    DatasetError
        If there is no class folder, or one is empty.
    """
    folders = _folders(root)
    if folders and all(f.name.lower() in _SPLIT_NAMES for f in folders):
        tops: list[tuple[str | None, Path]] = [(_SPLIT_NAMES[f.name.lower()], f) for f in folders]
    else:
        tops = [(None, root)]
    found: list[tuple[str | None, str, Path]] = []
    for split, top in tops:
        classes = _folders(top)
        if not classes:
            csvs = sorted(p.name for p in root.glob("*.csv"))
            hint = f" There is {csvs[0]!r}: pass folder:{root / csvs[0]} to use it." if csvs else ""
            raise DatasetError(
                f"{str(top)!r} holds no class folders; a folder dataset is <class>/<image>, <split>/<class>/<image>, "
                f"or a CSV of path,label,split.{hint}"
            )
        for folder in classes:
            images = sorted((p for p in folder.iterdir() if p.suffix.lower() in _IMAGES), key=lambda p: natural(p.name))
            if not images:
                raise DatasetError(
                    f"class folder {str(folder)!r} holds no image ({', '.join(sorted(_IMAGES))}); fill it or remove it."
                )
            found += [(split, folder.name, image) for image in images]
    names = tuple(sorted({name for _, name, _ in found}, key=natural))
    rows = tuple(
        Row(sample_id=p.relative_to(root).as_posix(), path=p, target=names.index(name), split=split)
        for split, name, p in found
    )
    csvs = sorted(p.name for p in root.glob("*.csv"))
    notes = (
        (f"{csvs[0]!r} is not used; pass folder:{root / csvs[0]} to take labels and splits from it",) if csvs else ()
    )
    return Table(rows=rows, class_names=names, notes=notes)


def rows_of_csv(path: Path) -> Table:
    """List the images of a CSV with the columns ``path,label`` and, where known, ``split,class,lat,lon,time``.

    Several labels of one image are separated by ``|`` or ``;``. ``class`` gives the name of an integer ``label``.

    Raises
    ------
    DatasetError
        Naming the line and the column that is wrong.
    """
    lines, columns = _read_lines(path)
    missing = [c for c in ("path", "label") if c not in columns]
    if missing:
        raise DatasetError(
            f"{str(path)!r} has no column {' nor '.join(missing)}; it has {', '.join(columns) or 'nothing'}. "
            "A dataset CSV needs path,label and may have split,class,lat,lon,time."
        )
    if not lines:
        raise DatasetError(f"{str(path)!r} names no image.")
    labels = [_labels_of(line, path, number) for number, line in lines]
    multilabel = any(len(parts) != 1 for parts in labels)
    values = sorted({part for parts in labels for part in parts}, key=natural)
    position = {value: i for i, value in enumerate(values)}
    rows = []
    for (number, line), parts in zip(lines, labels, strict=True):
        target: Any = position[parts[0]] if not multilabel else _multi_hot(parts, position)
        rows.append(
            Row(
                sample_id=Path(line["path"]).as_posix(),
                path=path.parent / line["path"],
                target=target,
                split=_split_of(line, path, number),
                lat=_degrees(line, "lat", 90, path, number),
                lon=_degrees(line, "lon", 180, path, number),
                time=_time(line, path, number),
            )
        )
    return Table(
        rows=tuple(rows), class_names=_names_of(path, lines, labels, values, multilabel), multilabel=multilabel
    )


def natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which ``img_2`` comes before ``img_10``."""
    parts = tuple((0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", text) if p)
    return (*parts, (2, text))  # "1", "01" and "001" count the same; the text keeps them in one order


def _folders(root: Path) -> list[Path]:
    return sorted(
        (p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: natural(p.name)
    )


def _read_lines(path: Path) -> tuple[list[tuple[int, dict[str, str]]], Sequence[str]]:
    """Return the filled lines of a CSV with their numbers, and its columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            lines = [(reader.line_num, {k: v for k, v in line.items() if isinstance(k, str)}) for line in reader]
            return lines, reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{str(path)!r} is not a CSV in UTF-8 ({error}).") from error


def _labels_of(line: dict[str, str], path: Path, number: int) -> list[str]:
    if not line["path"].strip():
        raise DatasetError(f"{str(path)!r} line {number}: column path is empty.")
    parts = [part.strip() for part in _MULTI.split(line["label"])]
    if "" in parts:
        raise DatasetError(f"{str(path)!r} line {number}: column label is empty for {line['path']!r}.")
    return parts


def _multi_hot(parts: Sequence[str], position: dict[str, int]) -> npt.NDArray[np.uint8]:
    target = np.zeros(len(position), dtype=np.uint8)
    target[[position[p] for p in parts]] = 1
    return target


def _names_of(
    path: Path,
    lines: Sequence[tuple[int, dict[str, str]]],
    labels: Sequence[Sequence[str]],
    values: Sequence[str],
    multilabel: bool,
) -> tuple[str, ...]:
    """Class names in index order: the ``class`` column's where there is one, else the labels themselves."""
    named: dict[str, str] = {}
    for (number, line), parts in zip(lines, labels, strict=True):
        name = line.get("class", "")
        if name and not multilabel and named.setdefault(parts[0], name) != name:
            raise DatasetError(
                f"{str(path)!r} line {number}: label {parts[0]!r} is called {name!r}, and {named[parts[0]]!r} above."
            )
    return tuple(named.get(value) or value for value in values)


def _split_of(line: dict[str, str], path: Path, number: int) -> str | None:
    text = (line.get("split") or "").strip().lower()
    if not text:
        return None
    if text not in _SPLIT_NAMES:
        raise DatasetError(f"{str(path)!r} line {number}: split {text!r} is not train, val or test.")
    return _SPLIT_NAMES[text]


def _degrees(line: dict[str, str], column: str, most: float, path: Path, number: int) -> float | None:
    text = (line.get(column) or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise DatasetError(f"{str(path)!r} line {number}: {column} {text!r} is not a number.") from None
    if not abs(value) <= most:  # NaN fails this too
        raise DatasetError(f"{str(path)!r} line {number}: {column} {text} is not between -{most} and {most} degrees.")
    return value


def _time(line: dict[str, str], path: Path, number: int) -> float | None:
    text = (line.get("time") or "").strip()
    if not text:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise DatasetError(f"{str(path)!r} line {number}: time {text!r} is not a date such as 2020-06-30.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
