"""GEO-Bench v1 datasets (``m-*`` folders): one HDF5 file per sample, partitions as JSON; their pickles are not trusted.

Format: ServiceNow/geo-bench, ``geobench/dataset.py``. Labels come from ``label_map.json`` or ``label_stats.json`` where
they are, else from each file's attribute, read by a restricted unpickler.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.bands import canonical_band
from embedcache.datasets._geobench_facts import ALIASES, FACTS, KEYS
from embedcache.datasets._pickles import Stub, load_attribute, load_pickle
from embedcache.datasets._spec import DatasetInfo, DatasetKind, OpenOptions, Sample, Task, digest, has_nan, name_of
from embedcache.errors import DatasetError, SampleError, SettingError

_DATE = re.compile(r"^(?P<key>.*?)_(?P<date>\d{4}-\d{2}-\d{2})$")
_PARTITION = "_partition.json"


class GeoBenchSource:
    """An open GEO-Bench v1 dataset; see :class:`embedcache.datasets._spec.SampleSource`."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        self.path = path
        self.partition = options.partition or "default"
        self.sample_ids, self.splits = _read_partition(path, self.partition)
        name = ALIASES.get(path.name, path.name)
        facts = FACTS.get(name)
        published = _published_bands(path, self.sample_ids[0])
        correction = options.bands or "corrected"
        if correction not in {"corrected", "as-published"}:
            raise SettingError(
                f"--bands {correction!r}: GEO-Bench files name their own bands; choose 'corrected' (known faults are "
                "mended, the default) or 'as-published'."
            )
        mend = facts.corrected if facts and correction == "corrected" else {}
        self._keys = {mend.get(key, band): key for key, band in published.items()}
        self._labels, self._label_digest = _read_labels(path)
        first = self._attribute(self.sample_ids[0])
        task = facts.task if facts else _infer_task(path, self.sample_ids[0], self._labels, first)
        lat, _ = _location(first)
        self.info = DatasetInfo(
            name=name_of(path),
            task=task,
            bands=tuple(self._keys),
            band_sources=tuple(self._keys.values()),
            units=options.units or (facts.units if facts else _infer_units(path, self.sample_ids[0])),
            class_names=_class_names(path, facts.num_classes if facts else None, task, self._labels, first),
            has_time=_first_date(path, self.sample_ids[0]) is not None,
            has_location=lat is not None,
            notes=_notes(facts.fault if facts else "", bool(mend), facts is not None, self._keys),
        )

    def read(self, index: int, bands: Sequence[str]) -> Sample:
        """Read one sample; see :class:`embedcache.datasets._spec.SampleSource`."""
        import h5py

        sample_id = self.sample_ids[index]
        try:
            with h5py.File(self.path / f"{sample_id}.hdf5", "r") as file:
                by_key = {_undated(k)[0].lower(): k for k in file}
                layers = []
                for band in bands:
                    key = by_key.get(self._keys[band])
                    if key is None:
                        raise SampleError(sample_id, f"it has no band {self._keys[band]!r}")
                    layers.append(np.squeeze(file[key][()]))
                dates = [d for k in by_key.values() if (d := _undated(k)[1])]
                mask_key = next((k for k in file if k.lower().startswith("label")), None)
                mask = None if mask_key is None else np.squeeze(file[mask_key][()])
                attribute = file.attrs.get("pickle")
        except OSError as error:
            raise SampleError(sample_id, f"its file cannot be read ({error})") from error
        if len({layer.shape for layer in layers}) > 1 or layers[0].ndim != 2:
            raise SampleError(sample_id, f"its bands have shapes {[layer.shape for layer in layers]}, not one 2-D size")
        image = np.stack(layers)
        if has_nan(image):
            raise SampleError(sample_id, "it holds NaN pixels")
        content = _parse_attribute(sample_id, attribute) if self.info.has_location or self._labels is None else {}
        lat, lon = _location(content, image.shape[1:]) if self.info.has_location else (None, None)
        return Sample(
            sample_id=sample_id,
            image=image,
            target=self._target(sample_id, mask, content),
            time=_timestamp(dates[0]) if dates else None,
            lat=lat,
            lon=lon,
        )

    def revision(self, indices: Sequence[int]) -> Mapping[str, Any]:
        """Digest ids with file sizes, splits and label files; see SampleSource."""
        ids = [self.sample_ids[i] for i in indices]
        return {
            "samples": digest((i, (self.path / f"{i}.hdf5").stat().st_size) for i in ids),
            "splits": digest(self.splits[i] for i in indices),
            "labels": self._label_digest,
        }

    def _target(self, sample_id: str, mask: npt.NDArray[Any] | None, content: Mapping[str, Any]) -> Any:
        if self.info.task == "segmentation":
            if mask is None or mask.ndim != 2:
                raise SampleError(sample_id, "it has no label mask")
            return mask
        label = self._labels.get(sample_id) if self._labels is not None else content.get("label")
        if label is None:
            raise SampleError(sample_id, "it has no label")
        if self.info.task == "multilabel":
            return np.asarray(label, dtype=np.uint8)
        return int(label)

    def _attribute(self, sample_id: str) -> Mapping[str, Any]:
        import h5py

        with h5py.File(self.path / f"{sample_id}.hdf5", "r") as file:
            return _parse_attribute(sample_id, file.attrs.get("pickle"))


