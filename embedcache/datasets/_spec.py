"""What a dataset is to the rest of embedcache: facts, ids, splits, and one sample at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from embedcache.errors import DatasetError, SampleError, SettingError

T = TypeVar("T")
Task = Literal["classification", "multilabel", "segmentation"]
Units = Literal["dn", "reflectance", "uint8", "unit"]
"""Scale of the files' pixels: ``dn`` reflectance x 10 000, ``reflectance`` 0-1, ``uint8`` an 8-bit picture 0-255,
``unit`` a picture scaled to 0-1."""

SPLITS = ("train", "val", "test")
TABLES = {".csv", ".parquet", ".geoparquet"}
"""Endings of tables that list images."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Static facts of one dataset."""

    name: str
    task: Task
    bands: tuple[str, ...]
    """Bands by standard name, in the order of the files."""
    band_sources: tuple[str, ...]
    """Where in a file each of them lies: an HDF5 key, or a position counted from 1. The same name may stand for other
    pixels tomorrow (``--bands``), so this is part of a store's fingerprint."""
    units: Units
    class_names: tuple[str, ...]
    has_time: bool = False
    """Whether every sample has an acquisition time."""
    has_location: bool = False
    """Whether every sample has latitude and longitude."""
    ignore_index: int | None = None
    """Mask value that stands for no label."""
    notes: tuple[str, ...] = ()
    """Choices and known faults that a user should read before extraction."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its target."""

    sample_id: str
    image: npt.NDArray[Any]
    """``(band, y, x)`` in the file's own dtype and units, bands as asked."""
    target: int | npt.NDArray[Any] | None
    """Class index; or ``(num_classes,)`` of 0/1; or a mask ``(y, x)``; None where there is no label."""
    time: float | None = None
    """Acquisition time, seconds since 1970-01-01 UTC."""
    lat: float | None = None
    lon: float | None = None


class SampleSource(Protocol):
    """An open dataset; holds ids and splits in memory, never images."""

    @property
    def info(self) -> DatasetInfo:
        """Static facts."""
        ...

    @property
    def sample_ids(self) -> Sequence[str]:
        """Stable, unique ids, in the dataset's order."""
        ...

    @property
    def splits(self) -> Sequence[str]:
        """``train``, ``val`` or ``test`` for each sample."""
        ...

    def read(self, index: int, bands: Sequence[str]) -> Sample:
        """Read one sample with the bands asked, in that order. Safe to call from several threads.

        Raises
        ------
        SampleError
            If the file is unreadable, truncated, of the wrong shape, or holds NaN in these bands.
        """
        ...

    def files(self, index: int) -> Sequence[Path]:
        """Return the files that one sample is read from; their content decides its features."""
        ...

    def revision(self, indices: Sequence[int]) -> Mapping[str, Any]:
        """Return digests of what else decides these samples: splits and labels."""
        ...


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How to open a dataset; what does not concern a kind of dataset must be left at its default."""

    bands: str | None = None
    """Band names in file order; or, for GEO-Bench, ``corrected`` (default) or ``as-published``."""
    units: Units | None = None
    partition: str | None = None
    """GEO-Bench partition, e.g. ``0.10x_train``; default ``default``."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Columns of a table by role."""

    def refuse(self, kind: str, *names: str) -> None:
        """Refuse options that do not concern a kind of dataset.

        Raises
        ------
        SettingError
            Naming the first one that was given, and whose it is.
        """
        owner = {
            "partition": "is for GEO-Bench datasets",
            "arguments": "is for tables",
        }
        for name in names:
            if getattr(self, name) not in (None, {}):
                option = "--dataset-arg" if name == "arguments" else f"--{name.replace('_', '-')}"
                raise SettingError(f"{option} {owner[name]}; {kind}.")


@dataclass(frozen=True, kw_only=True)
class DatasetKind:
    """A kind of dataset on disk, the value before the colon in ``folder:PATH``."""

    name: str
    title: str
    open: Callable[[Path, OpenOptions], SampleSource]


def first_readable(sample_ids: Sequence[str], look: Callable[[str], T], tries: int = 20) -> tuple[str, T]:
    """Look at samples in order until one can be read: one broken file must not lock the whole dataset.

    Raises
    ------
    SampleError
        The first one, if none of the first ``tries`` can be read.
    """
    first: SampleError | None = None
    for sample_id in sample_ids[:tries]:
        try:
            return sample_id, look(sample_id)
        except SampleError as error:
            first = first or error
    raise first or DatasetError("the dataset holds no sample.")


def name_of(path: Path) -> str:
    """Return the name that a dataset at ``path`` has in a cache: its folder's, also where ``path`` is a table in it."""
    whole = path.expanduser().resolve()
    return whole.parent.name if whole.suffix.lower() in TABLES else whole.name


def digest(parts: Iterable[object]) -> str:
    """SHA-256 (hex) over a sequence of values, in order."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(repr(part).encode() + b"\0")
    return sha.hexdigest()


def has_nan(image: npt.NDArray[Any]) -> bool:
    """Whether a float image holds NaN or infinity."""
    return image.dtype.kind == "f" and not bool(np.isfinite(image).all())
