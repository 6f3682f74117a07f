"""Tiny copies of the twelve GEO-Bench v1 datasets, in the format of the official writer, without its package.

HDF5 files with the pickled attribute, ``band_stats.json``, ``task_specs.pkl``, label files and every partition, as
ServiceNow/geo-bench's ``geobench/dataset.py`` and ``task.py`` write them; keys, dates, places and sample ids as
its converters choose them. Classes that the pickles name are stand-ins, there only inside :func:`geobench_classes`.
Compared with what geobench 1.0.0 itself writes: it differs only where a converter does, as in dtypes and places.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS

SENTINEL2 = (
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
WITHOUT_CIRRUS = tuple(k for k in SENTINEL2 if "Cirrus" not in k)
SENTINEL1 = (
    "01 - VH.Real",
    "02 - VH.Imaginary",
    "03 - VV.Real",
    "04 - VV.Imaginary",
    "05 - VH.LEE Filtered",
    "06 - VV.LEE Filtered",
    "07 - VH.LEE Filtered.Real",
    "08 - VV.LEE Filtered.Imaginary",
)
LANDSAT = ("04 - Red", "03 - Green", "02 - Blue", "05 - NIR", "06 - SWIR1", "07 - SWIR2")
RGB = ("Red", "Green", "Blue")
CLOUD, HEIGHT, HYPER = "Cloud Probability", "Canopy Height Model", "Neon"
PARTITIONS = ("default", *(f"{share}x_train" for share in ("0.01", "0.02", "0.05", "0.10", "0.20", "0.50", "1.00")))
COUNTS = {"train": 8, "valid": 2, "test": 2}

Place = tuple[Affine | None, Any]
_UTM = CRS.from_epsg(32634)


def _degrees(lat: float, lon: float, size: int, pixel: float) -> Place:
    """Return a transform whose centre is a place, in EPSG:4326."""
    return Affine(pixel, 0, lon - pixel * size / 2, 0, -pixel, lat + pixel * size / 2), "EPSG:4326"


def _nowhere(i: int, size: int) -> Place:
    return None, None


@dataclass(frozen=True)
class Recipe:
    """How one dataset is written."""

    suite: str
    keys: tuple[str, ...]
    classes: int
    label: str
    """``single``, ``multi`` or ``mask``."""
    dtype: str
    scale: float
    size: int = 8
    date: Callable[[int], datetime.date | None] = lambda i: None
    sample_id: Callable[[int], str] = lambda i: f"id_{i:04d}"
    place: Callable[[int, int], Place] = _nowhere
    mask_dtype: str = "uint8"
    class_names: tuple[str, ...] | None = None
    resolution: float = 10


def lat_of(i: int) -> float:
    """Latitude of an aerial photograph of Germany."""
    return 51.25 + i / 64


def lon_of(i: int) -> float:
    return 6.5 + i / 64


def pv4ger_id(i: int) -> str:
    """Name latitude first in even samples, longitude first in odd ones, as the published ids do without telling."""
    return f"{lat_of(i)},{lon_of(i)}" if i % 2 == 0 else f"{lon_of(i)},{lat_of(i)}"


_CLS, _SEG = "classification_v1.0", "segmentation_v1.0"
_AERIAL = {"keys": RGB, "classes": 2, "dtype": "uint8", "scale": 255, "resolution": 0.1}
_PV4GER = {**_AERIAL, "sample_id": pv4ger_id, "place": lambda i, s: _degrees(lat_of(i), lon_of(i), s, 1e-6)}
RECIPES: Mapping[str, Recipe] = {
    "m-eurosat": Recipe(
        _CLS, SENTINEL2, 10, "single", "int16", 5000, place=lambda i, s: (Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32632")
    ),
    "m-bigearthnet": Recipe(
        _CLS, WITHOUT_CIRRUS, 43, "multi", "float32", 5000, class_names=tuple(f"cover {i}" for i in range(43))
    ),
    "m-so2sat": Recipe(_CLS, SENTINEL1 + tuple(SENTINEL2[1:9]) + SENTINEL2[-2:], 17, "single", "float32", 0.4),
    "m-brick-kiln": Recipe(
        _CLS,
        SENTINEL2,
        2,
        "single",
        "float64",
        3000,
        sample_id=lambda i: f"examples_12_{i}",
        place=lambda i, s: _degrees(23 + i / 8, 90 - i / 8, s, 1e-4),
        class_names=("not brick kiln", "brick kiln"),
    ),
    "m-forestnet": Recipe(
        _CLS,
        LANDSAT,
        12,
        "single",
        "uint8",
        255,
        date=lambda i: datetime.date(2014 + i % 4, 1 + i % 12, 1),
        sample_id=lambda i: f"{-1.5 - i / 8}_{101.5 + i / 8}_{2014 + i % 4}_{1 + i % 12:02d}_01",
        place=lambda i, s: _degrees(-1.5 - i / 8, 101.5 + i / 8, s, 1e-4),
        resolution=15,
    ),
    "m-pv4ger": Recipe(_CLS, label="single", class_names=("no solar pv", "solar pv"), **_PV4GER),
    "m-pv4ger-seg": Recipe(_SEG, label="mask", class_names=("no solar pv", "solar pv"), **_PV4GER),
    "m-chesapeake": Recipe(
        _SEG,
        (*RGB, "NearInfrared"),
        7,
        "mask",
        "float32",
        1,
        sample_id=lambda i: f"id_{i:06d}",
        place=lambda i, s: (None, CRS.from_epsg(26918)),
        mask_dtype="int64",
        resolution=1,
    ),
    "m-cashew-plant": Recipe(
        _SEG,
        (*WITHOUT_CIRRUS, CLOUD),
        7,
        "mask",
        "float32",
        3000,
        date=lambda i: datetime.date(2019, 11, 5) + datetime.timedelta(days=5 * i),
        sample_id=lambda i: f"sample_{i}",
        place=lambda i, s: (Affine(10, 0, 4e5, 0, -10, 1e6), CRS.from_epsg(32631)),
        resolution=0.5,
    ),
    "m-SA-crop-type": Recipe(
        _SEG,
        (*WITHOUT_CIRRUS, CLOUD),
        10,
        "mask",
        "int16",
        255,
        sample_id=lambda i: f"ref_south_africa_crops_competition_v1_train_labels_{i:04d}_0",
        place=lambda i, s: (Affine(10.0, 0.0, 331040.0, 0.0, -10.0, -3714560.0), _UTM),
    ),
    "m-nz-cattle": Recipe(
        _SEG,
        label="mask",
        date=lambda i: datetime.date(2014 + i % 4, 1, 1),
        sample_id=lambda i: f"{i}_Hawkes-Bay_[{2014 + i % 4}]_{176.125 + i / 8},{-39.5 - i / 8}",
        place=lambda i, s: _degrees(-39.5 - i / 8, 176.125 + i / 8, s, 0.1),
        class_names=("no cattle", "cattle"),
        **_AERIAL,
    ),
    "m-NeonTree": Recipe(
        _SEG,
        label="mask",
        size=20,
        sample_id=lambda i: f"2018_SJER_3_25{i}_image",
        place=lambda i, s: (Affine(0.1, 0, 2.5e5 + 50 * i, 0, -0.1, 4.1e6), CRS.from_epsg(32611)),
        class_names=("no tree", "tree"),
        **{**_AERIAL, "keys": (*RGB, HEIGHT, HYPER)},
    ),
}


@dataclass(frozen=True)
class Copy:
    """A copy on disk, with everything that was written into it."""

    path: Path
    recipe: Recipe
    ids: tuple[str, ...]
    pixels: Mapping[str, Mapping[str, npt.NDArray[Any]]] = field(default_factory=dict)
    """By sample id and key without date."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    partitions: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)