def _read_partition(path: Path, partition: str) -> tuple[list[str], list[str]]:
    if not path.is_dir():
        raise DatasetError(f"dataset folder {str(path)!r} does not exist.")
    file = path / f"{partition}{_PARTITION}"
    if not file.exists():
        known = sorted(p.name.removesuffix(_PARTITION) for p in path.glob(f"*{_PARTITION}"))
        found = f"the partitions there are {', '.join(known)}" if known else "there is none at all"
        raise DatasetError(
            f"{str(path)!r} has no partition {partition!r}: {found}. A GEO-Bench folder holds default_partition.json."
        )
    content = json.loads(file.read_text())
    ids, splits = [], []
    for published, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        ids += [str(i) for i in content.get(published, [])]
        splits += [split] * len(content.get(published, []))
    if not ids:
        raise DatasetError(f"partition {str(file)!r} names no sample.")
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DatasetError(f"partition {str(file)!r} names sample {twice!r} twice; ids must be unique.")
    present = {p.stem if p.suffix == ".hdf5" else "" for p in path.iterdir()}
    missing = [i for i in ids if i not in present]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(ids)} samples of partition {str(file)!r} have no file, the first is "
            f"'{missing[0]}.hdf5'. Finish the download, or choose another --partition."
        )
    return ids, splits


def _undated(key: str) -> tuple[str, str | None]:
    """Split ``02 - Blue_2014-01-01`` into key and date."""
    match = _DATE.match(key)
    return (match["key"], match["date"]) if match else (key, None)


def _published_bands(path: Path, sample_id: str) -> dict[str, str]:
    """Return standard band names by HDF5 key (lower case, no date), as the files name them, in sorted order."""
    import h5py

    try:
        with h5py.File(path / f"{sample_id}.hdf5", "r") as file:
            keys = [_undated(k)[0].lower() for k in sorted(file) if not k.lower().startswith("label")]
    except OSError as error:
        raise SampleError(sample_id, f"its file cannot be read ({error})") from error
    if not keys:
        raise DatasetError(f"'{sample_id}.hdf5' in {str(path)!r} holds no band.")
    return {key: KEYS.get(key, canonical_band(key)) for key in keys}


def _first_date(path: Path, sample_id: str) -> str | None:
    import h5py

    with h5py.File(path / f"{sample_id}.hdf5", "r") as file:
        return next((d for k in file if (d := _undated(k)[1]) and not k.lower().startswith("label")), None)


def _timestamp(date: str) -> float:
    return datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC).timestamp()


