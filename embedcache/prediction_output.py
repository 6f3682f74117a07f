"""Writes predictions: tables of labels, masks as PNG or GeoTIFF; a folder appears whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedcache.errors import SettingError
from embedcache.evaluation.metrics import evaluate
from embedcache.evaluation.record import RunRecord
from embedcache.evaluation.segmentation_metrics import SegmentationScores
from embedcache.georeference import Georeference
from embedcache.prediction import Answers
from embedcache_stores.errors import SampleIdMismatchError

SUMMARY = "summary.json"

Locate = Callable[[str], Georeference | None]


class OutputFolder(AbstractContextManager[Path]):
    """A folder that is filled under another name and put in its place when all is well.

    A folder of predictions that is there already is replaced; any other is left alone.
    """

    def __init__(self, out: Path) -> None:
        """Check that the place is free, or ours.

        Raises
        ------
        SettingError
            If it holds something else.
        """
        self._out = out
        self._new, self._old = (out.with_name(f"{out.name}.{end}") for end in ("partial", "replaced"))
        for path in (out, self._new, self._old):
            if path.exists() and not (path.is_dir() and (_is_ours(path) or not any(path.iterdir()))):
                raise SettingError(f"{str(path)!r} holds something else than predictions; choose another --out.")

    def __enter__(self) -> Path:
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir(parents=True)
        (self._new / SUMMARY).write_text('{"embedcache": "predictions", "state": "partial"}\n')
        return self._new

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            shutil.rmtree(self._new, ignore_errors=True)
            return
        if self._out.exists():
            shutil.rmtree(self._old, ignore_errors=True)
            self._out.rename(self._old)
        self._new.rename(self._out)
        shutil.rmtree(self._old, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    try:
        return bool(json.loads((path / SUMMARY).read_text(encoding="utf-8"))["embedcache"] == "predictions")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_labels(record: RunRecord, answers: Iterable[Answers], folder: Path) -> dict[str, Any]:
    """Write ``predictions.csv`` and ``.parquet``, and return counts and scores of the samples with a target.

    Columns: ``sample_id``, ``split``, ``predicted`` and ``predicted_index``, ``target`` and ``target_index`` (several
    labels joined by ``|``; empty where not known), and ``p_<class>``, the probability of each class: softmax, or for
    several labels the sigmoid of each.
    """
    import pandas as pd

    every = list(answers)
    ids = [i for a in every for i in a.sample_ids]
    targets = [t for a in every for t in a.targets]
    if not every:
        return {"samples": 0, "scored": 0, "scores": {}}
    logits = torch.cat([a.logits for a in every])
    multi = record.task == "multilabel"
    probability = (logits.sigmoid() if multi else logits.softmax(dim=1)).numpy()
    found = [np.flatnonzero(row > 0) for row in logits.numpy()] if multi else logits.numpy().argmax(axis=1)[:, None]
    true = [None if t is None else np.flatnonzero(t) if multi else np.asarray([int(t)]) for t in targets]
    names = list(record.class_names)
    table = pd.DataFrame(
        {
            "sample_id": ids,
            "split": [s for a in every for s in a.splits],
            "predicted": [_joined(names[c] for c in row) for row in found],
            "predicted_index": [_joined(row) for row in found],
            "target": [None if row is None else _joined(names[c] for c in row) for row in true],
            "target_index": [None if row is None else _joined(row) for row in true],
            **{column: probability[:, c] for c, column in enumerate(_columns(names))},
        }
    )
    if not multi:
        table["predicted_index"] = table["predicted_index"].astype("int64")
        table["target_index"] = table["target_index"].astype("Int64")
    table.to_csv(folder / "predictions.csv", index=False)
    table.to_parquet(folder / "predictions.parquet", index=False)
    at = [i for i, t in enumerate(targets) if t is not None]
    scores = evaluate(record.task, logits[at].numpy(), np.stack([targets[i] for i in at])) if at else {}
    return {"samples": len(ids), "scored": len(at), "scores": scores}


def write_masks(
    record: RunRecord,
    answers: Iterable[Answers],
    folder: Path,
    sample_ids: Sequence[str],
    *,
    ignore_index: int | None,
    locate: Locate | None = None,
    probabilities: bool = False,
) -> dict[str, Any]:
    """Write one mask a sample under ``masks/``, and return counts and scores of the samples with a target.

    A mask holds class indices, ``uint8`` (``uint16`` for more than 256 classes), on the grid of the backbone's input:
    a GeoTIFF with coordinates where the sample's place is known, else a PNG. ``masks.csv`` lists them.

    Parameters
    ----------
    record
        Of the head.
    answers
        What it says.
    folder
        To write to.
    sample_ids
        All that will come, for unique file names.
    ignore_index
        Value of pixels without a label in the targets.
    locate
        Tells where a sample lies; None where nobody knows.
    probabilities
        Write the probability of each class too: ``.npy`` float16 ``(class, y, x)``, or GeoTIFF of float32 bands.
    """
    import pandas as pd

    names = file_names(sample_ids)
    scores = SegmentationScores(len(record.class_names), -1 if ignore_index is None else ignore_index)
    listed: list[dict[str, Any]] = []
    scored = 0
    for one in answers:
        chances = one.logits.softmax(dim=1)
        confidence, labels = chances.max(dim=1)
        for i, sample_id in enumerate(one.sample_ids):
            place = locate(sample_id) if locate is not None else None
            mask = labels[i].numpy().astype(np.uint8 if len(record.class_names) <= 256 else np.uint16)
            path = Path("masks") / f"{names[sample_id]}.{'png' if place is None else 'tif'}"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            _write_raster(folder / path, mask[None], place, record)
            if probabilities:
                _write_probabilities(folder / path, chances[i].numpy(), place, record)
            listed.append({"sample_id": sample_id, "split": one.splits[i], "mask": path.as_posix()})
            if one.targets[i] is not None:
                scores.update(labels[i : i + 1].numpy(), confidence[i : i + 1].numpy(), one.targets[i][None])
                scored += 1
    pd.DataFrame(listed, columns=["sample_id", "split", "mask"]).to_csv(folder / "masks.csv", index=False)
    known = scores.confusions.any()  # masks of which every pixel is ignored score nothing
    return {"samples": len(listed), "scored": scored, "scores": scores.compute() if known else {}}


def write_summary(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``summary.json``, which marks a folder of predictions."""
    (folder / SUMMARY).write_text(json.dumps({"embedcache": "predictions", **facts}, indent=1) + "\n")


