"""Plans an extraction: everything decided and checked, nothing computed."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._spec import BackboneSpec
from embedcache.backbones._weights import Weights, find_weights
from embedcache.datasets._spec import SampleSource
from embedcache.device import choose_device, gflop_per_second
from embedcache.errors import DatasetError, SettingError
from embedcache.preprocessing import Preprocessing, plan_preprocessing
from embedcache_stores.errors import NotAStoreError, StoreNotFoundError
from embedcache_stores.manifest import SUFFIX, StoreManifest, peek_manifest
from embedcache_stores.schema import STRING, ArraySpec, StoreSpec, ids_digest, level_arrays, rows_per_group_for
from embedcache_stores.writer import check_fingerprint

What = Literal["pooled", "maps", "both"]
RECIPE = 1
"""Raised whenever our own code changes the bytes of features; part of every fingerprint."""


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How to extract; the defaults are the paper's (224 px) or chosen by device and task."""

    weights: str = "pretrained"
    """``pretrained``, ``random``, ``random:SEED``, or a file."""
    input_size: int | None = None
    """Square input in px; None is the backbone's own default."""
    batch_size: int | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: as the store was begun, else bf16 autocast on a GPU and fp32 on a CPU."""
    dtype: Literal["float16", "float32"] = "float16"
    what: What | None = None
    """None: pooled vectors for classification, maps for segmentation."""
    limit: int | None = None
    """Take about this many samples, evenly spaced over the dataset, so that splits and classes keep their shares."""
    coords: bool = True
    """Give time and location to backbones that take them, where the dataset has them."""
    tag: str | None = None
    """Suffix of the store's name, to keep several preprocessings of one backbone apart."""
    skip_bad: bool = False
    rebuild: bool = False
    workers: int = 2
    """Threads that decode images."""


@dataclass(frozen=True, kw_only=True)
class ExtractionPlan:
    """What will be written, and how; frozen and printable."""

    path: Path
    source: SampleSource
    indices: tuple[int, ...]
    """The dataset's samples that become rows, in row order."""
    backbone: BackboneSpec
    weights: Weights
    preprocessing: Preprocessing
    absent_bands: tuple[str, ...]
    spec: StoreSpec
    groups_done: int
    complete: bool
    device: str
    precision: Literal["fp32", "bf16"]
    batch_size: int
    use_time: bool
    use_location: bool
    skip_bad: bool
    replace: bool
    """Whether a store at ``path`` is removed first; nothing is removed while planning."""
    workers: int
    notes: tuple[str, ...]

    @property
    def rows_done(self) -> int:
        """Rows that are durable already."""
        return min(self.spec.rows, self.groups_done * self.spec.rows_per_group)

    def to_json(self) -> dict[str, Any]:
        """Facts for ``extract --plan --json``."""
        size = self.preprocessing.input_size
        return {
            "store": str(self.path),
            "state": "complete" if self.complete else "partial" if self.groups_done else "new",
            "dataset": self.source.info.name,
            "backbone": self.backbone.name,
            "weights": self.weights.source,
            "rows": self.spec.rows,
            "rows_done": self.rows_done,
            "rows_per_group": self.spec.rows_per_group,
            "bytes": self.spec.rows * self.spec.row_bytes,
            "arrays": {a.name: list(a.shape) for a in self.spec.arrays},
            "dtype": self.spec.arrays[0].dtype,
            "bands": dict(zip(self.preprocessing.bands, self.preprocessing.source_bands, strict=True)),
            "absent_bands": list(self.absent_bands),
            "input_size": size,
            "device": self.device,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "time": self.use_time,
            "location": self.use_location,
            "tflop": round(self.backbone.gflop(size) * (self.spec.rows - self.rows_done) / 1e3, 2),
            "fingerprint": self.spec.fingerprint,
            "notes": list(self.notes),
        }


