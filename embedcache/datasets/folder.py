"""One's own images: class folders, image and mask folders, or a CSV; JPEG, PNG or GeoTIFF with named bands."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.bands import WAVELENGTHS_UM, canonical_band, parse_bands
from embedcache.datasets._class_table import CLASS_TABLE, IGNORED, ClassTable, read_class_table
from embedcache.datasets._folder_images import GEOTIFF, open_picture, opened, read_geotiff, read_picture
from embedcache.datasets._folder_masks import labels_of, load_mask, scan_classes
from embedcache.datasets._folder_tables import Row, Table, rows_of_folders
from embedcache.datasets._mask_folders import rows_of_mask_folders
from embedcache.datasets._spec import (
    SPLITS,
    TABLES,
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
from embedcache.datasets._tables import rows_of_table
from embedcache.errors import BandError, DatasetError, SampleError, SettingError


class FolderSource:
    """An open folder or CSV of images; see :class:`embedcache.datasets._spec.SampleSource`."""

    _classes: ClassTable | None = None
    """What the values of masks mean; None where images have labels of their own."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        options.refuse("a folder takes its splits from folders or the CSV", "partition")
        if not path.exists():
            raise DatasetError(f"dataset {str(path)!r} does not exist.")
        table = _listed(path, options)
        self._rows = _with_splits(table.rows)
        self.sample_ids = [r.sample_id for r in self._rows]
        self.splits = [str(r.split) for r in self._rows]
        _refuse_duplicates(self.sample_ids, path)
        by_id = {row.sample_id: row for row in self._rows}
        _, (bands, units, georeferenced, named) = first_readable(
            self.sample_ids, lambda sample_id: _look_at(by_id[sample_id], options)
        )
        notes = list(table.notes)
        if table.segmentation:
            self._classes = _classes_of(self._rows, path if path.is_dir() else path.parent)
            notes += self._classes.notes
        if any(r.split is None for r in table.rows):
            within = "" if table.segmentation else ", within each class"
            notes.append(f"no splits were given; samples were split 60/20/20 by a hash of their path{within}")
        if not named:
            notes.append(
                "bands are taken to be RED, GREEN, BLUE, as in any three-band picture (--bands says otherwise)"
            )
        self.info = DatasetInfo(
            name=name_of(path),
            task="segmentation" if table.segmentation else "multilabel" if table.multilabel else "classification",
            bands=bands,
            band_sources=tuple(str(i + 1) for i in range(len(bands))),
            units=units,
            class_names=self._classes.names if self._classes else table.class_names,
            has_time=all(r.time is not None for r in self._rows),
            has_location=georeferenced or all(r.lat is not None and r.lon is not None for r in self._rows),
            ignore_index=IGNORED if table.segmentation else None,
            notes=tuple(notes),
        )

    def read(self, index: int, bands: Sequence[str]) -> Sample:
        """Read one sample; see :class:`embedcache.datasets._spec.SampleSource`."""
        row = self._rows[index]
        wanted = [self.info.bands.index(b) for b in bands]
        if row.path.suffix.lower() in GEOTIFF:
            image, lat, lon = read_geotiff(row, wanted, len(self.info.bands), self.info.has_location)
        else:
            image, lat, lon = read_picture(row, wanted, len(self.info.bands)), None, None
        if has_nan(image):
            raise SampleError(row.sample_id, "it holds NaN pixels")
        return Sample(
            sample_id=row.sample_id,
            image=image,
            target=self._target(row, image.shape[1:]),
            time=row.time,
            lat=row.lat if row.lat is not None else lat,
            lon=row.lon if row.lon is not None else lon,
        )

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the image, and its mask where there is one."""
        row = self._rows[index]
        return (row.path,) if row.mask is None else (row.path, row.mask)

    def revision(self, indices: Sequence[int]) -> Mapping[str, Any]:
        """Digest splits and labels, or what the values of masks mean: their pixels are content; see SampleSource."""
        rows = [self._rows[i] for i in indices]
        missing = [r for r in rows if not r.path.is_file()]
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(rows)} images do not exist, the first is {str(missing[0].path)!r}. "
                "Paths in a CSV are relative to the CSV's folder."
            )
        splits = digest(self.splits[i] for i in indices)
        if self._classes is not None:
            unmasked = [r for r in rows if r.mask is None or not r.mask.is_file()]
            if unmasked:
                raise DatasetError(
                    f"{len(unmasked)} of {len(rows)} masks do not exist, the first is {str(unmasked[0].mask)!r}. "
                    "Paths in a CSV are relative to the CSV's folder."
                )
            return {"splits": splits, "labels": digest(self._classes.identity())}
        labels = digest(r.target.tolist() if isinstance(r.target, np.ndarray) else r.target for r in rows)
        return {"splits": splits, "labels": labels}

    def _target(self, row: Row, shape: Sequence[int]) -> Any:
        """Return the label, or read the mask of an image of ``shape``."""
        if self._classes is None:
            return row.target
        return labels_of(load_mask(row, colours=self._classes.colours, shape=shape), row, self._classes)


def _listed(path: Path, options: OpenOptions) -> Table:
    """List the samples of a table, of image and mask folders, or of class folders."""
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise DatasetError(f"{str(path)!r} is neither a folder nor a table ({', '.join(sorted(TABLES))}).")
        return rows_of_table(path, options.arguments)
    options.refuse("a folder has none", "arguments")
    return rows_of_mask_folders(path) or rows_of_folders(path)


def _classes_of(rows: Sequence[Row], folder: Path) -> ClassTable:
    """Read what the values of masks mean, and try it on the first mask; or find the values in the masks."""
    by_id = {row.sample_id: row for row in rows}
    ids = list(by_id)
    if not (folder / CLASS_TABLE).is_file():
        return scan_classes(rows, folder)
    table = read_class_table(folder / CLASS_TABLE)
    first_readable(ids, lambda i: labels_of(load_mask(by_id[i], colours=table.colours), by_id[i], table))
    return table


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
    if row.path.suffix.lower() in GEOTIFF:
        with opened(row.sample_id, row.path) as file:
            count, dtype = file.count, np.dtype(file.dtypes[0])
            described = tuple(d or "" for d in file.descriptions)
            located = file.crs is not None
    else:
        picture = open_picture(row)
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


KIND = DatasetKind(
    name="folder", title="class folders, images/ + masks/, or a CSV of path,label|mask,split", open=FolderSource
)
