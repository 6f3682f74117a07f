"""Writing feature maps: our writer, fsync and all, against plain files with fsync and what other libraries do."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore
import zarr
from _common import interleaved, save
from _stores import maps, write_store

SAMPLES, REPEATS = 256, 5


def main() -> None:
    """Write the same bytes in turns, removing what was written before each turn."""
    data = maps(SAMPLES)
    whole = sum(v.nbytes for v in data.values())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def ours(group: int) -> Callable[[], object]:
            return lambda: write_store(_fresh(root / "ours.zarr"), data, group)

        works = {
            "raw files, one per array and 16 samples, fsync": lambda: _raw(_fresh(root / "raw"), data, 16),
            "raw files, one per array and 32 samples, fsync": lambda: _raw(_fresh(root / "raw"), data, 32),
            "embedcache, row groups of 16": ours(16),
            "embedcache, row groups of 32": ours(32),
            "embedcache, row groups of 32, lz4": lambda: write_store(
                _fresh(root / "ours.zarr"), data, 32, compression="lz4"
            ),
            "zarr-python, chunks of 32, no fsync": lambda: _zarr(_fresh(root / "zarr"), data),
            "tensorstore, chunks of 32": lambda: _tensorstore(_fresh(root / "ts"), data),
            "h5py, contiguous, no fsync": lambda: _hdf5(root / "all.h5", data),
        }
        for work in works.values():
            work()
        taken = interleaved(works, REPEATS)
    base = taken["raw files, one per array and 32 samples, fsync"]
    rows = [(name, f"{whole / t / 1e9:.2f}", f"{base / t:.2f}") for name, t in taken.items()]
    save(
        "writing",
        "Writing feature maps",
        ("writer", "GB/s", "of raw files"),
        rows,
        [
            f"{SAMPLES} samples of four Hiera-Large levels, float16, {whole / 1e6:.0f} MB; medians of writers in turns. Raw "  # noqa: E501
            "files are opened, written, fsynced and closed, and their folder fsynced once a group. embedcache also "
            "computes checksums and largest magnitudes, renames each file, and fsyncs its progress record.",
        ],
    )


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    return path


def _raw(path: Path, data: dict[str, np.ndarray], group: int) -> None:
    for name in data:
        (path / name).mkdir(parents=True)
    for start in range(0, SAMPLES, group):
        for name, values in data.items():
            with (path / name / str(start)).open("wb", buffering=0) as file:
                file.write(memoryview(values[start : start + group].reshape(-1)).cast("B"))
                os.fsync(file.fileno())
            folder = os.open(path / name, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)


def _zarr(path: Path, data: dict[str, np.ndarray]) -> None:
    for name, values in data.items():
        array = zarr.create_array(
            str(path / name), shape=values.shape, chunks=(32, *values.shape[1:]), dtype=values.dtype, compressors=None
        )
        for start in range(0, SAMPLES, 32):
            array[start : start + 32] = values[start : start + 32]


def _tensorstore(path: Path, data: dict[str, np.ndarray]) -> None:
    for name, values in data.items():
        spec: dict[str, Any] = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(path / name)},
            "metadata": {
                "shape": list(values.shape),
                "data_type": "float16",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [32, *values.shape[1:]]}},
            },
            "create": True,
        }
        array = tensorstore.open(spec).result()
        for start in range(0, SAMPLES, 32):
            array[start : start + 32].write(values[start : start + 32]).result()


def _hdf5(path: Path, data: dict[str, np.ndarray]) -> None:
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in data.items():
            file[name] = values
