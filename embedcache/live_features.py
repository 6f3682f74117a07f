"""Features with the backbone in the loop: encoded from images when they are asked for, stored nowhere."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from embedcache.backbones._spec import FeatureExtractor
from embedcache.backbones._weights import load_backbone
from embedcache.datasets._spec import SampleSource
from embedcache.encoding import Row, encode
from embedcache.errors import SampleError, SettingError
from embedcache.extraction_plan import ExtractionPlan, plan_extraction
from embedcache.verification import backbone_again, options_again
from embedcache_stores.feature_store import FeatureStore
from embedcache_stores.manifest import read_manifest
from embedcache_stores.place import Location, open_place
from embedcache_stores.schema import IDENTITY, ArraySpec

if TYPE_CHECKING:
    from embedcache_stores.direct import DirectReader

Rows = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[np.float32]]
_READY = 4
"""Encoded batches of which some array was not fetched yet; a loader reads two batches ahead."""


def plan_like(
    location: Location, source: SampleSource, weights: str | None = None, device: str = "auto"
) -> ExtractionPlan:
    """Plan to encode other images exactly as a committed store was made; nothing is to be written.

    Parameters
    ----------
    location
        Of the store.
    source
        The images, all of which are planned for.
    weights
        As given to ``extract``; None where they were random.
    device
        Torch device.

    Raises
    ------
    SettingError
        If weights, bands, normalisation or shapes would be others than the store's: a head trained on it would be
        given something that it has never seen.
    BandError
        If bands are missing that the backbone cannot do without.
    """
    found = read_manifest(open_place(location))
    made = found.provenance
    options = replace(
        options_again(found, weights, device), tag=None, batch_size=found.environment.get("batch_size"), limit=None
    )
    with TemporaryDirectory(prefix="embedcache-") as nowhere:  # so that no store is in the way; nothing is written
        plan = plan_extraction(source, backbone_again(found), nowhere, options)
    now = plan.spec.provenance
    if differ := difference(made, now):
        what, then, here = differ
        raise SettingError(
            f"these images cannot be encoded as store {found.name!r} of {found.dataset!r} was: its {what} was "
            f"{_short(then)}, here it would be {_short(here)}."
        )
    notes = [
        f"store {found.name!r} was made with {what} of the images, which these do not have"
        for what in ("time", "location")
        if made["backbone"][what] and not now["backbone"][what]
    ]
    notes += [f"input audit: {f.message}" for f in plan.audit.findings if f.check != "missing"] if plan.audit else []
    return replace(
        plan,
        use_time=plan.use_time and bool(made["backbone"]["time"]),
        use_location=plan.use_location and bool(made["backbone"]["location"]),
        notes=(*plan.notes, *notes),
    )


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first thing in which two provenances' features differ as features, whatever the images: (what, a, b).

    Bands of the files and their units may differ (the backbone gets the same), and so may dtype and precision.
    """
    both = (one["arrays"].keys() & other["arrays"].keys()) - {"mask"}
    a, b = _comparable(one, both), _comparable(other, both)
    return next(((k, a.get(k), b.get(k)) for k in {**a, **b} if a.get(k) != b.get(k)), None)


def _comparable(made: Mapping[str, Any], arrays: Collection[str]) -> dict[str, Any]:
    backbone = {k: v for k, v in made["backbone"].items() if k not in {"time", "location"}}
    preprocessing = {k: v for k, v in made["preprocessing"].items() if k not in {"source_bands", "gain"}}
    shapes = {name: made["arrays"][name] for name in sorted(arrays)}
    return {**backbone, **preprocessing, "shapes of features": shapes, "recipe": made["recipe"]}


