"""Runs again exactly what a result record says."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Final

from embedcache.ensemble import Ensemble, open_ensemble
from embedcache.errors import SettingError
from embedcache.evaluation.record import RunRecord
from embedcache.train_config import Run, TrainConfig
from embedcache.training import load_data, train
from embedcache_stores.place import Location

_ALL_AT_ONCE: Final = 1 << 62


@dataclass(frozen=True)
class Again:
    """What a record's run gave this time."""

    test: dict[str, float]
    failed: str | None
    torch: str
    """Version of torch now."""


def rerun(record: RunRecord, cache: Location, device: str = "cpu", budget_bytes: int | None = None) -> Again:
    """Train one run anew from its record, in the company it had: then its bits are the same on the same machine.

    Raises
    ------
    SettingError
        If the features are not those of the record, or its configuration is of another version.
    """
    features = open_recorded(record, cache)
    config = TrainConfig.from_json(record.config)
    seeds = list(record.stack_seeds) or [record.seed]
    data = load_data(features, config, device, budget_bytes=budget_bytes)
    results = train(data, [Run(config, s) for s in seeds], budget_bytes=_ALL_AT_ONCE if record.stack_seeds else None)
    result = results[seeds.index(record.seed)]
    return Again(result.test, result.failed, importlib.metadata.version("torch"))


def open_recorded(record: RunRecord, cache: Location) -> Ensemble:
    """Open the features that a record was made from.

    Raises
    ------
    SettingError
        If a store of that name has another fingerprint now, or the split of that name another digest.
    """
    named = record.split
    features = open_ensemble(cache, record.dataset, record.features, named["name"] if named else None)
    if named and features.assigned and features.assigned.digest != named["digest"]:
        raise SettingError(
            f"split {named['name']!r} of {record.dataset!r} is not the one of the record: its digest is "
            f"{features.assigned.digest[:12]}, the record's {str(named['digest'])[:12]}. Make it again as the record "
            "says, or train anew."
        )
    for name, fingerprint in features.fingerprints.items():
        if record.fingerprints.get(name) != fingerprint:
            raise SettingError(
                f"store {name!r} of {record.dataset!r} is not the one of the record: its fingerprint is "
                f"{fingerprint[:12]}, the record's {str(record.fingerprints.get(name))[:12]}. Extract it as it was, or "
                "train anew."
            )
    return features
