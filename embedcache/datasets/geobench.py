"""GEO-Bench v1 datasets (``m-*`` folders): one HDF5 file per sample, partitions as JSON; their pickles are not trusted.

Format: ServiceNow/geo-bench, ``geobench/dataset.py``. Bands are the image's own under their true names; with ``--bands
as-published`` they are everything that a file holds, under the names that it has there. Labels come from
``label_map.json`` or ``label_stats.json`` where they are, else from each file's attribute, read by a restricted
unpickler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache.bands import WAVELENGTHS_UM
from embedcache.datasets import _geobench_files as files
from embedcache.datasets._geobench_bands import already_mended, standard_name
from embedcache.datasets._geobench_facts import ALIASES, FACTS, Facts, known_notes
from embedcache.datasets._spec import (
    DatasetInfo,
    DatasetKind,
    OpenOptions,
    Sample,
    digest,
    first_readable,
    has_nan,
    name_of,
)
from embedcache.errors import DatasetError, SampleError, SettingError


class GeoBenchSource:
    """An open GEO-Bench v1 dataset; see :class:`embedcache.datasets._spec.SampleSource`."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        options.refuse("GEO-Bench has partitions", "arguments")
        choice = options.bands or "corrected"
        if choice not in {"corrected", "as-published"}:
            raise SettingError(
                f"--bands {choice!r}: GEO-Bench files name their own bands; choose 'corrected' (known faults are "
                "mended, and what is no image is left out; the default) or 'as-published'."
            )
        self.path = path
        self.sample_ids, self.splits = files.read_partition(path, options.partition or "default")
        self._labels, self._label_digest = files.read_labels(path)
        facts = FACTS.get(ALIASES.get(path.name, path.name))
        first_id, (published, dated, attribute) = first_readable(self.sample_ids, self._first_look)
        mended = facts is not None and already_mended(path, facts.corrected, published.keys())
        mend: Mapping[str, str] = {}
        left_out: tuple[str, ...] = ()
        if facts and choice == "corrected":
            mend, left_out = {} if mended else facts.corrected, facts.left_out
        self._keys = {mend.get(key, band): key for key, band in published.items() if key not in left_out}
        self._swapped_places = facts is not None and facts.swapped_places
        task = facts.task if facts else files.infer_task(path, first_id, self._labels, attribute)
        located = not (facts and facts.wrong_places) and files.location(attribute, 1, 1)[0] is not None
        known = facts.num_classes if facts else None
        names = facts.class_names if facts and facts.class_names else None
        self.info = DatasetInfo(
            name=name_of(path),
            task=task,
            bands=tuple(self._keys),
            band_sources=tuple(self._keys.values()),
            units=options.units or (facts.units if facts else files.infer_units(path, first_id)),
            class_names=names or files.class_names(path, known, task, self._labels, attribute),
            has_time=dated,
            has_location=located,
            notes=_notes(facts, mended, choice, tuple(self._keys)),
        )

    def read(self, index: int, bands: Sequence[str]) -> Sample:
        """Read one sample; see :class:`embedcache.datasets._spec.SampleSource`."""
        sample_id = self.sample_ids[index]
        layers, date, mask, attribute = files.inside(
            self.path, sample_id, lambda file: self._take(file, sample_id, bands)
        )
        if len({layer.shape for layer in layers}) > 1 or layers[0].ndim != 2:
            raise SampleError(sample_id, f"its bands have shapes {[layer.shape for layer in layers]}, not one 2-D size")
        image = np.stack(layers)
        if has_nan(image):
            raise SampleError(sample_id, "it holds NaN pixels")
        needed = self.info.has_location or self._labels is None
        content = files.parse_attribute(sample_id, attribute) if needed else {}
        lat, lon = files.location(content, *image.shape[1:]) if self.info.has_location else (None, None)
        if self._swapped_places and lat is not None and lon is not None and lat < lon:
            lat, lon = lon, lat
        if self.info.task == "segmentation":
            target: Any = _checked_mask(sample_id, mask, image.shape[1:])
        else:
            target = self._label(sample_id, content)
        return Sample(
            sample_id=sample_id,
            image=image,
            target=target,
            time=files.timestamp(date) if date else None,
            lat=lat,
            lon=lon,
        )

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the sample's HDF5 file."""
        return (self.path / f"{self.sample_ids[index]}.hdf5",)

    def revision(self, indices: Sequence[int]) -> Mapping[str, Any]:
        """Digest splits and label files; see SampleSource."""
        return {
            "splits": digest(self.splits[i] for i in indices),
            "labels": self._label_digest,
        }

    def _first_look(self, sample_id: str) -> tuple[dict[str, str], bool, Mapping[str, Any]]:
        """Bands by HDF5 key (lower case, no date) as the file names them, whether they are dated, and the attribute."""

        def look(file: Any) -> tuple[list[str], Any]:
            return [k for k in sorted(file) if not files.is_mask(k)], file.attrs.get("pickle")

        keys, attribute = files.inside(self.path, sample_id, look)
        if not keys:
            raise DatasetError(f"'{sample_id}.hdf5' in {str(self.path)!r} holds no band.")
        bare = [files.undated(k)[0].lower() for k in keys]
        dated = all(files.undated(k)[1] for k in keys)
        names = {k: standard_name(k, set(bare)) for k in bare}
        return names, dated, files.parse_attribute(sample_id, attribute)

    def _take(
        self, file: Any, sample_id: str, bands: Sequence[str]
    ) -> tuple[list[npt.NDArray[Any]], str | None, Any, Any]:
        by_key = {files.undated(k)[0].lower(): k for k in file if not files.is_mask(k)}
        absent = [self._keys[b] for b in bands if self._keys[b] not in by_key]
        if absent:
            raise SampleError(sample_id, f"it has no band {absent[0]!r}")
        chosen = [by_key[self._keys[b]] for b in bands]
        mask_key = next((k for k in file if files.is_mask(k)), None)
        mask = np.squeeze(file[mask_key][()]) if mask_key and self.info.task == "segmentation" else None
        layers = [np.squeeze(np.asarray(file[k][()])) for k in chosen]
        return layers, files.undated(chosen[0])[1], mask, file.attrs.get("pickle")

    def _label(self, sample_id: str, content: Mapping[str, Any]) -> int | npt.NDArray[np.uint8]:
        label = self._labels.get(sample_id) if self._labels is not None else content.get("label")
        if label is None:
            raise SampleError(sample_id, "it has no label")
        classes = self.info.num_classes
        try:
            values = np.asarray(label)
            if self.info.task == "multilabel":
                if values.shape != (classes,) or not np.isin(values, (0, 1)).all():
                    raise ValueError
                return values.astype(np.uint8)
            if values.ndim != 0 or int(label) != label or not 0 <= int(label) < classes:
                raise ValueError
            return int(label)
        except (ValueError, TypeError, OverflowError):
            shown = repr(label)[:60]
            raise SampleError(sample_id, f"its label {shown} is not one of {classes} classes") from None