class LiveEncoder:
    """Encodes rows of a plan in float32, in batches as extraction does; keeps what was not fetched, nothing else."""

    def __init__(self, plan: ExtractionPlan, arrays: Sequence[str], extractor: FeatureExtractor | None = None) -> None:
        """Plan to encode; the model is loaded with the first batch.

        Parameters
        ----------
        plan
            Of :func:`plan_like`, or of the extraction that made a store.
        arrays
            Names such as ``pooled_mean``.
        extractor
            A backbone already loaded for this plan.
        """
        chosen = [a for a in plan.spec.arrays if a.name in arrays]
        if lacking := set(arrays) - {a.name for a in chosen}:
            raise SettingError(f"backbone {plan.backbone.name!r} makes no {min(lacking)!r} under this plan.")
        wide = tuple(replace(a, dtype="float32", encoding=None, views=1) for a in chosen)
        self.plan = replace(plan, spec=replace(plan.spec, arrays=wide, views=()), max_saturation=0.0)
        self.encoded = 0
        """Images encoded so far, each as often as it was."""
        self._given = extractor
        self._ready: OrderedDict[bytes, Arrays] = OrderedDict()
        self._lock = Lock()

    @cached_property
    def _model(self) -> FeatureExtractor:
        plan = self.plan
        model = self._given or load_backbone(
            plan.backbone, plan.weights, plan.preprocessing.bands, plan.preprocessing.input_size
        )
        model.module.to(plan.device)
        return model

    def encode(self, read: Sequence[Row], views: Sequence[str] | None = None) -> Arrays:
        """Encode decoded samples, each in its view (None: as it is); those that could not be read come out NaN."""
        step, turned = self.plan.batch_size, views or [IDENTITY] * len(read)
        parts = [
            encode(self.plan, self._model, read[i : i + step], turned[i : i + step]) for i in range(0, len(read), step)
        ]
        self.encoded += len(read)
        return {a.name: np.concatenate([p[a.name] for p in parts]) for a in self.plan.spec.arrays}

    def read(self, row: int) -> Row:
        """Decode one sample.

        Raises
        ------
        SampleError
            If it is unusable and the plan does not skip such.
        """
        try:
            return self.plan.source.read(self.plan.indices[row], self.plan.preprocessing.source_bands)
        except SampleError as error:
            if self.plan.skip_bad:
                return error
            raise

    def take(self, name: str, rows: Rows, views: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one array of rows, each in its view; all arrays of a batch are encoded once, each handed out once."""
        key = rows.tobytes() + " ".join(views).encode()
        with self._lock:
            ready = self._ready.get(key)
            if ready is None or name not in ready:
                ready = self._ready[key] = self.encode([self.read(row) for row in rows.tolist()], views)
                while len(self._ready) > _READY:
                    self._ready.popitem(last=False)
            values = ready.pop(name)
            if not ready:
                self._ready.pop(key, None)
        return values


class ValuesStore(FeatureStore):
    """A committed store of which some arrays come from a function, as float32, and the rest from the disk."""

    def __init__(
        self, location: Location, arrays: Sequence[str], values: Callable[[str, Rows, list[str]], npt.NDArray[Any]]
    ) -> None:
        """Open the store; ``values(name, rows, views)``, a view a row, returns ``(len(rows), *shape)``."""
        super().__init__(location)
        self._readers = {name: _Reader(name, self.views, values) for name in arrays}

    def spec(self, name: str) -> ArraySpec:
        """Return what is known of one array, as it is read here."""
        found = super().spec(name)
        return replace(found, dtype="float32", encoding=None) if name in self._readers else found

    def direct(self, name: str) -> DirectReader | None:
        """Return an array's reader; loaders take it for a fast one, and visit rows in the order of a local store."""
        if name in self._readers:
            return cast("DirectReader", self._readers[name])
        return super().direct(name)


class _Reads(Protocol):
    def read_into(self, rows: Rows, out: npt.NDArray[Any], views: Rows | None = None) -> None: ...


class _Reader(_Reads):
    def __init__(
        self, name: str, views: Sequence[str], values: Callable[[str, Rows, list[str]], npt.NDArray[Any]]
    ) -> None:
        self._name, self._views, self._values = name, views, values

    def read_into(self, rows: Rows, out: npt.NDArray[Any], views: Rows | None = None) -> None:
        if len(rows):
            places = [0] * len(rows) if views is None else views.tolist()
            out[:] = self._values(self._name, rows, [self._views[place] for place in places])


def stream(
    encoders: Sequence[LiveEncoder], rows: Sequence[int], batch: int
) -> Iterator[tuple[Sequence[int], list[list[Row]], list[Arrays]]]:
    """Yield batches of rows as each encoder decodes and encodes them; the next batch is decoded meanwhile."""
    pieces = [rows[i : i + batch] for i in range(0, len(rows), batch)]

    with ThreadPoolExecutor(max(1, encoders[0].plan.workers), "embedcache-read") as pool:

        def submit(piece: Sequence[int]) -> list[list[Any]]:
            return [[pool.submit(e.read, row) for row in piece] for e in encoders]

        coming = submit(pieces[0]) if pieces else []
        try:
            for number, piece in enumerate(pieces):
                read = [[future.result() for future in one] for one in coming]
                coming = submit(pieces[number + 1]) if number + 1 < len(pieces) else []
                yield piece, read, [e.encode(some) for e, some in zip(encoders, read, strict=True)]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
