"""One batch through a backbone: pixels in, arrays ready to store out."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from embedcache.backbones._spec import FeatureExtractor, Features
from embedcache.datasets._spec import Sample
from embedcache.errors import FeatureError, SampleError, SettingError
from embedcache.extraction_plan import ExtractionPlan
from embedcache.views import turned, turned_each
from embedcache_stores.schema import ArraySpec

if TYPE_CHECKING:
    import torch

Row: TypeAlias = Sample | SampleError
"""A decoded sample, or why it was skipped."""


def encode(
    plan: ExtractionPlan, model: FeatureExtractor, rows: Sequence[Row], views: Sequence[str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Encode one batch; every array of the plan's that a backbone makes, ``(rows, *stored_shape)`` as it is stored.

    Every view of a row goes through the backbone beside it, in passes of ``plan.batch_size`` images. Rows that were
    skipped take part as zeros, so that the others are computed in the same company, and come out NaN.

    Parameters
    ----------
    plan, model
        What to make, and the backbone.
    rows
        Decoded samples.
    views
        One view for each row, to be encoded instead of all of the plan's: ``(rows, *shape)`` then.
    """
    import torch

    wanted = [a for a in plan.spec.arrays if a.name != "mask"]
    with torch.inference_mode():
        images = _images(plan, rows)
        moments = _coords(rows, _time_coords, plan.device) if plan.use_time else None
        places = _coords(rows, _location_coords, plan.device) if plan.use_location else None
        count = len(plan.views) if views is None else 1
        if views is not None:
            images = turned_each(images, views)
        elif count > 1:
            images = torch.stack([turned(images, view) for view in plan.views], dim=1).flatten(0, 1)
            moments, places = (x if x is None else x.repeat_interleave(count, 0) for x in (moments, places))
        kind = plan.device.split(":")[0]
        context = torch.autocast(kind, dtype=torch.bfloat16) if plan.precision == "bf16" else nullcontext()
        try:
            with context:
                features = _in_passes(model, plan.batch_size, images, moments, places)
        except torch.cuda.OutOfMemoryError as error:
            raise SettingError(
                f"the GPU has too little memory for batches of {plan.batch_size}; run again with "
                f"--batch-size {max(1, plan.batch_size // 2)}."
            ) from error
        named = {f"pooled_{k}": v for k, v in features.pooled.items()}
        named |= {f"level_{i}": level for i, level in enumerate(features.levels)}
        if lacking := [a.name for a in wanted if a.name not in named]:
            raise FeatureError(f"backbone {plan.backbone.name!r} made no {lacking[0]}, only {', '.join(named)}.")
        if count > 1:
            named = {name: values.unflatten(0, (len(rows), count)) for name, values in named.items()}
        each = wanted if views is None else [replace(a, views=1) for a in wanted]
        return {a.name: _to_numpy(plan, named[a.name], a, rows) for a in each}


def _in_passes(
    model: FeatureExtractor,
    size: int,
    images: torch.Tensor,
    moments: torch.Tensor | None,
    places: torch.Tensor | None,
) -> Features:
    """Encode at most ``size`` images at once."""
    import torch

    if len(images) <= size:
        return model(images, moments, places)
    parts = [
        model(images[at], None if moments is None else moments[at], None if places is None else places[at])
        for at in (slice(start, start + size) for start in range(0, len(images), size))
    ]
    return Features(
        pooled={k: torch.cat([p.pooled[k] for p in parts]) for k in parts[0].pooled},
        levels=[torch.cat(levels) for levels in zip(*(p.levels for p in parts), strict=True)],
    )


def buffer_dtype(plan: ExtractionPlan, spec: ArraySpec) -> str:
    """Dtype in which batches are handed to the writer: as on disk, or float32 where it needs a whole row group."""
    clipped = spec.dtype == "float16" and plan.max_saturation > 0
    return "float32" if spec.encoding == "int8" or clipped else spec.dtype


def _images(plan: ExtractionPlan, rows: Sequence[Row]) -> torch.Tensor:
    """Preprocess a batch on the device: at once where all images have one size and dtype, else one by one."""
    import torch

    size = plan.preprocessing.input_size
    blank = np.zeros((len(plan.preprocessing.bands), size, size), dtype=np.float32)
    arrays = [blank if isinstance(row, SampleError) else _torch_dtype(row.image) for row in rows]
    if len({(a.shape, a.dtype) for a in arrays}) == 1:
        return plan.preprocessing(torch.from_numpy(np.stack(arrays)).to(plan.device))
    return torch.cat([plan.preprocessing(torch.from_numpy(a[None]).to(plan.device)) for a in arrays])


def _torch_dtype(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Keep dtypes that torch can multiply; widen the unsigned ones that it cannot."""
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}.get(image.dtype)
    return image if wider is None else image.astype(wider)


def _coords(rows: Sequence[Row], of: Callable[[Sample], tuple[float, float]], device: str) -> torch.Tensor:
    """Return ``(b, 2)`` float32: coordinates lose their meaning in half precision (bf16 knows no year 2019)."""
    import torch

    values = [(0.0, 0.0) if isinstance(row, SampleError) else of(row) for row in rows]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _time_coords(sample: Sample) -> tuple[float, float]:
    moment = datetime.datetime.fromtimestamp(sample.time or 0.0, datetime.UTC)
    return float(moment.year), float(moment.timetuple().tm_yday - 1)


def _location_coords(sample: Sample) -> tuple[float, float]:
    return float(sample.lat or 0.0), float(sample.lon or 0.0)


def _to_numpy(plan: ExtractionPlan, values: torch.Tensor, spec: ArraySpec, rows: Sequence[Row]) -> npt.NDArray[Any]:
    import torch

    if values.shape[1:] != spec.stored_shape:
        raise FeatureError(
            f"the backbone made {spec.name} of shape {tuple(values.shape[1:])}, not {spec.stored_shape}."
        )
    dtype = buffer_dtype(plan, spec)
    kind = torch.bfloat16 if spec.encoding == "bfloat16" else torch.float16 if dtype == "float16" else torch.float32
    stored = values.to(kind)
    if not bool(torch.isfinite(stored).all()):
        bad = (~torch.isfinite(stored)).flatten(1).any(dim=1).nonzero().flatten().tolist()
        ids = [r.sample_id for i in bad if not isinstance(r := rows[i], SampleError)]
        if ids and bool(torch.isfinite(values).all()):
            raise FeatureError(
                f"{spec.name} of sample {ids[0]!r} reaches {float(values.abs().max()):.3g}, beyond what {dtype} "
                "holds (65504); store it with --dtype bfloat16 or float32, or allow a few with --max-saturation."
            )
        if ids:
            raise FeatureError(
                f"{spec.name} of sample {ids[0]!r} is not finite (of {len(ids)} in its batch): the weights, or the "
                "units of the data (--units), are probably wrong."
            )
    stored[[i for i, row in enumerate(rows) if isinstance(row, SampleError)]] = torch.nan
    if spec.encoding == "bfloat16":
        bits: npt.NDArray[Any] = stored.view(torch.int16).cpu().numpy().view(np.uint16)
        return bits
    return stored.cpu().numpy()
