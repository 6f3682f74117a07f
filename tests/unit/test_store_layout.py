"""What other tools find in a store: CF attributes, and those of the geo-embeddings convention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import xarray as xr

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import Weights, find_weights
from embedcache.store_layout import arrays_of, columns_of, geoemb_attributes
from embedcache_stores import FeatureStore, FeatureWriter, StoreSpec
from embedcache_stores.encodings import DTYPES

CLASSES = ("Sea / Lake", "crop", "forêt")
ROWS = 6
UNITS = {"1", "degrees_north", "degrees_east"}
STANDARD = {"latitude": "degrees_north", "longitude": "degrees_east", "time": None}


def write(path: Path, task: str = "classification", dtype: str = "float16") -> Path:
    """Write a store as an extraction would lay it out."""
    spec, size = get_backbone("sam2_hiera_tiny"), 32
    arrays = arrays_of(spec, "both", spec.levels(size), dtype, task, size)
    columns = columns_of(task, CLASSES, len(CLASSES), time=True, location=True)
    store = StoreSpec(
        sample_ids=tuple(f"s{i}" for i in range(ROWS)),
        arrays=arrays,
        columns=columns,
        provenance={"dtype": dtype},
        rows_per_group=4,
        attrs={"title": "features"},
        group_attrs=geoemb_attributes(spec, find_weights(spec, "random:3"), "my chips", arrays, dtype, size),
    )
    rng = np.random.default_rng(0)
    one: dict[str, Any] = {
        "split": np.array(["train", "val", "test"] * 2, dtype=object),
        "content_hash": np.array(["0" * 32] * ROWS, dtype=object),
        "problem": np.array([""] * ROWS, dtype=object),
        "label": (np.eye(3, dtype=np.uint8)[np.arange(ROWS) % 3] if task == "multilabel" else np.arange(ROWS) % 3),
        "lat": np.array([47.5, 48, np.nan, 49, 50, 51]),
        "lon": np.array([7.5, 8, np.nan, 9, 10, 11]),
        "time": np.array([1.5e9, 1.6e9, np.nan, 0, 1, 2]),
    }
    with FeatureWriter(path, store) as writer:
        for group in writer.missing:
            rows = store.group_rows(group)
            n = rows.stop - rows.start
            large = {
                a.name: np.zeros((n, *a.shape), np.int16)
                if a.name == "mask"
                else rng.normal(size=(n, *a.shape)).astype(a.dtype if a.encoding is None else np.float32)
                for a in arrays
            }
            writer.write_group(group, large, {c.name: one[c.name][rows] for c in columns})
        writer.commit()
    return path


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("task", ["classification", "multilabel", "segmentation"])
def test_every_variable_says_what_it_is_as_cf_has_it(tmp_path: Path, task: str, dtype: str) -> None:
    path = write(tmp_path / "a.zarr", task, dtype)
    plain = xr.open_zarr(path, decode_cf=False)
    assert plain.attrs["Conventions"].startswith("CF-1.")
    assert plain.attrs["title"]
    for name, variable in plain.variables.items():
        attrs = variable.attrs
        assert attrs["long_name"], name
        if "standard_name" in attrs:
            expected = STANDARD[attrs["standard_name"]]
            assert attrs["units"] == expected or (expected is None and " since " in attrs["units"])
        elif "units" in attrs:
            assert attrs["units"] in UNITS
        if "flag_meanings" in attrs:
            assert len(attrs["flag_values"]) == len(attrs["flag_meanings"].split()) == len(CLASSES)
    assert {str(n) for n in plain.variables if "standard_name" in plain[n].attrs} == {"lat", "lon", "time"}
    features = [str(n) for n in plain.variables if str(n).startswith(("pooled_", "level_")) and "_scale" not in str(n)]
    assert features
    assert {plain[n].attrs["units"] for n in features} == {"1"}
    assert {"Conventions"} <= set(FeatureStore(path).to_xarray().attrs)


def test_xarray_decodes_time_and_place_and_split_is_a_coordinate_to_select_by(tmp_path: Path) -> None:
    ds = xr.open_zarr(write(tmp_path / "a.zarr"))
    assert set(ds.coords) == {"sample_id", "split", "lat", "lon", "time"}
    assert ds.time.dtype.kind == "M"
    assert str(ds.time.values[0]).startswith("2017-07-14T02:40:00")
    assert np.isnat(ds.time.values[2])
    assert ds.split.values.tolist() == ["train", "val", "test"] * 2
    assert ds.split.dims == ds.pooled_mean.dims[:1]
    test = ds.set_xindex("split").sel(split="test")
    assert test.sample_id.values.tolist() == ["s2", "s5"]
    assert ds.label.attrs["flag_meanings"] == "Sea___Lake crop forêt"


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_geo_embeddings_convention_is_kept(tmp_path: Path, dtype: str) -> None:
    root = json.loads((write(tmp_path / "a.zarr", dtype=dtype) / "zarr.json").read_text())
    attrs = root["attributes"]
    # The convention's schema, version 1: what it requires, and the types that it allows.
    assert attrs["zarr_conventions"] == [{"name": "geoemb:", "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c"}]
    assert attrs["geoemb:type"] == "chip"
    assert attrs["geoemb:dimensions"] == FeatureStore(tmp_path / "a.zarr").spec("pooled_mean").shape[0]
    assert attrs["geoemb:data_type"] == dtype
    assert attrs["geoemb:chip_layout"] == {"layout_type": "irregular", "chip_size": [32, 32]}
    assert attrs["geoemb:source_data"] == ["urn:embedcache:dataset:my%20chips"]
    for reference in (attrs["geoemb:model"], *attrs["geoemb:source_data"]):
        assert urlparse(reference).scheme
        assert " " not in reference
    if dtype == "int8":
        scale = attrs["geoemb:quantization"].pop("scale")
        assert scale == {"type": "array", "array_name": "pooled_mean_scale"}
        assert scale["array_name"] in root["consolidated_metadata"]["metadata"]
        assert attrs["geoemb:quantization"] == {
            "method": "linear",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
        }
    else:
        assert "geoemb:quantization" not in attrs


def test_the_model_is_the_hub_s_only_where_its_weights_are(tmp_path: Path) -> None:
    spec = get_backbone("sam2_hiera_tiny")
    assert spec.hub is not None
    arrays = arrays_of(spec, "pooled", spec.levels(32), "float16", "classification", 32)

    def model(weights: Weights) -> str:
        return str(geoemb_attributes(spec, weights, "d", arrays, "float16", 32)["geoemb:model"])

    file = tmp_path / "w.pt"
    file.write_bytes(b"weights")
    own = find_weights(spec, str(file))
    hub = Weights(kind="file", identity=own.identity, source=f"{spec.hub.repo}/{spec.hub.filename}")
    assert model(find_weights(spec, "random:3")) == "urn:embedcache:backbone:sam2_hiera_tiny:seed:3"
    assert model(own) == f"urn:embedcache:backbone:sam2_hiera_tiny:sha256:{own.identity['sha256']}"
    assert model(hub).endswith(spec.hub.repo)
    assert geoemb_attributes(spec, hub, "d", (), "float16", 32) == {}  # maps alone are no embedding of a chip
