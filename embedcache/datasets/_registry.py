"""Opens datasets: ``KIND:PATH``, a table, an imported class, or a name under ``--data-root``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from itertools import product
from pathlib import Path
from types import MappingProxyType

import embedcache.datasets as package
from embedcache.datasets._geobench_facts import same_dataset
from embedcache.datasets._spec import TABLES, DatasetKind, OpenOptions, SampleSource, name_of
from embedcache.errors import DatasetError, unknown_name

_SUITES = ("", "classification_v1.0", "segmentation_v1.0")
_DEFAULTS = OpenOptions()
_WAYS = "geobench:PATH, folder:PATH, or the path of a table"


def is_table(reference: str) -> bool:
    """Whether a reference is the path of a table."""
    return Path(reference).suffix.lower() in TABLES


def is_reference(text: str) -> bool:
    """Whether a word says where a dataset lies, rather than what it is called."""
    return ":" in text or is_table(text)


def name_in_cache(reference: str) -> str:
    """Return the name that a dataset has in a cache, given that name or what ``extract`` took."""
    kind, colon, rest = reference.partition(":")
    if colon and kind:
        return name_of(Path(rest))
    return name_of(Path(reference)) if is_table(reference) else reference


@cache
def list_kinds() -> MappingProxyType[str, DatasetKind]:
    """Return every kind of dataset by name; reads no data."""
    found: dict[str, DatasetKind] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            kind = importlib.import_module(f"{package.__name__}.{info.name}").KIND
            found[kind.name] = kind
    return MappingProxyType(found)


def open_dataset(reference: str, data_root: str | Path | None = None, options: OpenOptions = _DEFAULTS) -> SampleSource:
    """Open a dataset.

    Parameters
    ----------
    reference
        ``KIND:PATH`` (``geobench:data/m-eurosat``, ``folder:chips/``), a table (``chips.csv``, ``chips.parquet``), or
        the name of a folder under ``data_root`` (or another name of the same GEO-Bench dataset): one with GEO-Bench
        partitions is opened as ``geobench``, any other as ``folder``.
    data_root
        Where named datasets lie, directly or under ``classification_v1.0/`` and ``segmentation_v1.0/``.

    Raises
    ------
    UnknownNameError, DatasetError
        With what was looked for, where, and what to do.
    """
    kind, colon, rest = reference.partition(":")
    if colon and kind in list_kinds():
        return list_kinds()[kind].open(Path(rest).expanduser(), options)
    if is_table(reference):
        return list_kinds()["folder"].open(Path(reference).expanduser(), options)
    if colon:
        raise unknown_name("dataset kind", kind, list_kinds(), f"Write {_WAYS}.")
    if data_root is None:
        raise DatasetError(
            f"dataset {reference!r} was given by name, but not where it lies; add --data-root DIR, or write {_WAYS}."
        )
    root = Path(data_root).expanduser()
    for name, suite in product(same_dataset(reference), _SUITES):
        path = root / suite / name
        if path.is_dir():
            found = "geobench" if any(path.glob("*_partition.json")) else "folder"
            return list_kinds()[found].open(path, options)
    near = sorted({p.name for s in _SUITES for p in (root / s).glob("*/") if p.is_dir()} - set(_SUITES))
    raise unknown_name(
        "dataset", reference, near, f"{str(root)!r} holds {', '.join(near[:12]) if near else 'no folder'}."
    )