def plan_extraction(
    source: SampleSource, backbone: str | BackboneSpec, cache: str | Path, options: ExtractOptions
) -> ExtractionPlan:
    """Decide everything about one extraction and check it against what is in the cache.

    Raises
    ------
    EmbedcacheError
        Unknown backbone, missing bands, unusable weights or size, a store of another fingerprint in the way.
    """
    spec = backbone if isinstance(backbone, BackboneSpec) else get_backbone(backbone)
    info = source.info
    input_size = spec.input_size if options.input_size is None else options.input_size
    levels = spec.levels(input_size)
    preprocessing, absent = plan_preprocessing(spec, info, input_size)
    weights = find_weights(spec, options.weights)
    indices = choose_samples(len(source.sample_ids), options.limit)
    what = options.what or ("maps" if info.task == "segmentation" else "pooled")
    arrays = _arrays(spec, what, levels, options.dtype, info.task, input_size)
    path = Path(cache) / info.name / f"{spec.name}{'@' + options.tag if options.tag else ''}{SUFFIX}"
    there = _existing(path)
    found = None if options.rebuild else there
    device = choose_device(options.device)
    precision = _precision(options.precision, found, device)
    row_bytes = sum(a.row_bytes for a in arrays)
    rows_per_group = rows_per_group_for(row_bytes, len(indices))
    batch_size = min(_batch_size(options.batch_size, found, device, input_size), rows_per_group)
    use_time = options.coords and spec.uses_coords and info.has_time
    use_location = options.coords and spec.uses_coords and info.has_location
    sample_ids = tuple(source.sample_ids[i] for i in indices)
    provenance = {
        "recipe": RECIPE,
        "dataset": {
            **source.revision(indices),
            "ids": ids_digest(sample_ids),
            "rows": len(indices),
            "bands": [info.band_sources[info.bands.index(b)] for b in preprocessing.source_bands],
        },
        "backbone": {
            "name": spec.name,
            "weights": dict(weights.identity),
            "time": use_time,
            "location": use_location,
        },
        "preprocessing": preprocessing.to_json(),
        "arrays": {a.name: list(a.shape) for a in arrays},
        "dtype": options.dtype,
        "precision": precision,
    }
    if found is not None:
        check_fingerprint(path, found.provenance, provenance)
    store = StoreSpec(
        sample_ids=sample_ids,
        arrays=arrays,
        columns=_columns(info.task, info.class_names, info.num_classes, time=info.has_time, location=info.has_location),
        provenance=provenance,
        rows_per_group=rows_per_group,
        environment=_environment(device, batch_size, weights),
        attrs={
            "title": f"{spec.title} features of {info.name}",
            "task": info.task,
            "class_names": list(info.class_names),
            "ignore_index": info.ignore_index,
            "units": info.units,
            "levels": [level.to_json() for level in levels] if what != "pooled" else [],
            "backbone": {
                "title": spec.title,
                "parameters_m": spec.parameters_m,
                "licence": spec.licence,
                "citation": spec.citation,
            },
            "dataset_notes": list(info.notes),
        },
    )
    if options.rebuild and there is not None and _same_begun(there, store):
        found = there  # an interrupted --rebuild, run again: go on with it
    return ExtractionPlan(
        path=path,
        source=source,
        indices=indices,
        backbone=spec,
        weights=weights,
        preprocessing=preprocessing,
        absent_bands=tuple(absent),
        spec=store,
        groups_done=found.groups_done if found else 0,
        complete=found is not None and found.state == "complete",
        device=device,
        precision=precision,
        batch_size=batch_size,
        use_time=use_time,
        use_location=use_location,
        skip_bad=options.skip_bad,
        replace=options.rebuild and there is not None and found is None,
        workers=max(1, options.workers),
        notes=tuple(_notes(spec, info.notes, found, store.environment, use_location or use_time)),
    )


