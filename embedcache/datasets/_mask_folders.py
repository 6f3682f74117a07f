"""Lists ``images/`` with ``masks/`` beside it, also once in each split's folder; they belong together by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from embedcache.datasets._folder_tables import IMAGES, SPLIT_NAMES, Row, Table, folders_in, natural
from embedcache.errors import DatasetError

_PAIR = ("images", "masks")


def rows_of_mask_folders(root: Path) -> Table | None:
    """List ``images/`` and ``masks/`` in ``root``, or in its folders; None where there is no such pair.

    An image's mask has the same path below ``masks/``, whatever the suffixes. Where the folders that hold the pairs, or
    those within ``images/``, are all called after splits, they give the splits.

    Raises
    ------
    DatasetError
        Naming images without a mask, masks without an image, names that are there twice, and folders of which only
        some are called after splits.
    """
    tops = [root] if any(_pair_in(root)) else [f for f in folders_in(root) if any(_pair_in(f))]
    if not any(all(_pair_in(top)) for top in tops):
        return None
    paired: list[tuple[str | None, Path, Path]] = []
    bare: list[Path] = []
    lonely: list[Path] = []
    for top in tops:
        images, masks = (_files_below(folder) for folder in _pair_in(top))
        bare += [image for key, image in images.items() if key not in masks]
        lonely += [mask for key, mask in masks.items() if key not in images]
        for key in sorted(images.keys() & masks.keys(), key=natural):
            outer = top.name if top != root else key.split("/")[0] if "/" in key else None
            paired.append((outer, images[key], masks[key]))
    _refuse_unpaired(root, len(paired), bare, lonely)
    splits = _splits_of(root, [outer for outer, _, _ in paired])
    rows = tuple(
        Row(sample_id=image.relative_to(root).as_posix(), path=image, mask=mask, split=split)
        for (_, image, mask), split in zip(paired, splits, strict=True)
    )
    return Table(rows=rows, class_names=(), segmentation=True)


def _pair_in(folder: Path) -> tuple[Path | None, Path | None]:
    """Return the folders of images and of masks; their names count in any case."""
    by_name = {f.name.lower(): f for f in folders_in(folder)}
    return by_name.get(_PAIR[0]), by_name.get(_PAIR[1])


def _files_below(folder: Path | None) -> dict[str, Path]:
    """Return images by path below ``folder`` without suffix; linked folders are not entered, so there is no circle."""
    found: dict[str, Path] = {}
    for where, _, names in os.walk(folder) if folder is not None else ():
        for name in names:
            path = Path(where, name)
            if path.suffix.lower() not in IMAGES or name.startswith("."):
                continue
            assert folder is not None
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                both = " and ".join(sorted((found[key].name, name)))
                raise DatasetError(f"{where!r} holds {both}, which have one name; keep one of them.")
            found[key] = path
    return found


def _refuse_unpaired(root: Path, pairs: int, bare: Sequence[Path], lonely: Sequence[Path]) -> None:
    said = []
    for files, what, lack in ((bare, "images", "mask"), (lonely, "masks", "image")):
        if files:
            names = sorted((f.relative_to(root).as_posix() for f in files), key=natural)
            more = ", ..." if len(names) > 3 else ""
            said.append(f"{len(names)} {what} without {lack} ({', '.join(names[:3])}{more})")
    if said:
        raise DatasetError(
            f"{str(root)!r} has {' and '.join(said)}; images/a.jpg belongs to masks/a.png. Add or remove them, or name "
            "the pairs in a CSV of path,mask."
        )
    if not pairs:
        raise DatasetError(f"{str(root)!r} has images/ and masks/, and no image ({', '.join(sorted(IMAGES))}) in them.")


def _splits_of(root: Path, outer: Sequence[str | None]) -> list[str | None]:
    """Take folders for splits if all are called after one."""
    known = [SPLIT_NAMES.get(name.lower()) if name else None for name in outer]
    if any(known) and not all(known):
        other = next(name for name, split in zip(outer, known, strict=True) if split is None)
        raise DatasetError(
            f"some folders of {str(root)!r} are called after splits, and {other or 'images/ itself'!r} is not; put all "
            "pairs into split folders, or none."
        )
    return known
