"""Plans an extraction: everything decided and checked, nothing computed."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embedcache.audit.auditing import audit_images
from embedcache.audit.record import ATTRIBUTE, Audit, recorded_audit
from embedcache.backbones._registry import get_backbone, identity_of
from embedcache.backbones._spec import BackboneSpec
from embedcache.backbones._weights import Weights, find_weights
from embedcache.contents import ContentIndex, recorded_contents, stale_rows
from embedcache.datasets._spec import SampleSource
from embedcache.device import choose_device, gflop_per_second
from embedcache.errors import DatasetError, SettingError
from embedcache.preprocessing import Preprocessing, plan_preprocessing
from embedcache.store_layout import What, arrays_of, columns_of, geoemb_attributes
from embedcache.views import NO_VIEWS, canonical
from embedcache_stores.chunks import layout_for
from embedcache_stores.commit_record import check_fingerprint
from embedcache_stores.errors import NotAStoreError, StoreNotFoundError
from embedcache_stores.manifest import SUFFIX, StoreManifest, peek_manifest
from embedcache_stores.place import LOCK_FILE, Location, Place, open_place
from embedcache_stores.schema import Compression, StoreSpec, ids_digest

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
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    """How features are stored: see :mod:`embedcache_stores.encodings`."""
    compression: Compression | None = None
    """None: as the store was begun, else none, which is read many times faster."""
    max_saturation: float = 0.0
    """Share of a row group's values that may be cut to what float16 holds before the extraction is refused."""
    what: What | None = None
    """None: pooled vectors for classification, maps for segmentation."""
    limit: int | None = None
    """Take about this many samples, evenly spaced over the dataset, so that splits and classes keep their shares."""
    views: Sequence[str] = NO_VIEWS
    """Flips and rotations of each image to encode: names of :data:`embedcache.views.D4`."""
    coords: bool = True
    """Give time and location to backbones that take them, where the dataset has them."""
    tag: str | None = None
    """Suffix of the store's name, to keep several preprocessings of one backbone apart."""
    skip_bad: bool = False
    rebuild: bool = False
    workers: int = 2
    """Threads that decode images."""
    accept_audit: bool = False
    """Go on although the input audit found errors."""


