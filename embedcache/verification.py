"""A store against the code and the backbone: whether they would make the same features today."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from embedcache.backbones._registry import TERRATORCH, get_backbone
from embedcache.backbones._spec import FeatureExtractor
from embedcache.backbones._weights import load_backbone
from embedcache.datasets._spec import SampleSource
from embedcache.encoding import Row, encode
from embedcache.errors import EmbedcacheError, SampleError, SettingError
from embedcache.extraction_plan import RECIPE, ExtractionPlan, ExtractOptions, plan_extraction
from embedcache.store_layout import What
from embedcache_stores.errors import FingerprintMismatchError, SampleIdMismatchError
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.manifest import StoreManifest, read_manifest
from embedcache_stores.place import Location, open_place
from embedcache_stores.schema import SKIPPED, ids_digest

STORAGE_BOUND: Final = {"float32": 0.0, "float16": 1e-3, "bfloat16": 8e-3, "int8": 1.6e-2}
"""Largest deviation that rounding to a dtype may cause, of a row's largest magnitude."""
ARITHMETIC_BOUND: Final = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest deviation between devices, batch sizes and library versions, of a row's largest magnitude."""


@dataclass(frozen=True)
class Recomputed:
    """Rows encoded again, beside what is stored."""

    rows: int
    row_numbers: list[int]
    deviation: dict[str, float]
    """Per array: largest difference to a stored value of any view, in units of its row's largest magnitude."""
    bound: float

    @property
    def exceeds(self) -> bool:
        """Whether any array differs by more than the bound."""
        return any(d > self.bound or np.isnan(d) for d in self.deviation.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "exceeds": self.exceeds}


def provenance_notes(found: StoreManifest) -> list[str]:
    """Say where a store was made by other code, or for a backbone that is described differently now."""
    made, notes = found.provenance, []
    if made.get("recipe") != RECIPE:
        notes.append(f"made with recipe {made.get('recipe')} of embedcache, now {RECIPE}: features may differ")
    backbone = made.get("backbone", {}).get("name")
    then = made.get("preprocessing", {})
    if backbone_again(found).startswith(TERRATORCH):
        return notes  # it would have to be built and run
    try:
        spec = get_backbone(str(backbone))
    except EmbedcacheError:
        return [*notes, f"backbone {backbone!r} is not known here"]
    by_name = {b.name: b for b in spec.bands}
    for i, band in enumerate(then.get("bands", ())):
        if band not in by_name:
            notes.append(f"backbone {backbone!r} takes no band {band} any more")
        elif (then["mean"][i], then["std"][i]) != (by_name[band].mean, by_name[band].std):
            notes.append(f"band {band} is normalised differently now")
    try:
        levels = spec.levels(int(then.get("input_size", spec.input_size)))
    except EmbedcacheError:
        return [*notes, f"backbone {backbone!r} does not take {then.get('input_size')} px any more"]
    shapes = {a.name: a.shape for a in found.arrays}
    for level in levels:
        if level.name in shapes and shapes[level.name] != (level.channels, level.height, level.width):
            notes.append(f"{level.name} has another shape now")
    return notes


def plan_again(location: Location, source: SampleSource, weights: str | None, device: str = "auto") -> ExtractionPlan:
    """Plan the extraction that made a committed store, on this machine; its fingerprint is compared.

    Raises
    ------
    SettingError
        If the weights came from a file and are not given.
    FingerprintMismatchError
        If the dataset, weights or options are not those that the store was made from.
    SampleIdMismatchError
        If the samples are others.
    """
    place = open_place(location)
    found = read_manifest(place)
    limit = None if found.rows == len(source.sample_ids) else found.rows
    cache = open_place(place.url.rpartition("/")[0].rpartition("/")[0] or ".")
    options = replace(options_again(found, weights, device), limit=limit)
    try:
        plan = plan_extraction(source, backbone_again(found), cache, options)
    except FingerprintMismatchError as error:
        fields = ", ".join(name for name, _, _ in error.differences[:6])
        raise FingerprintMismatchError(
            f"store {place.url!r} was not made from this dataset as it is now, with these options: {fields} differ. "
            "Nothing was encoded again.",
            error.differences,
        ) from error
    if ids_digest(plan.spec.sample_ids) != found.ids_digest:  # another dataset, of which the cache may hold a store too
        raise SampleIdMismatchError(
            f"store {place.url!r} was not made from {source.info.name!r}: it holds {found.rows} samples of "
            f"{found.dataset!r}, and these are {len(source.sample_ids)} others. Nothing was encoded again."
        )
    return plan


