"""Writers of small datasets in the formats that the readers know."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

SENTINEL2_KEYS = (
    "01 - Coastal aerosol",
    "02 - Blue",
    "03 - Green",
    "04 - Red",
    "05 - Vegetation Red Edge",
    "06 - Vegetation Red Edge",
    "07 - Vegetation Red Edge",
    "08 - NIR",
    "08A - Vegetation Red Edge",
    "09 - Water vapour",
    "10 - SWIR - Cirrus",
    "11 - SWIR",
    "12 - SWIR",
)


@dataclass(frozen=True)
class GeoBenchFolder:
    """A GEO-Bench v1 folder on disk, with everything that was written into it."""

    path: Path
    ids: tuple[str, ...]
    pixels: Mapping[str, Mapping[str, npt.NDArray[Any]]]
    """By sample id and HDF5 key, label masks included."""
    labels: Mapping[str, Any]


GeoBenchWriter = Callable[..., GeoBenchFolder]


@pytest.fixture
def sentinel2_keys() -> tuple[str, ...]:
    """Return GEO-Bench's thirteen Sentinel-2 keys, in sorted order."""
    return SENTINEL2_KEYS


@pytest.fixture
def write_geobench(tmp_path: Path) -> GeoBenchWriter:
    """Return a function that writes a GEO-Bench v1 folder as the official writer does, by terratorch.md 3.1."""
    import h5py

    def write(
        name: str,
        keys: Sequence[str] = SENTINEL2_KEYS,
        *,
        task: Literal["single", "multi", "mask"] = "single",
        labels_in: Literal["json", "pickle"] = "json",
        classes: int = 2,
        samples: int = 4,
        size: int = 6,
        dtype: str = "int16",
        date: str = "",
        mask_key: str = "label",
        extra: Mapping[str, Any] | None = None,
        protocol: int | None = None,
    ) -> GeoBenchFolder:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rng = np.random.default_rng(len(name) + samples)
        ids = [f"id_{i:04d}" for i in range(samples)]
        pixels: dict[str, dict[str, npt.NDArray[Any]]] = {}
        labels: dict[str, Any] = {}
        for i, sample_id in enumerate(ids):
            bands = {key + date: rng.integers(0, 250, (size, size)).astype(dtype) for key in keys}
            content: dict[str, Any] = {"bands_order": list(bands), **(extra or {})}
            if task == "mask":
                bands[mask_key] = labels[sample_id] = rng.integers(0, classes, (size, size)).astype(np.uint8)
            elif task == "multi":
                content["label"] = labels[sample_id] = (rng.random(classes) < 0.5).astype(np.int64)
            else:
                content["label"] = labels[sample_id] = i % classes
            with h5py.File(folder / f"{sample_id}.hdf5", "w") as file:
                for key, data in bands.items():
                    file.create_dataset(key, data=data)
                file.attrs["pickle"] = str(pickle.dumps(content, protocol=protocol or 4))
            pixels[sample_id] = bands
        _write_labels(folder, task, labels, labels_in)
        partition = {"train": ids[:-2], "valid": ids[-2:-1], "test": ids[-1:]}
        (folder / "default_partition.json").write_text(json.dumps(partition))
        return GeoBenchFolder(folder, tuple(ids), pixels, labels)

    return write


def _write_labels(folder: Path, task: str, labels: Mapping[str, Any], labels_in: str) -> None:
    if labels_in == "pickle" or task == "mask":
        return
    if task == "multi":
        (folder / "label_stats.json").write_text(json.dumps({i: label.tolist() for i, label in labels.items()}))
        return
    by_class: dict[str, list[str]] = {}
    for sample_id, label in labels.items():
        by_class.setdefault(str(label), []).append(sample_id)
    (folder / "label_map.json").write_text(json.dumps(by_class))


@pytest.fixture
def write_picture() -> Callable[..., npt.NDArray[Any]]:
    """Return a function that writes a random 8-bit RGB picture and returns its pixels ``(y, x, channel)``."""
    from PIL import Image

    def write(path: Path, seed: int = 0, size: int = 8) -> npt.NDArray[Any]:
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    return write


@pytest.fixture
def write_geotiff() -> Callable[..., None]:
    """Return a function that writes ``(band, y, x)`` pixels as a GeoTIFF."""
    import rasterio

    def write(
        path: Path,
        pixels: npt.NDArray[Any],
        *,
        crs: str | None = None,
        transform: Any = None,
        descriptions: Sequence[str] = (),
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        count, height, width = pixels.shape
        facts = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
        with rasterio.open(path, "w", **facts, crs=crs, transform=transform) as file:
            file.write(pixels)
            for i, description in enumerate(descriptions, start=1):
                file.set_band_description(i, description)

    return write
