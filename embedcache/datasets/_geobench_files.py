"""The files of a GEO-Bench v1 folder: partitions, labels, keys, attributes. Nothing in them is trusted."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from embedcache.datasets._pickles import Stub, load_attribute, load_pickle
from embedcache.datasets._places import centre_of
from embedcache.datasets._spec import Task, Units, digest
from embedcache.errors import DatasetError, SampleError

PARTITION = "_partition.json"
_DATE = re.compile(r"^(?P<key>.*?)_(?P<date>\d{4}-\d{2}-\d{2})$")
T = TypeVar("T")


def undated(key: str) -> tuple[str, str | None]:
    """Split ``02 - Blue_2014-01-01`` into key and date."""
    match = _DATE.match(key)
    return (match["key"], match["date"]) if match else (key, None)


def is_mask(key: str) -> bool:
    """Whether an HDF5 key holds labels, not a band."""
    return key.lower().startswith("label")


def timestamp(date: str) -> float | None:
    """Seconds since 1970 of an ISO date; None where it is not one."""
    try:
        return datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        return None


def inside(path: Path, sample_id: str, look: Callable[[Any], T]) -> T:
    """Open a sample's file and look at it.

    Raises
    ------
    SampleError
        Whatever HDF5 makes of a damaged file: it raises nearly every kind of error.
    """
    import h5py

    try:
        with h5py.File(path / f"{sample_id}.hdf5", "r") as file:
            return look(file)
    except SampleError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError, MemoryError) as error:
        raise SampleError(sample_id, f"its file cannot be read ({type(error).__name__}: {error})") from error


def read_partition(path: Path, partition: str) -> tuple[list[str], list[str]]:
    """Return sample ids and splits of a partition, train first.

    Raises
    ------
    DatasetError
        If the partition or files of it are missing, it is damaged, or names a sample twice.
    """
    if not path.is_dir():
        raise DatasetError(f"dataset folder {str(path)!r} does not exist.")
    file = path / f"{partition}{PARTITION}"
    if not file.exists():
        known = sorted(p.name.removesuffix(PARTITION) for p in path.glob(f"*{PARTITION}"))
        found = f"the partitions there are {', '.join(known)}" if known else "there is none at all"
        raise DatasetError(
            f"{str(path)!r} has no partition {partition!r}: {found}. A GEO-Bench folder holds default_partition.json."
        )
    content = read_json(file)
    ids: list[str] = []
    splits: list[str] = []
    for published, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        names = content.get(published, [])
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise DatasetError(f"{str(file)!r} is damaged: {published!r} is not a list of sample ids.")
        ids += names
        splits += [split] * len(names)
    if not ids:
        raise DatasetError(f"partition {str(file)!r} names no sample.")
    twice = [i for i, n in Counter(ids).items() if n > 1]
    if twice:
        raise DatasetError(f"partition {str(file)!r} names sample {twice[0]!r} twice; ids must be unique.")
    present = {p.stem for p in path.iterdir() if p.suffix == ".hdf5"}
    missing = [i for i in ids if i not in present]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(ids)} samples of partition {str(file)!r} have no file, the first is "
            f"'{missing[0]}.hdf5'. Finish the download, or choose another --partition."
        )
    return ids, splits


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; a damaged file is a DatasetError that names it."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{str(file)!r} is damaged ({error}); fetch it again.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{str(file)!r} is damaged: it does not hold a JSON object; fetch it again.")
    return content


def read_labels(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Labels by sample id from the JSON files, where there are any, and a digest of those files.

    ``label_map.json`` lists ids by class; ``label_stats.json`` holds 0/1 per class, or each class's share of a mask.
    """
    label_map, label_stats = path / "label_map.json", path / "label_stats.json"
    if label_map.exists():
        labels: dict[str, Any] = {}
        for name, ids in read_json(label_map).items():
            if not name.isdecimal() or not isinstance(ids, list):
                raise DatasetError(f"{str(label_map)!r} is damaged: {name!r} is not a class with a list of ids.")
            labels |= {str(i): int(name) for i in ids}
        return labels, digest([label_map.read_bytes()])
    if label_stats.exists():
        stats = read_json(label_stats)
        if len({len(v) if isinstance(v, list) else -1 for v in stats.values()}) != 1:
            raise DatasetError(f"{str(label_stats)!r} is damaged: its entries are not lists of one length.")
        return stats, digest([label_stats.read_bytes()])
    return None, "in the files"


