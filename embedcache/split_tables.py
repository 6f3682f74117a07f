"""Reads who belongs where from a user's table: regions, or a whole split."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedcache.errors import DatasetError
from embedcache.named_split import PARTS, UNUSED

_SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


def read_regions(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Return the region of each sample, by id, from a CSV with the columns ``sample_id`` and ``region``.

    Raises
    ------
    DatasetError
        If it cannot be read, or does not know every sample.
    """
    known = _read_table(path, "region")
    _refuse_unknown(path, known, ids, "names no region of")
    return known


def read_parts(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Return the part of each sample, by id: from a CSV with ``sample_id`` and ``split``, or a GEO-Bench partition.

    A partition is JSON, ``{"train": [ids], "valid": [ids], "test": [ids]}``; samples that it does not name are unused,
    as in its partitions of fewer training samples.

    Raises
    ------
    DatasetError
        If it cannot be read, names a part that there is not, or a CSV does not know every sample.
    """
    if path.suffix.lower() == ".json":
        known = dict.fromkeys(ids, UNUSED) | _read_partition(path)
    else:
        known = _read_table(path, "split")
    for sample_id, part in known.items():
        known[sample_id] = here = _SYNONYMS.get(part.lower(), part.lower())
        if here not in PARTS:
            raise DatasetError(f"{str(path)!r} puts {sample_id!r} into {part!r}; parts are {', '.join(PARTS)}.")
    _refuse_unknown(path, known, ids, "names no part of")
    if not set(known) & set(ids) or all(known[i] == UNUSED for i in ids):
        raise DatasetError(f"{str(path)!r} names none of the {len(ids)} samples, whose ids are like {ids[0]!r}.")
    return known


def _read_table(path: Path, column: str) -> dict[str, str]:
    try:
        with path.expanduser().open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if missing := [c for c in ("sample_id", column) if c not in header]:
                raise DatasetError(
                    f"{str(path)!r} has no column {missing[0]!r}; it has {', '.join(header) or 'none'}. A table needs "
                    f"sample_id and {column}."
                )
            out: dict[str, str] = {}
            for line in reader:
                sample_id, value = (line["sample_id"] or "").strip(), (line[column] or "").strip()
                if not sample_id or not value:
                    raise DatasetError(f"{str(path)!r}, line {reader.line_num}: sample_id or {column} is empty.")
                if out.setdefault(sample_id, value) != value:
                    raise DatasetError(
                        f"{str(path)!r} names sample {sample_id!r} twice, with {out[sample_id]!r} and {value!r}."
                    )
            return out
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{str(path)!r} cannot be read as a CSV table ({error}).") from error


def _read_partition(path: Path) -> dict[str, str]:
    try:
        data = json.loads(path.expanduser().read_text(encoding="utf-8"))
        pairs = [(str(i), str(part)) for part, ids in data.items() for i in ids]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read as a partition ({error}).") from error
    out: dict[str, str] = {}
    for sample_id, part in pairs:
        if out.setdefault(sample_id, part) != part:
            raise DatasetError(f"{str(path)!r} names sample {sample_id!r} in {out[sample_id]!r} and in {part!r}.")
    return out


def _refuse_unknown(path: Path, known: Mapping[str, str], ids: Sequence[str], what: str) -> None:
    unknown = [i for i in ids if i not in known]
    if unknown:
        raise DatasetError(f"{str(path)!r} {what} {len(unknown)} of {len(ids)} samples, the first is {unknown[0]!r}.")
