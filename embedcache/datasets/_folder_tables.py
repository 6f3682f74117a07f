"""What a listing of images holds, and the listing of class folders; ``_tables.py`` lists those of a table."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

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


def natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which ``img_2`` comes before ``img_10``."""
    parts = tuple((0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", text) if p)
    return (*parts, (2, text))  # "1", "01" and "001" count the same; the text keeps them in one order


def folders_in(root: Path) -> list[Path]:
    """Return the folders in a folder, hidden ones left out, as people count."""
    return sorted(
        (p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: natural(p.name)
    )
