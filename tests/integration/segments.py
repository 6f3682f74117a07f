"""Small datasets with something to find, written as a user has them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from embedcache.datasets._registry import open_dataset
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractOptions, plan_extraction

UTM = CRS.from_epsg(32632)
KEYS = ("04 - Red", "03 - Green", "02 - Blue")
CLASSES = ("soil", "water")


def ground(number: int, pixel: float = 10.0) -> Affine:
    """Where image ``number`` lies."""
    return Affine(pixel, 0, 500_000 + 1000.0 * number, 0, -pixel, 5_400_000 + 2000.0 * number)


def make_tif_chips(root: Path, count: int = 45, size: int = 48, georeferenced: bool = True, seed: int = 0) -> Path:
    """Class folders of RGB GeoTIFFs: reddish soil and bluish water."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        name = CLASSES[i % 2]
        tint = np.array([40, 0, -40] if name == "soil" else [-40, 0, 40])[:, None, None]
        pixels = np.clip(rng.normal(120, 30, (3, size, size)) + tint, 0, 255).astype(np.uint8)
        (root / name).mkdir(parents=True, exist_ok=True)
        where = {"crs": UTM, "transform": ground(i)} if georeferenced else {}
        shape = {"height": size, "width": size, "count": 3, "dtype": "uint8"}
        with rasterio.open(root / name / f"{name}_{i}.tif", "w", driver="GTiff", **shape, **where) as file:
            file.write(pixels)
    return root


def make_masks(root: Path, count: tuple[int, int, int] = (16, 6, 8), size: int = 64, seed: int = 0) -> Path:
    """A GEO-Bench v1 folder: a bright half plane on dark ground, its mask, and where on Earth it lies."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    partition: dict[str, list[str]] = {}
    shares: dict[str, list[float]] = {}
    number = 0
    y, x = np.mgrid[:size, :size] - size / 2
    for split, some in zip(("train", "valid", "test"), count, strict=True):
        partition[split] = []
        for _ in range(some):
            angle = rng.uniform(0, 2 * np.pi)
            mask = (np.cos(angle) * x + np.sin(angle) * y > rng.uniform(-8, 8)).astype(np.uint8)
            name = f"id_{number:03d}"
            with h5py.File(root / f"{name}.hdf5", "w") as file:
                about = {}
                for band, tint in zip(KEYS, (1.0, 0.7, 1.4), strict=True):
                    noise = rng.normal(0, 100, (size, size))
                    file.create_dataset(band, data=(600 + 1500 * tint * mask + noise).clip(0).astype(np.int16))
                    about[band] = {"transform": ground(number), "crs": UTM}
                file.create_dataset("label", data=mask)
                file.attrs["pickle"] = str(pickle.dumps({"bands_order": list(KEYS), **about}))
            partition[split].append(name)
            shares[name] = [float(1 - mask.mean()), float(mask.mean())]
            number += 1
    (root / "default_partition.json").write_text(json.dumps(partition))
    (root / "label_stats.json").write_text(json.dumps(shares))
    return root


def store(reference: str, cache: Path, backbone: str = "sam2_hiera_tiny", **changes: object) -> Path:
    """Extract a dataset with random weights."""
    options = ExtractOptions(**{"weights": "random", "input_size": 64, "batch_size": 8, "device": "cpu", **changes})
    return Path(extract(plan_extraction(open_dataset(reference), backbone, cache, options)))