def _checked_mask(sample_id: str, mask: Any, shape: Sequence[int]) -> npt.NDArray[Any]:
    if not isinstance(mask, np.ndarray) or mask.ndim != 2:
        raise SampleError(sample_id, "it has no label mask")
    if mask.shape != tuple(shape):
        raise SampleError(sample_id, f"its mask is {mask.shape} px and its image {tuple(shape)}")
    if has_nan(mask) or mask.dtype.kind not in "iufb" or mask.min() < -32768 or mask.max() > 32767:
        raise SampleError(sample_id, "its mask does not hold class numbers")
    return mask


def _notes(facts: Facts | None, mended: bool, choice: str, bands: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if facts and facts.corrected:
        if mended:
            end = "these files have right ones already, which are kept"
        elif choice == "corrected":
            end = "mended here (--bands as-published keeps them)"
        else:
            end = "kept as published"
        notes.append(f"{facts.fault}; {end}")
    notes += known_notes(facts) if facts else ()
    if facts is None:
        notes.append("not one of the twelve GEO-Bench v1 datasets; task and units were worked out from the files")
    unknown = [b for b in bands if b not in WAVELENGTHS_UM]
    if unknown:
        notes.append(f"bands without a standard name: {', '.join(unknown)}")
    return tuple(notes)


KIND = DatasetKind(name="geobench", title="GEO-Bench v1 folder (m-*)", open=GeoBenchSource)