def file_names(sample_ids: Sequence[str]) -> dict[str, str]:
    """Name a file for each sample, without ending and safe on any disk; the ids' folders are kept.

    Raises
    ------
    SampleIdMismatchError
        If two ids would share a file.
    """

    def safe(text: str) -> str:
        parts = [re.sub(r"[^\w.+@=-]", "_", p) for p in text.split("/") if p not in {"", "."}]
        return "/".join("__" if p == ".." else p for p in parts) or "_"

    short = {i: safe(re.sub(r"\.(jpe?g|png|tiff?|hdf5)$", "", i, flags=re.IGNORECASE)) for i in sample_ids}
    if len(set(map(str.lower, short.values()))) == len(short):
        return short
    whole = {i: safe(i) for i in sample_ids}
    if len(set(whole.values())) < len(whole):
        raise SampleIdMismatchError("two sample ids differ only in characters that a file name cannot hold.")
    return whole


def _write_raster(path: Path, bands: npt.NDArray[Any], place: Georeference | None, record: RunRecord) -> None:
    if place is None:
        from PIL import Image

        Image.fromarray(bands[0]).save(path)
        return
    import rasterio

    count, height, width = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=count,
        dtype=bands.dtype,
        crs=place.crs,
        transform=place.resampled(height, width),
        compress="deflate",
    ) as file:
        file.write(bands)
        file.update_tags(classes="|".join(record.class_names), features=record.features)
        if count > 1:
            file.descriptions = tuple(record.class_names)


def _write_probabilities(
    mask: Path, chances: npt.NDArray[np.float32], place: Georeference | None, record: RunRecord
) -> None:
    if place is None:
        np.save(mask.with_name(f"{mask.stem}.probabilities.npy"), chances.astype(np.float16))
    else:
        _write_raster(mask.with_name(f"{mask.stem}.probabilities.tif"), chances, place, record)


def _joined(parts: Iterable[Any]) -> str:
    return "|".join(str(p) for p in parts)


def _columns(names: Sequence[str]) -> list[str]:
    if len(set(names)) == len(names):
        return [f"p_{name}" for name in names]
    return [f"p_{i}_{name}" for i, name in enumerate(names)]
