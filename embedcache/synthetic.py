"""Makes a small 13-band dataset on disk in GEO-Bench v1 format: procedural scenes, nothing downloaded.

Nine classes are three materials times three textures. Two of the materials look alike in red, green and blue and
differ in near and short-wave infrared only; the textures differ in structure only. So a backbone that sees RGB at high
resolution and one that sees six bands each know something that the other does not.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

KEYS = (
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

# Reflectance x 10 000 in the order of KEYS; the first two differ from band 6 on.
MATERIALS = {
    "irrigated": (1250, 900, 950, 700, 1250, 2500, 3000, 3150, 3300, 1000, 15, 1500, 800),
    "dry": (1250, 900, 950, 700, 1250, 1750, 2050, 2200, 2350, 800, 15, 2250, 1450),
    "bare": (1400, 1150, 1250, 1350, 1600, 1800, 1950, 2100, 2200, 750, 15, 2600, 2150),
}
TEXTURES = ("smooth", "rows", "plots")
CLASS_NAMES = tuple(f"{material} {texture}" for material in MATERIALS for texture in TEXTURES)


def make_scenes(
    folder: str | Path, *, train: int = 240, val: int = 90, test: int = 150, size: int = 64, seed: int = 0
) -> Path:
    """Write a dataset of procedural scenes as a GEO-Bench v1 folder, and return it.

    Parameters
    ----------
    folder
        Folder to write; made if missing. Its name becomes the dataset's.
    train, val, test
        Scenes per split; classes are even.
    size
        Height and width in px (10 m each).
    seed
        Equal seeds write equal pixels.
    """
    import h5py

    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    partition: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    label_map: dict[str, list[str]] = {str(c): [] for c in range(len(CLASS_NAMES))}
    number = 0
    for split, count in (("train", train), ("valid", val), ("test", test)):
        for i in range(count):
            label = i % len(CLASS_NAMES)
            sample_id = f"id_{number:04d}"
            scene = make_scene(label, size, rng)
            with h5py.File(root / f"{sample_id}.hdf5", "w") as file:
                for key, layer in zip(KEYS, scene, strict=True):
                    file.create_dataset(key, data=layer)
                file.attrs["pickle"] = str(pickle.dumps({"label": label, "bands_order": list(KEYS)}))
            partition[split].append(sample_id)
            label_map[str(label)].append(sample_id)
            number += 1
    (root / "label_map.json").write_text(json.dumps(label_map, indent=1))
    (root / "default_partition.json").write_text(json.dumps(partition, indent=1))
    return root


def make_scene(label: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Draw one scene ``(13, size, size)``, reflectance x 10 000."""
    material, texture = divmod(label, len(TEXTURES))
    spectra = np.array(list(MATERIALS.values()), dtype=np.float64)
    structure = _texture(TEXTURES[texture], size, rng)
    # A cloud of some other material covers part of the scene, so that no single pixel gives the class away.
    other = spectra[rng.integers(len(spectra))]
    cover = np.clip(_blobs(size, 4, rng) * 1.6 - 0.6, 0, 1) * rng.uniform(0.2, 0.7)
    spectrum = spectra[material] * rng.normal(1.0, 0.06, len(KEYS))
    scene = spectrum[:, None, None] * (1 - cover) + other[:, None, None] * cover
    scene = scene * (1 + 0.22 * structure) * rng.uniform(0.75, 1.25)
    scene = scene * (1 + 0.08 * _blobs(size, 8, rng)) + rng.normal(0, 60, scene.shape)
    out: npt.NDArray[np.int16] = np.clip(scene, 1, 10000).astype(np.int16)
    return out


def _texture(name: str, size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return structure of mean about 0 and range -1..1, ``(size, size)``."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(5, 9), rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if name == "rows":
        out: Any = np.sin(2 * np.pi * along / period + phase)
    elif name == "plots":
        out = np.sign(np.sin(np.pi * along / period + phase)) * np.sign(np.sin(np.pi * across / period))
    else:
        out = 2 * _blobs(size, 10, rng) - 1
    return np.asarray(out, dtype=np.float64)


def _blobs(size: int, cells: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return smooth noise 0..1: a coarse random grid, interpolated linearly along both axes."""
    grid = rng.random((cells + 1, cells + 1))
    at = np.linspace(0, cells, size, endpoint=False)
    low, part = at.astype(int), at - at.astype(int)
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    out: npt.NDArray[np.float64] = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return out