@dataclass(frozen=True, kw_only=True)
class ExtractionPlan:
    """What will be written, and how; frozen and printable."""

    place: Place
    """Where the store lies, or will."""
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
    """Whether nothing is left to do."""
    stale: tuple[int, ...]
    """Stored rows whose files changed since; their batches are encoded again."""
    contents: ContentIndex
    device: str
    precision: Literal["fp32", "bf16"]
    batch_size: int
    use_time: bool
    use_location: bool
    skip_bad: bool
    replace: bool
    """Whether a store at ``path`` is removed first; nothing is removed while planning."""
    workers: int
    max_saturation: float
    audit: Audit | None
    """Of the images; of a complete store, what it keeps."""
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Folder of the store on a local disk; TypeError elsewhere."""
        return Path(self.place)

    @property
    def views(self) -> tuple[str, ...]:
        """Flips and rotations of each image that are encoded, the image as it is first."""
        return self.spec.views or NO_VIEWS

    @property
    def batch_rows(self) -> int:
        """Rows encoded together, with all their views: a power of two that divides a row group."""
        rows = max(1, self.batch_size // len(self.views))
        return min(1 << (rows.bit_length() - 1), self.spec.rows_per_group)

    @property
    def rows_done(self) -> int:
        """Rows that are durable already."""
        return min(self.spec.rows, self.groups_done * self.spec.rows_per_group) - len(self.stale)

    def refuse(self) -> None:
        """Raise if something is to be encoded, and the audit found errors that were not accepted.

        Raises
        ------
        AuditError
            See :meth:`embedcache.audit.record.Audit.refuse`.
        """
        if self.audit is not None and not self.complete:
            self.audit.refuse(f"{self.source.info.name!r} for {self.backbone.name!r}")

    def to_json(self) -> dict[str, Any]:
        """Facts for ``extract --plan --json``."""
        size = self.preprocessing.input_size
        return {
            "store": self.place.url,
            "state": "complete" if self.complete else "partial" if self.groups_done else "new",
            "dataset": self.source.info.name,
            "backbone": self.backbone.name,
            "weights": self.weights.source,
            "rows": self.spec.rows,
            "rows_done": self.rows_done,
            "rows_stale": len(self.stale),
            "rows_per_group": self.spec.rows_per_group,
            "bytes": self.spec.rows * self.spec.row_bytes,
            "arrays": {a.name: list(a.shape) for a in self.spec.arrays},
            "dtype": self.spec.provenance["dtype"],
            "compression": self.spec.compression,
            "bands": dict(zip(self.preprocessing.bands, self.preprocessing.source_bands, strict=True)),
            "absent_bands": list(self.absent_bands),
            "input_size": size,
            "views": list(self.views),
            "device": self.device,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "time": self.use_time,
            "location": self.use_location,
            "tflop": round(self.backbone.gflop(size) * len(self.views) * (self.spec.rows - self.rows_done) / 1e3, 2),
            "recipe": self.spec.recipe,
            "audit": self.audit.to_json() if self.audit else None,
            "notes": list(self.notes),
        }


def plan_extraction(
    source: SampleSource, backbone: str | BackboneSpec, cache: Location, options: ExtractOptions
) -> ExtractionPlan:
    """Decide everything about one extraction and check it against what is in the cache.

    Raises
    ------
    EmbedcacheError
        Unknown backbone, missing bands, unusable weights or size, a store of another fingerprint in the way.
    """
    spec = backbone if isinstance(backbone, BackboneSpec) else get_backbone(backbone, options.input_size)
    info = source.info
    input_size = spec.input_size if options.input_size is None else options.input_size
    levels = spec.levels(input_size)
    preprocessing, absent = plan_preprocessing(spec, info, input_size)
    weights = find_weights(spec, options.weights)
    indices = choose_samples(len(source.sample_ids), options.limit)
    what = options.what or ("maps" if info.task == "segmentation" else "pooled")
    views = canonical(options.views)
    arrays = arrays_of(spec, what, levels, options.dtype, info.task, input_size, len(views))
    dataset_place = open_place(cache).child(info.name)
    place = dataset_place.child(f"{spec.name}{'@' + options.tag if options.tag else ''}{SUFFIX}")
    there = _existing(place)
    found = None if options.rebuild else there
    device = choose_device(options.device)
    precision = _precision(options.precision, found, device)
    rows_per_group, rows_per_chunk = layout_for(
        sum(a.row_bytes for a in arrays), len(indices), local=place.is_local, views=len(views)
    )
    most = rows_per_group << (len(views) - 1).bit_length()
    batch_size = min(_batch_size(options.batch_size, found, device, input_size), most)
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
            **identity_of(spec),
        },
        "preprocessing": preprocessing.to_json(),
        "arrays": {a.name: list(a.shape) for a in arrays},
        "dtype": options.dtype,
        "precision": precision,
    }
    if views != NO_VIEWS:
        provenance["views"] = list(views)
    if options.dtype == "int8":  # one scale spans a row group, so its rows decide the codes
        provenance["int8_rows_per_group"] = rows_per_group
    if found is not None:
        check_fingerprint(place, found.provenance, provenance)
    contents = ContentIndex(dataset_place)
    stale = stale_rows(recorded_contents(found), source, indices, contents) if found else ()
    kept = recorded_audit(found)
    complete = found is not None and found.state == "complete" and not stale
    accepted = options.accept_audit or (kept is not None and kept.accepted)
    audit = kept if complete else audit_images(source, indices, preprocessing, absent, accepted=accepted)
    store = StoreSpec(
        sample_ids=sample_ids,
        arrays=arrays,
        columns=columns_of(
            info.task, info.class_names, info.num_classes, time=info.has_time, location=info.has_location
        ),
        provenance=provenance,
        rows_per_group=rows_per_group,
        views=() if views == NO_VIEWS else views,
        rows_per_chunk=rows_per_chunk,
        compression=_compression(options.compression, found),
        max_saturation=options.max_saturation,
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
                **({"reference": spec.reference} if spec.reference else {}),
            },
            "dataset_notes": list(info.notes),
            **({ATTRIBUTE: audit.to_json()} if audit else {}),
        },
        group_attrs=geoemb_attributes(spec, weights, info.name, arrays, options.dtype, input_size),
    )
    if options.rebuild and there is not None and _same_begun(there, store):
        found = there  # an interrupted --rebuild, run again: go on with it
    return ExtractionPlan(
        place=place,
        source=source,
        indices=indices,
        backbone=spec,
        weights=weights,
        preprocessing=preprocessing,
        absent_bands=tuple(absent),
        spec=store,
        groups_done=found.groups_done if found else 0,
        complete=complete,
        stale=stale,
        contents=contents,
        device=device,
        precision=precision,
        batch_size=batch_size,
        use_time=use_time,
        use_location=use_location,
        skip_bad=options.skip_bad,
        replace=options.rebuild and there is not None and found is None,
        workers=max(1, options.workers),
        max_saturation=options.max_saturation,
        audit=audit,
        notes=tuple(
            _notes(spec, info.notes, found, store.environment, use_location or use_time, options.compression, stale)
        ),
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
    return rows * len(plan.views) * plan.backbone.gflop(plan.preprocessing.input_size) / rate


def _existing(place: Place) -> StoreManifest | None:
    try:
        return peek_manifest(place)
    except StoreNotFoundError:
        return None
    except NotAStoreError:
        if place.exists(LOCK_FILE):
            return None  # the writer decides what to do with a folder that was only just begun
        raise


def _same_begun(there: StoreManifest, store: StoreSpec) -> bool:
    begun = there.state == "partial" and there.rows_per_group == store.rows_per_group
    return begun and there.recipe == store.recipe


def _compression(asked: Compression | None, found: StoreManifest | None) -> Compression:
    if asked is not None:
        return asked
    return found.compression if found is not None else "none"


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
    spec: BackboneSpec,
    notes: Sequence[str],
    found: StoreManifest | None,
    now: Mapping[str, Any],
    coords: bool,
    asked: str | None,
    stale: Sequence[int],
) -> list[str]:
    out = [*spec.notes, *notes]
    if spec.uses_coords and not coords:
        out.append("the backbone can take time and location, and gets neither")
    if found is not None and found.state == "complete" and asked not in {None, found.compression}:
        out.append(
            f"the store is there with compression {found.compression}; 'embedcache cp --compression' rewrites it"
        )
    if stale:
        out.append(f"{len(stale)} images changed since they were encoded; their batches are encoded again")
    if found is not None and found.state == "partial":
        changed = [k for k in ("device", "machine", "torch", "batch_size") if found.environment.get(k) != now.get(k)]
        out += [
            f"begun with {k} {found.environment.get(k)}, now {now.get(k)}: rows may differ in the last bits"
            for k in changed
        ]
    return out