def backbone_again(found: StoreManifest) -> str:
    """Return the word that names a store's backbone here.

    A store may name one of TerraTorch's registry. It cannot name a module to import: no code runs because data say so.
    """
    reference = str(found.attrs.get("backbone", {}).get("reference", ""))
    return reference if reference.startswith(TERRATORCH) else found.name.partition("@")[0]


def options_again(found: StoreManifest, weights: str | None, device: str = "auto") -> ExtractOptions:
    """Return the options that made a store, all but how many samples were taken.

    Raises
    ------
    SettingError
        If the weights came from a file and are not given.
    """
    made = found.provenance
    identity = made["backbone"]["weights"]
    if weights is None:
        if identity["kind"] != "random":
            hub = found.environment.get("weights_source")
            raise SettingError(
                f"store {found.place.url!r} was made with weights from {hub}; give them with --weights (FILE, or "
                "pretrained)."
            )
        weights = f"random:{identity['seed']}"
    names = {a.name for a in found.arrays}
    pooled, maps = (any(n.startswith(prefix) for n in names) for prefix in ("pooled_", "level_"))
    what: What = "both" if pooled and maps else "maps" if maps else "pooled"
    return ExtractOptions(
        weights=weights,
        input_size=made["preprocessing"]["input_size"],
        device=device,
        precision=made["precision"],
        dtype=made["dtype"],
        what=what,
        views=found.views,
        coords=bool(made["backbone"]["time"] or made["backbone"]["location"]),
        tag=found.name.partition("@")[2] or None,
        skip_bad=True,
    )


def recompute(plan: ExtractionPlan, count: int, seed: int = 0, extractor: FeatureExtractor | None = None) -> Recomputed:
    """Encode random rows of a committed store again and compare them with what is stored.

    Whole batches are encoded, as extraction does, so that on the machine that made the store the rows come out equal.

    Parameters
    ----------
    plan
        From :func:`plan_again`, or of the extraction that made the store.
    count
        How many rows; skipped ones are not taken.
    seed
        Decides which.
    """
    store = FeatureStore(plan.place)
    model = extractor or load_backbone(
        plan.backbone, plan.weights, plan.preprocessing.bands, plan.preprocessing.input_size
    )
    model.module.to(plan.device)
    usable = np.flatnonzero(store.split != SKIPPED)
    chosen = np.sort(np.random.default_rng(seed).permutation(usable)[:count])
    batches: dict[range, list[int]] = {}
    for row in chosen.tolist():
        start = row - (row - plan.spec.group_rows(row // plan.spec.rows_per_group).start) % plan.batch_rows
        end = plan.spec.group_rows(row // plan.spec.rows_per_group).stop
        batches.setdefault(range(start, min(start + plan.batch_rows, end)), []).append(row)
    # Compared before rounding to int8 or bfloat16: the bound says what rounding may do.
    wide = replace(
        plan,
        spec=replace(
            plan.spec,
            arrays=tuple(replace(a, dtype="float32", encoding=None) for a in plan.spec.arrays if a.name != "mask"),
        ),
    )
    deviation = {a.name: 0.0 for a in wide.spec.arrays}
    for batch, rows in batches.items():
        features = encode(wide, model, [_read(plan, row) for row in batch])
        at = [row - batch.start for row in rows]
        count = len(plan.views)
        for name, values in features.items():  # a row and view is compared by itself
            every = store.read(name, np.repeat(rows, count), np.tile(np.arange(count), len(rows)))
            stored = every.astype(np.float64).reshape(len(rows) * count, -1)
            live = values[at].astype(np.float64).reshape(len(rows) * count, -1)
            most = np.maximum(np.abs(stored).max(axis=1), np.finfo(np.float32).tiny)
            deviation[name] = max(deviation[name], float((np.abs(live - stored).max(axis=1) / most).max()))
    bound = STORAGE_BOUND[str(plan.spec.provenance["dtype"])] + ARITHMETIC_BOUND[plan.precision]
    return Recomputed(len(chosen), chosen.tolist(), deviation, bound)


def _read(plan: ExtractionPlan, row: int) -> Row:
    try:
        return plan.source.read(plan.indices[row], plan.preprocessing.source_bands)
    except SampleError as error:
        return error