_CLASSES = {
    "geobench.dataset": (
        *("SpectralBand", "Sentinel1", "Sentinel2", "Landsat8", "CloudProbability", "ElevationBand"),
        *("HyperSpectralBands", "SegmentationClasses"),
    ),
    "geobench.label": ("Classification", "MultiLabelClassification"),
    "geobench.task": ("TaskSpecifications",),
}


@contextlib.contextmanager
def geobench_classes() -> Iterator[Mapping[str, type]]:
    """Have stand-ins for geobench's classes importable, as plain unpickling needs them; they only keep attributes."""
    made: dict[str, type] = {}
    modules = {"geobench": types.ModuleType("geobench")}
    for module, names in _CLASSES.items():
        modules[module] = types.ModuleType(module)
        for name in names:
            made[name] = type(name, (), {"__module__": module})
            setattr(modules[module], name, made[name])
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write_copy(root: Path, name: str, folder: str | None = None) -> Copy:
    """Write one dataset under ``root``, as ``folder`` or its own name."""
    with geobench_classes() as classes:
        return _write(root / (folder or name), name, RECIPES[name], classes)


def _write(path: Path, name: str, recipe: Recipe, classes: Mapping[str, type]) -> Copy:
    path.mkdir(parents=True)
    rng = np.random.default_rng(sum(map(ord, name)))
    infos = {key: _info(key, recipe, classes) for key in recipe.keys}
    label_type = _label_type(recipe, classes)
    ids = tuple(recipe.sample_id(i) for i in range(sum(COUNTS.values())))
    pixels: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for i, sample_id in enumerate(ids):
        pixels[sample_id] = {key: _values(key, recipe, rng) for key in recipe.keys}
        labels[sample_id] = _label(i, recipe, rng)
        _write_sample(path / f"{sample_id}.hdf5", i, recipe, pixels[sample_id], labels[sample_id], infos, label_type)
    specs = _filled(
        classes["TaskSpecifications"],
        dataset_name=name,
        benchmark_name=recipe.suite,
        patch_size=(recipe.size, recipe.size),
        n_time_steps=1,
        bands_info=list(infos.values()),
        label_type=label_type,
        spatial_resolution=recipe.resolution,
    )
    (path / "task_specs.pkl").write_bytes(pickle.dumps(specs, protocol=4))
    (path / "band_stats.json").write_text(json.dumps(_band_stats(pixels, labels, recipe.keys), indent=2))
    _write_labels(path, recipe, labels)
    partitions = _partitions(ids)
    for partition, content in partitions.items():
        (path / f"{partition}_partition.json").write_text(json.dumps(content))
    return Copy(path, recipe, ids, pixels, labels, partitions)