def _read_labels(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Labels by sample id from the JSON files, where there are any, and a digest of those files."""
    label_map, label_stats = path / "label_map.json", path / "label_stats.json"
    if label_map.exists():
        raw = label_map.read_bytes()
        return {i: int(c) for c, ids in json.loads(raw).items() for i in ids}, digest([raw])
    if label_stats.exists():
        raw = label_stats.read_bytes()
        return json.loads(raw), digest([raw])
    return None, "in the files"


def _parse_attribute(sample_id: str, attribute: Any) -> Mapping[str, Any]:
    if attribute is None:
        return {}
    try:
        content = load_attribute(attribute)
    except ValueError as error:
        raise SampleError(sample_id, str(error)) from error
    return content if isinstance(content, dict) else {}


def _location(content: Mapping[str, Any], shape: Sequence[int] = (64, 64)) -> tuple[float | None, float | None]:
    """Latitude and longitude of the image centre, from any band's recorded transform and CRS."""
    for band in content.values():
        if not isinstance(band, dict):
            continue
        transform, crs = band.get("transform"), _crs_text(band.get("crs"))
        if isinstance(transform, Stub) and crs and len(transform.args) >= 6:
            return _centre(transform.args, crs, shape)
    return None, None


def _crs_text(crs: Any) -> str | None:
    if isinstance(crs, str):
        return crs
    if isinstance(crs, Stub):
        state = crs.state
        wkt = state.get("wkt") if isinstance(state, dict) else state
        text = wkt if isinstance(wkt, str) else next((a for a in crs.args if isinstance(a, str)), None)
        return text or None
    return None


def _centre(affine: Sequence[float], crs: str, shape: Sequence[int]) -> tuple[float | None, float | None]:
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    a, b, c, d, e, f = (float(v) for v in affine[:6])
    row, column = shape[0] / 2, shape[1] / 2
    x, y = a * column + b * row + c, d * column + e * row + f
    try:
        lon, lat = transform(crs, "EPSG:4326", [x], [y])
    except (RasterioError, ValueError):
        return None, None
    ok = abs(lat[0]) <= 90 and abs(lon[0]) <= 180
    return (float(lat[0]), float(lon[0])) if ok else (None, None)


def _infer_task(path: Path, sample_id: str, labels: dict[str, Any] | None, first: Mapping[str, Any]) -> Task:
    import h5py

    with h5py.File(path / f"{sample_id}.hdf5", "r") as file:
        if any(k.lower().startswith("label") for k in file):
            return "segmentation"
    label = labels.get(sample_id) if labels else first.get("label")
    if label is None:
        raise DatasetError(
            f"{str(path)!r} has no labels: neither label_map.json, label_stats.json, a mask nor a 'label' in the files."
        )
    return "classification" if np.ndim(label) == 0 else "multilabel"


def _infer_units(path: Path, sample_id: str) -> Any:
    import h5py

    with h5py.File(path / f"{sample_id}.hdf5", "r") as file:
        key = next(k for k in sorted(file) if not k.lower().startswith("label"))
        dtype, largest = file[key].dtype, float(np.nanmax(file[key][()]))
    if dtype == np.uint8:
        return "uint8"
    return "reflectance" if dtype.kind == "f" and largest <= 4 else "dn"


def _class_names(
    path: Path, known: int | None, task: Task, labels: dict[str, Any] | None, first: Mapping[str, Any]
) -> tuple[str, ...]:
    """Class names from ``task_specs.pkl`` where it can be read safely, else numbers."""
    specs = path / "task_specs.pkl"
    if specs.exists():
        try:
            content = load_pickle(specs.read_bytes())
        except ValueError:
            content = None
        label_type = content.get("label_type") if isinstance(content, Stub) else None
        if isinstance(label_type, Stub):
            names = label_type.get("_class_names") or label_type.get("class_names")
            if names:
                return tuple(str(n) for n in names)
            known = known or label_type.get("n_classes")
    if known is None:
        if task in {"multilabel", "segmentation"} and labels:  # one entry a class: 0/1, or its share of the mask
            known = len(next(iter(labels.values())))
        elif task == "multilabel":
            known = len(first["label"])
        elif task == "classification" and labels:
            known = max(labels.values()) + 1
        else:
            raise DatasetError(
                f"{str(path)!r} does not say how many classes it has (no task_specs.pkl, no label_map.json)."
            )
    return tuple(str(i) for i in range(int(known)))


def _notes(fault: str, mended: bool, known: bool, keys: Mapping[str, str]) -> tuple[str, ...]:
    notes = []
    if fault:
        notes.append(f"{fault}; {'mended here (--bands as-published keeps them)' if mended else 'kept as published'}")
    if not known:
        notes.append("not one of the twelve GEO-Bench v1 datasets; task and units were worked out from the files")
    unknown = [b for b in keys if b == keys[b].upper().replace(" ", "_")]
    if unknown:
        notes.append(f"bands without a standard name: {', '.join(unknown)}")
    return tuple(notes)


KIND = DatasetKind(name="geobench", title="GEO-Bench v1 folder (m-*)", open=GeoBenchSource)