def parse_attribute(sample_id: str, attribute: Any) -> Mapping[str, Any]:
    """Read a sample's pickled attribute safely; an empty mapping where there is none."""
    if attribute is None:
        return {}
    try:
        content = load_attribute(attribute)
    except ValueError as error:
        raise SampleError(sample_id, str(error)) from error
    return content if isinstance(content, dict) else {}


def location(content: Mapping[str, Any], height: int, width: int) -> tuple[float | None, float | None]:
    """Latitude and longitude of the image centre, from the first band that records a transform and a CRS."""
    for band in content.values():
        if not isinstance(band, dict):
            continue
        transform, crs = band.get("transform"), _crs_text(band.get("crs"))
        if isinstance(transform, Stub) and crs and len(transform.args) >= 6:
            return centre_of(transform.args, crs, height, width)
    return None, None


def _crs_text(crs: Any) -> str | None:
    if isinstance(crs, str):
        return crs
    if isinstance(crs, Stub):
        wkt = crs.get("wkt") or crs.state
        return wkt if isinstance(wkt, str) else next((a for a in crs.args if isinstance(a, str)), None)
    return None


def infer_task(path: Path, sample_id: str, labels: Mapping[str, Any] | None, first: Mapping[str, Any]) -> Task:
    """Work out the task of a dataset that is not one of the twelve."""
    if inside(path, sample_id, lambda file: any(is_mask(k) for k in file)):
        return "segmentation"
    label = labels.get(sample_id) if labels else first.get("label")
    if label is None:
        raise DatasetError(
            f"{str(path)!r} has no labels: neither label_map.json, label_stats.json, a mask nor a 'label' in the files."
        )
    return "classification" if np.ndim(label) == 0 else "multilabel"


def infer_units(path: Path, sample_id: str) -> Units:
    """Work out the units of a dataset that is not one of the twelve, by dtype and largest value of one band."""

    def look(file: Any) -> Units:
        values = file[next(k for k in sorted(file) if not is_mask(k))][()]
        if values.dtype == np.uint8:
            return "uint8"
        return "reflectance" if values.dtype.kind == "f" and float(np.nanmax(values)) <= 4 else "dn"

    return inside(path, sample_id, look)


def class_names(
    path: Path, known: int | None, task: Task, labels: Mapping[str, Any] | None, first: Mapping[str, Any]
) -> tuple[str, ...]:
    """Class names from ``task_specs.pkl`` where it can be read safely and fits, else numbers."""
    stated = _task_specs(path)
    # Several labels have it in the singular.
    found = [stated.get(key) for key in ("_class_names", "class_names", "class_name")] if stated else []
    names = next((n for n in found if n), None)
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names) == (known or len(names)):
        return tuple(str(n) for n in names)
    count = known or (stated.get("n_classes") if stated else None)
    if count is None and labels:
        # One entry a class: 0/1, or its share of the mask. Else the labels are class numbers.
        whole = task in {"multilabel", "segmentation"}
        count = len(next(iter(labels.values()))) if whole else max(labels.values()) + 1
    elif count is None and task == "multilabel":
        count = len(first["label"])
    if not isinstance(count, (int, np.integer)) or not 0 < count < 100_000:
        raise DatasetError(
            f"{str(path)!r} does not say how many classes it has (task_specs.pkl, label_map.json, label_stats.json)."
        )
    return tuple(str(i) for i in range(int(count)))


def _task_specs(path: Path) -> Stub | None:
    specs = path / "task_specs.pkl"
    try:
        content = load_pickle(specs.read_bytes()) if specs.exists() else None
    except ValueError:
        return None
    label_type = content.get("label_type") if isinstance(content, Stub) else None
    return label_type if isinstance(label_type, Stub) else None