def choose_samples(count: int, limit: int | None) -> tuple[int, ...]:
    """Pick ``limit`` samples evenly spaced over ``count``, first included.

    Raises
    ------
    SettingError
        If the limit is below 1.
    DatasetError
        If there is no sample.
    """
    if count == 0:
        raise DatasetError("the dataset holds no sample.")
    if limit is None or limit >= count:
        return tuple(range(count))
    if limit < 1:
        raise SettingError(f"--limit must be at least 1, got {limit}.")
    return tuple(int(i) for i in np.arange(limit) * count // limit)


def seconds_estimated(plan: ExtractionPlan) -> float:
    """Guess how long the missing rows take on this device, from a quick measurement; right within a factor of two."""
    rows = plan.spec.rows - plan.rows_done
    rate = 0.5 * gflop_per_second(plan.device, plan.precision)
    return rows * plan.backbone.gflop(plan.preprocessing.input_size) / rate


def _existing(path: Path) -> StoreManifest | None:
    try:
        return peek_manifest(path)
    except StoreNotFoundError:
        return None
    except NotAStoreError:
        if path.is_dir() and (path / "writer.lock").exists():
            return None  # the writer decides what to do with a folder that was only just begun
        raise


def _same_begun(there: StoreManifest, store: StoreSpec) -> bool:
    begun = there.state == "partial" and there.rows_per_group == store.rows_per_group
    return begun and there.fingerprint == store.fingerprint


def _precision(asked: str, found: StoreManifest | None, device: str) -> Literal["fp32", "bf16"]:
    if asked == "auto" and found is not None:
        asked = str(found.provenance.get("precision"))
    if asked in {"fp32", "bf16"}:
        return "fp32" if asked == "fp32" else "bf16"
    return "bf16" if device.startswith("cuda") else "fp32"


def _batch_size(asked: int | None, found: StoreManifest | None, device: str, input_size: int) -> int:
    if asked is not None:
        if asked < 1:
            raise SettingError(f"--batch-size must be at least 1, got {asked}.")
        return 1 << (asked.bit_length() - 1)  # a power of two, so that batches never straddle row groups
    if found is not None and "batch_size" in found.environment:
        return int(found.environment["batch_size"])
    wanted = (64 if device.startswith("cuda") else 8) * 224**2 / input_size**2
    return 1 << max(0, int(wanted).bit_length() - 1)


def _arrays(
    spec: BackboneSpec, what: What, levels: Sequence[Any], dtype: str, task: str, input_size: int
) -> tuple[ArraySpec, ...]:
    arrays: list[ArraySpec] = []
    if what in {"pooled", "both"}:
        arrays += [
            ArraySpec(
                name=f"pooled_{kind}",
                dims=("channel",),
                shape=(spec.pooled_channels,),
                dtype=dtype,
                attrs={"long_name": f"{kind} vector of the last level"},
            )
            for kind in spec.pooled
        ]
    if what in {"maps", "both"}:
        arrays += level_arrays(levels, dtype)
    if task == "segmentation":
        arrays.append(
            ArraySpec(
                name="mask",
                dims=("y", "x"),
                shape=(input_size, input_size),
                dtype="int16",
                attrs={"long_name": "class of each pixel, resized to the input by the nearest pixel"},
            )
        )
    return tuple(arrays)


def _columns(
    task: str, class_names: Sequence[str], num_classes: int, *, time: bool, location: bool
) -> tuple[ArraySpec, ...]:
    columns = [
        ArraySpec(name="split", dtype=STRING, attrs={"long_name": "train, val, test, or skipped"}),
        ArraySpec(name="problem", dtype=STRING, attrs={"long_name": "why a row was skipped; empty for the others"}),
    ]
    meanings = " ".join(n.replace(" ", "_") for n in class_names)
    if task == "classification":
        attrs = {"long_name": "class", "flag_values": list(range(num_classes)), "flag_meanings": meanings}
        columns.append(ArraySpec(name="label", dtype="int64", attrs=attrs))
    elif task == "multilabel":
        attrs = {"long_name": "1 where the class is present", "flag_meanings": meanings}
        columns.append(ArraySpec(name="label", dims=("class",), shape=(num_classes,), dtype="uint8", attrs=attrs))
    if location:
        columns += [
            ArraySpec(name="lat", dtype="float64", attrs={"standard_name": "latitude", "units": "degrees_north"}),
            ArraySpec(name="lon", dtype="float64", attrs={"standard_name": "longitude", "units": "degrees_east"}),
        ]
    if time:
        attrs = {"standard_name": "time", "units": "seconds since 1970-01-01", "calendar": "standard"}
        columns.append(ArraySpec(name="time", dtype="float64", attrs=attrs))
    return tuple(columns)


def _environment(device: str, batch_size: int, weights: Weights) -> Mapping[str, Any]:
    return {
        "device": device,
        "batch_size": batch_size,
        "weights_source": weights.source,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in ("embedcache", "torch", "zarr")},
    }


def _notes(
    spec: BackboneSpec, notes: Sequence[str], found: StoreManifest | None, now: Mapping[str, Any], coords: bool
) -> list[str]:
    out = list(notes)
    if spec.uses_coords and not coords:
        out.append("the backbone can take time and location, and gets neither")
    if found is not None and found.state == "partial":
        changed = [k for k in ("device", "machine", "torch", "batch_size") if found.environment.get(k) != now.get(k)]
        out += [
            f"begun with {k} {found.environment.get(k)}, now {now.get(k)}: rows may differ in the last bits"
            for k in changed
        ]
    return out