def _filled(cls: type, **attributes: Any) -> Any:
    made = cls()
    made.__dict__.update(attributes)
    return made


def _info(key: str, recipe: Recipe, classes: Mapping[str, type]) -> Any:
    common = {"name": key, "alt_names": (key.lower(),), "spatial_resolution": recipe.resolution}
    special = {CLOUD: "CloudProbability", HEIGHT: "ElevationBand", HYPER: "HyperSpectralBands"}
    if key in special:
        more = {"n_bands": 369, "wavelength_range": None} if key == HYPER else {}
        return _filled(classes[special[key]], **common, **more)
    sensor = "Landsat8" if recipe.keys == LANDSAT else "Sentinel2" if key in SENTINEL2 else "SpectralBand"
    return _filled(classes["Sentinel1" if key in SENTINEL1 else sensor], **common, wavelength=0.49)


def _label_type(recipe: Recipe, classes: Mapping[str, type]) -> Any:
    names = None if recipe.class_names is None else list(recipe.class_names)
    if recipe.label == "mask":
        shape = {"name": "label", "alt_names": (), "spatial_resolution": recipe.resolution}
        return _filled(classes["SegmentationClasses"], **shape, n_classes=recipe.classes, _class_names=names)
    if recipe.label == "multi":
        return _filled(classes["MultiLabelClassification"], n_classes=recipe.classes, class_name=names)
    return _filled(classes["Classification"], n_classes=recipe.classes, _class_names=names)


