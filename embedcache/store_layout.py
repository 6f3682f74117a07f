"""What an extraction's store holds: arrays, columns, chunks, and the attributes that other tools look for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import quote

from embedcache.backbones._spec import BackboneSpec
from embedcache.backbones._weights import Weights
from embedcache_stores.encodings import DTYPES
from embedcache_stores.schema import CONTENT, STRING, ArraySpec, level_arrays

What = Literal["pooled", "maps", "both"]


def arrays_of(
    spec: BackboneSpec, what: What, levels: Sequence[Any], dtype: str, task: str, input_size: int, views: int = 1
) -> tuple[ArraySpec, ...]:
    """Return the large arrays: pooled vectors, feature maps, masks (which have no views: readers turn them)."""
    on_disk, encoding = DTYPES[dtype]
    arrays: list[ArraySpec] = []
    if what in {"pooled", "both"}:
        arrays += [
            ArraySpec(
                name=f"pooled_{kind}",
                dims=("channel",),
                shape=(spec.pooled_channels,),
                dtype=on_disk,
                encoding=encoding,
                attrs={"long_name": f"{kind} vector of the last level", "units": "1"},
            )
            for kind in spec.pooled
        ]
    if what in {"maps", "both"}:
        arrays += level_arrays(levels, on_disk, encoding)
    arrays = [replace(a, views=views) for a in arrays]
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


def columns_of(
    task: str, class_names: Sequence[str], num_classes: int, *, time: bool, location: bool
) -> tuple[ArraySpec, ...]:
    """Return the small per-sample columns."""
    columns = [
        ArraySpec(name="split", dtype=STRING, attrs={"long_name": "train, val, test, or skipped"}),
        ArraySpec(name=CONTENT, dtype=STRING, attrs={"long_name": "BLAKE2b-128 of the sample's files"}),
        ArraySpec(name="problem", dtype=STRING, attrs={"long_name": "why a row was skipped; empty for the others"}),
    ]
    if task == "classification":
        meanings = " ".join(re.sub(r"[^\w.+@-]", "_", n) for n in class_names)  # what CF allows in them
        attrs = {"long_name": "class", "flag_values": list(range(num_classes)), "flag_meanings": meanings}
        columns.append(ArraySpec(name="label", dtype="int64", attrs=attrs))
    elif task == "multilabel":
        attrs = {"long_name": "1 where the class is present", "class_names": list(class_names)}
        columns.append(ArraySpec(name="label", dims=("class",), shape=(num_classes,), dtype="uint8", attrs=attrs))
    if location:
        columns += [
            ArraySpec(name=short, dtype="float64", attrs={"standard_name": name, "long_name": name, "units": units})
            for short, name, units in (("lat", "latitude", "degrees_north"), ("lon", "longitude", "degrees_east"))
        ]
    if time:
        attrs = {
            "standard_name": "time",
            "long_name": "acquisition time",
            "units": "seconds since 1970-01-01",
            "calendar": "standard",
        }
        columns.append(ArraySpec(name="time", dtype="float64", attrs=attrs))
    return tuple(columns)


def geoemb_attributes(
    spec: BackboneSpec,
    weights: Weights,
    dataset: str,
    arrays: Sequence[ArraySpec],
    dtype: str,
    input_size: int,
) -> dict[str, Any]:
    """Attributes of the geo-embeddings Zarr convention (version 1, a proposal); none for stores without pooled vectors.

    The convention wants references for model and source data. Weights that were never trained, or came from a file,
    have no address, nor has a dataset of one's own: they get a URN, so that nobody takes them for what a hub offers.

    Parameters
    ----------
    spec, weights
        The backbone, and where its weights came from.
    dataset
        Its name.
    arrays
        Of the store.
    dtype
        As given to ``--dtype``.
    input_size
        Height and width of the input in px.
    """
    pooled = [a for a in arrays if a.name.startswith("pooled_")]
    if not pooled:
        return {}
    identity = weights.identity
    which = f"seed:{identity['seed']}" if weights.kind == "random" else f"sha256:{identity['sha256']}"
    model = f"urn:embedcache:backbone:{spec.name}:{which}"
    if spec.hub and weights.source == f"{spec.hub.repo}/{spec.hub.filename}":
        model = f"https://huggingface.co/{spec.hub.repo}"
    out: dict[str, Any] = {
        "zarr_conventions": [{"name": "geoemb:", "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c"}],
        "geoemb:type": "chip",
        "geoemb:dimensions": pooled[0].shape[0],
        "geoemb:model": model,
        "geoemb:source_data": [f"urn:embedcache:dataset:{quote(dataset)}"],
        "geoemb:data_type": dtype,
        "geoemb:chip_layout": {"layout_type": "irregular", "chip_size": [input_size, input_size]},
    }
    if dtype == "int8":
        out["geoemb:quantization"] = {
            "method": "linear",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "scale": {"type": "array", "array_name": pooled[0].scale_name},
        }
    return out
