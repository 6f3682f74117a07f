"""A named split: which samples train, validate and test, kept as one small file beside the stores of a dataset.

It names samples by their ids, so that one file serves every store and ensemble of the dataset, and no store is touched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.errors import SettingError
from embedcache_stores.durable import explained_writes
from embedcache_stores.errors import SampleIdMismatchError
from embedcache_stores.place import Location, Place, open_place

FOLDER: Final = "splits"
"""Folder of a dataset in a cache, beside its stores."""
UNUSED: Final = "unused"
"""Split of a sample that takes no part: beyond a label budget, or within a buffer between splits."""
PARTS: Final = ("train", "val", "test", UNUSED)
STORED: Final = "stored"
"""Name of the split that the stores themselves hold: the dataset's own."""
_VERSION: Final = 1
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class NamedSplit:
    """Which part every sample of a dataset takes."""

    name: str
    dataset: str
    sample_ids: tuple[str, ...]
    parts: tuple[str, ...]
    """One of ``PARTS`` for each sample."""
    made: Mapping[str, Any]
    """How it was made: method, seed, fractions, and the store whose samples it knows."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == STORED:
            raise SettingError(
                f"a split's name has letters, digits, '.', '_' and '-' only, and is not {STORED!r}, got {self.name!r}."
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of every sample id with its part, whatever their order: the identity of the split."""
        sha = hashlib.sha256()
        for sample_id, part in sorted(zip(self.sample_ids, self.parts, strict=True)):
            raw = sample_id.encode()
            sha.update(len(raw).to_bytes(4, "little") + raw + part.encode() + b"\0")
        return sha.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each part."""
        return {part: self.parts.count(part) for part in PARTS}

    @property
    def identity(self) -> dict[str, Any]:
        """What a result record keeps of it."""
        return {"name": self.name, "digest": self.digest, "made": dict(self.made)}

    def of(self, sample_ids: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
        """Return the part of each sample, ``(sample,)``.

        Parameters
        ----------
        sample_ids
            In row order.
        where
            Names the features in the error.

        Raises
        ------
        SampleIdMismatchError
            If these are not the samples that the split was made for.
        """
        known = dict(zip(self.sample_ids, self.parts, strict=True))
        ids = [str(i) for i in sample_ids]
        strange = [i for i in ids if i not in known]
        lost = sorted(set(known) - set(ids)) if not strange else []
        if strange or lost:
            odd = f"{strange[0]!r} is not in the split" if strange else f"{lost[0]!r} is not in the features"
            raise SampleIdMismatchError(
                f"split {self.name!r} of {self.dataset!r} was made for {len(known)} samples, and {where!r} has "
                f"{len(ids)}: {odd}. Make a split of these features: 'embedcache split --features {where}'."
            )
        return np.array([known[i] for i in ids], dtype=object)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        samples: dict[str, list[str]] = {part: [] for part in PARTS}
        for sample_id, part in zip(self.sample_ids, self.parts, strict=True):
            samples[part].append(sample_id)
        return {
            "version": _VERSION,
            "name": self.name,
            "dataset": self.dataset,
            "digest": self.digest,
            "made": dict(self.made),
            "counts": self.counts,
            "samples": samples,
        }


def save_split(cache: Location, split: NamedSplit, *, force: bool = False) -> tuple[str, bool]:
    """Write a split as ``CACHE/<dataset>/splits/<name>.json`` in one atomic step.

    Returns
    -------
    url, written : str, bool
        Where it is, and whether it had to be written.

    Raises
    ------
    SettingError
        If another split of that name is there, and ``force`` is not given.
    """
    place, key = _place(cache, split.dataset), f"{split.name}.json"
    url = place.child(key).url
    if place.exists(key):
        old = load_split(cache, split.dataset, split.name)
        if old.digest == split.digest:
            return url, False
        if not force:
            raise SettingError(
                f"another split {split.name!r} is at {url!r} (digest {old.digest[:12]}, this one's is "
                f"{split.digest[:12]}). Choose another name, or replace it with --force; results made with the old one "
                "stay, and keep its digest."
            )
    with explained_writes(url):
        place.write(key, (json.dumps(split.to_json(), indent=1) + "\n").encode())
    return url, True


def load_split(cache: Location, dataset: str, name: str) -> NamedSplit:
    """Read a split.

    Raises
    ------
    SettingError
        If there is none of that name (the message lists those there are), or the file is damaged.
    """
    place, key = _place(cache, dataset), f"{name}.json"
    try:
        raw = place.read(key if _NAME.fullmatch(name) else f"{STORED}.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        there = ", ".join(list_splits(cache, dataset)) or "none"
        raise SettingError(
            f"dataset {dataset!r} has no split {name!r} in cache {open_place(cache).url!r}; it has {there}. "
            "'embedcache split' makes them."
        ) from error
    try:
        data = json.loads(raw)
        if data["version"] != _VERSION:
            raise ValueError(f"it is of version {data['version']}; this embedcache reads {_VERSION}")
        pairs = [(str(i), part) for part in PARTS for i in data["samples"][part]]
        split = NamedSplit(
            name=data["name"],
            dataset=data["dataset"],
            sample_ids=tuple(i for i, _ in pairs),
            parts=tuple(part for _, part in pairs),
            made=data["made"],
        )
        if split.digest != data["digest"]:
            raise ValueError("its samples are not those of its digest")
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"{place.child(key).url!r} is not a split, or damaged ({error}). Remove it, and make it again."
        ) from error
    return split


def list_splits(cache: Location, dataset: str) -> list[str]:
    """Return the names of a dataset's splits, sorted."""
    files = _place(cache, dataset).files()
    return [name.removesuffix(".json") for name in files if name.endswith(".json")]


def _place(cache: Location, dataset: str) -> Place:
    return open_place(cache).child(dataset).child(FOLDER)