def _values(key: str, recipe: Recipe, rng: np.random.Generator) -> npt.NDArray[Any]:
    if key in {HEIGHT, HYPER}:
        small = (recipe.size // 10, recipe.size // 10, 1 if key == HEIGHT else 5)
        return rng.integers(0, 900, small).astype("float32" if key == HEIGHT else "int16")
    values = rng.random((recipe.size, recipe.size)) * recipe.scale
    return (values - 0.2 if key in SENTINEL1 else values).astype(recipe.dtype)


def _label(i: int, recipe: Recipe, rng: np.random.Generator) -> Any:
    if recipe.label == "mask":
        return rng.integers(0, recipe.classes, (recipe.size, recipe.size)).astype(recipe.mask_dtype)
    if recipe.label == "multi":
        hot = (rng.random(recipe.classes) < 0.1).astype(np.int64)
        hot[i % recipe.classes] = 1
        return hot
    return i % recipe.classes


def _write_sample(
    path: Path, i: int, recipe: Recipe, pixels: Mapping[str, Any], label: Any, infos: Mapping[str, Any], label_type: Any
) -> None:
    date = recipe.date(i)
    transform, crs = recipe.place(i, recipe.size)
    bands = {key: (data, infos[key], date) for key, data in pixels.items()}
    content: dict[str, Any] = {}
    if recipe.label == "mask":  # only m-nz-cattle's masks are dated
        bands["label"] = (label, label_type, date if "Hawkes" in path.name else None)
    else:
        content["label"] = label
    with h5py.File(path, "w") as file:
        for key, (data, info, day) in bands.items():
            descriptor = key if day is None else f"{key}_{day.isoformat()}"
            file.create_dataset(name=descriptor, data=data)
            content[descriptor] = {
                "date": day,
                "date_id": day,
                "spatial_resolution": recipe.resolution,
                "band_info": info,
                "meta_info": None,
                "transform": transform,
                "crs": crs,
            }
        content["bands_order"] = [k for k in content if k != "label" or recipe.label == "mask"]
        file.attrs["pickle"] = str(pickle.dumps(content))


def _band_stats(pixels: Mapping[str, Any], labels: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Describe each band, and the labels as if they were one."""
    shares = {"0_1": 0.1, "1": 1, "5": 5, "95": 95, "99": 99, "99_9": 99.9}
    layers = {key: [sample[key] for sample in pixels.values()] for key in keys} | {"label": list(labels.values())}
    stats = {}
    for key, layer in layers.items():
        values = np.concatenate([np.ravel(v) for v in layer]).astype(np.float64)
        moments = {f: float(getattr(np, f)(values)) for f in ("min", "max", "mean", "std", "median")}
        stats[key] = moments | {f"percentile_{k}": float(np.percentile(values, q)) for k, q in shares.items()}
    return stats


def _write_labels(path: Path, recipe: Recipe, labels: Mapping[str, Any]) -> None:
    if recipe.label == "single":
        by_class: dict[int, list[str]] = {}
        for sample_id, label in labels.items():
            by_class.setdefault(label, []).append(sample_id)
        (path / "label_map.json").write_text(json.dumps(by_class, indent=4, sort_keys=True))
        return
    if recipe.label == "mask":
        shares = {i: np.bincount(m.ravel(), minlength=recipe.classes) / m.size for i, m in labels.items()}
    stats = labels if recipe.label == "multi" else shares
    (path / "label_stats.json").write_text(json.dumps({i: s.tolist() for i, s in stats.items()}))


def _partitions(ids: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    train, valid = COUNTS["train"], COUNTS["valid"]
    whole = {"train": list(ids[:train]), "valid": list(ids[train : train + valid]), "test": list(ids[train + valid :])}
    made = {"default": whole}
    for name in PARTITIONS[1:]:
        kept = max(1, round(train * float(name.split("x")[0])))
        made[name] = {**whole, "train": whole["train"][-kept:][::-1]}
    return made
