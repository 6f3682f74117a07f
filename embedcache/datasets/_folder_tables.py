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

IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
SPLIT_NAMES = {
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
    target: int | npt.NDArray[np.uint8] | None = None
    mask: Path | None = None
    """File of a label for each pixel; such a row has no ``target``."""
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
    segmentation: bool = False
    """Whether every row has a mask; its classes are then not known from the listing."""
    notes: tuple[str, ...] = ()


def rows_of_folders(root: Path) -> Table:
    """List ``root/<class>/<image>`` or ``root/<split>/<class>/<image>``.

    Raises
    ------
    DatasetError
        If there is no class folder, or one is empty.
    """
    folders = folders_in(root)
    if folders and all(f.name.lower() in SPLIT_NAMES for f in folders):
        tops: list[tuple[str | None, Path]] = [(SPLIT_NAMES[f.name.lower()], f) for f in folders]
    else:
        tops = [(None, root)]
    found: list[tuple[str | None, str, Path]] = []
    for split, top in tops:
        classes = folders_in(top)
        if not classes:
            csvs = sorted(p.name for p in root.glob("*.csv"))
            hint = f" There is {csvs[0]!r}: pass folder:{root / csvs[0]} to use it." if csvs else ""
            raise DatasetError(
                f"{str(top)!r} holds no class folders; a folder dataset is <class>/<image>, <split>/<class>/<image>, "
                f"images/ with masks/, or a CSV of path,label,split.{hint}"
            )
        for folder in classes:
            images = sorted((p for p in folder.iterdir() if p.suffix.lower() in IMAGES), key=lambda p: natural(p.name))
            if not images:
                raise DatasetError(
                    f"class folder {str(folder)!r} holds no image ({', '.join(sorted(IMAGES))}); fill it or remove it."
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
    """List the images of a CSV with ``path,label`` or ``path,mask`` and, where known, ``split,class,lat,lon,time``.

    Several labels of one image are separated by ``|`` or ``;``. ``class`` gives the name of an integer ``label``.

    Raises
    ------
    DatasetError
        Naming the line and the column that is wrong.
    """
    lines, columns = read_lines(path)
    masked = "mask" in columns
    if masked and "label" in columns:
        raise DatasetError(f"{str(path)!r} has both label and mask; leave out what heads shall not learn.")
    missing = [c for c in ("path", "mask" if masked else "label") if c not in columns]
    if missing:
        raise DatasetError(
            f"{str(path)!r} has no column {' nor '.join(missing)}; it has {', '.join(columns) or 'nothing'}. "
            "A dataset CSV needs path,label or path,mask and may have split,class,lat,lon,time."
        )
    if not lines:
        raise DatasetError(f"{str(path)!r} names no image.")
    rows = [_row_of(line, path, number) for number, line in lines]
    if masked:
        masks = [path.parent / _filled(line, "mask", path, number) for number, line in lines]
        rows = [replace(row, mask=mask) for row, mask in zip(rows, masks, strict=True)]
        return Table(rows=tuple(rows), class_names=(), segmentation=True)
    labels = [_labels_of(line, path, number) for number, line in lines]
    multilabel = any(len(parts) != 1 for parts in labels)
    values = sorted({part for parts in labels for part in parts}, key=natural)
    position = {value: i for i, value in enumerate(values)}
    targets: list[Any] = [_multi_hot(parts, position) if multilabel else position[parts[0]] for parts in labels]
    return Table(
        rows=tuple(replace(row, target=target) for row, target in zip(rows, targets, strict=True)),
        class_names=_names_of(path, lines, labels, values, multilabel),
        multilabel=multilabel,
    )


def natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which ``img_2`` comes before ``img_10``."""
    parts = tuple((0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", text) if p)
    return (*parts, (2, text))  # "1", "01" and "001" count the same; the text keeps them in one order


def folders_in(root: Path) -> list[Path]:
    """Return the folders in a folder, hidden ones left out, as people count."""
    return sorted(
        (p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: natural(p.name)
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


def _row_of(line: dict[str, str], path: Path, number: int) -> Row:
    """Return all of a row but its label."""
    name = _filled(line, "path", path, number)
    return Row(
        sample_id=Path(name).as_posix(),
        path=path.parent / name,
        split=_split_of(line, path, number),
        lat=_degrees(line, "lat", 90, path, number),
        lon=_degrees(line, "lon", 180, path, number),
        time=_time(line, path, number),
    )


def _filled(line: dict[str, str], column: str, path: Path, number: int) -> str:
    if not line[column].strip():
        whose = f" for {line['path']!r}" if column != "path" else ""
        raise DatasetError(f"{str(path)!r} line {number}: column {column} is empty{whose}.")
    return line[column]


def _labels_of(line: dict[str, str], path: Path, number: int) -> list[str]:
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
    if text not in SPLIT_NAMES:
        raise DatasetError(f"{str(path)!r} line {number}: split {text!r} is not train, val or test.")
    return SPLIT_NAMES[text]


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
