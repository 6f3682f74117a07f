"""Random minibatches and scans of feature maps: our readers against memcpy and what other tools do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore
import torch
import zarr
from _common import interleaved, save
from _stores import maps, write_store

from embedcache.ensemble import Ensemble
from embedcache.feature_loader import FeatureLoader
from embedcache_stores import FeatureStore

SAMPLES, BATCH, GROUP = 512, 32, 16
REPEATS = 15


def main() -> None:
    """Measure with the page cache warm, readers in turns."""
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder))


def _measure(root: Path) -> None:
    data = maps(SAMPLES)
    names = list(data)
    store = write_store(root / "m-bench" / "hiera.zarr", data, GROUP)
    buffers = {k: np.empty((BATCH, *v.shape[1:]), v.dtype) for k, v in data.items()}
    wide = {k: np.empty((256, *v.shape[1:]), v.dtype) for k, v in data.items()}
    rng = np.random.default_rng(1)

    def rows() -> np.ndarray:
        return rng.permutation(SAMPLES)[:BATCH]

    loader = FeatureLoader(Ensemble([store]), names, np.arange(SAMPLES), batch_size=BATCH, mode="streaming")
    peers = _peers(root, data, store)
    random: dict[str, Callable[[], object]] = {
        "memcpy": lambda: _copy_somewhere(data, buffers, rng),
        "embedcache": lambda: _direct(store, rows(), buffers),
        **{name: (lambda f=f: f(rows(), buffers)) for name, f in peers.items()},
    }
    scan: dict[str, Callable[[], object]] = {
        "memcpy": lambda: [_copy_all(data[k], wide[k]) for k in names],
        "embedcache": lambda: _scan(store, wide),
        "embedcache, first pass of a process": lambda: _scan(FeatureStore(store.path), wide),
        "embedcache, first pass, checksums off": lambda: _scan(FeatureStore(store.path, check=False), wide),
        "zarr-python slices": lambda: _zarr_scan(store, wide),
        "zarrs slices": lambda: _zarr_scan(store, wide, rust=True),
        "tensorstore slices": lambda: _tensorstore_scan(store, wide),
    }
    epoch: dict[str, Callable[[], object]] = {
        "memcpy": lambda: [_copy_somewhere(data, buffers, rng) for _ in range(SAMPLES // BATCH)],
        "embedcache FeatureLoader, streaming": lambda: [None for _ in loader.epoch(0)],
    }
    for work in (*scan.values(), *random.values(), *epoch.values()):
        work()  # warm
    slow = {name: work for name, work in random.items() if name.startswith("zarr")}
    fast = {name: work for name, work in random.items() if name not in slow}
    taken = interleaved(fast, REPEATS) | interleaved({"memcpy, in the turns of the slow": random["memcpy"], **slow}, 3)
    scans, epochs = interleaved(scan, 7), interleaved(epoch, 7)
    size, whole = sum(b.nbytes for b in buffers.values()), sum(v.nbytes for v in data.values())
    table = [
        ("random 32", name, f"{size / t / 1e9:.2f}", f"{taken['memcpy'] / t:.3f}", f"{t / taken['embedcache']:.1f}")
        for name, t in taken.items()
    ]
    table += [
        ("scan", name, f"{whole / t / 1e9:.2f}", f"{scans['memcpy'] / t:.3f}", f"{t / scans['embedcache']:.1f}")
        for name, t in scans.items()
    ]
    table += [
        ("epoch", name, f"{whole / t / 1e9:.2f}", f"{epochs['memcpy'] / t:.3f}", "") for name, t in epochs.items()
    ]
    save(
        "reading",
        "Reading feature maps: random minibatches of 32, and scans",
        ("job", "reader", "GB/s", "of memcpy", "times ours"),
        table,
        [
            f"Four levels of Hiera-Large at 224 px, float16, {size / BATCH / 1e6:.2f} MB per sample, {SAMPLES} samples; "  # noqa: E501
            f"row groups of {GROUP}. Page cache warm; medians of readers in turns. memcpy is numpy copying as many bytes "  # noqa: E501
            "between buffers that both exist. Every reader fills the same reused buffers, and was checked to give the "
            "same numbers. 'times ours' is time divided by that of embedcache at the same job. The epoch is a whole one "  # noqa: E501
            "in batches of 32, in random order, two threads reading ahead and nobody using the batches.",
        ],
    )


def _copy_somewhere(data: dict[str, np.ndarray], out: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Copy a run of samples from a random place, so that the processor's cache does not hold it."""
    start = int(rng.integers(SAMPLES - BATCH))
    for name, buffer in out.items():
        np.copyto(buffer, data[name][start : start + BATCH])


def _direct(store: FeatureStore, rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
    for name, buffer in out.items():
        store.read_stored_into(name, rows, buffer)


def _copy_all(source: np.ndarray, out: np.ndarray) -> None:
    for start in range(0, len(source), len(out)):
        np.copyto(out, source[start : start + len(out)])


def _scan(store: FeatureStore, out: dict[str, np.ndarray]) -> None:
    for start in range(0, SAMPLES, 256):
        for name, buffer in out.items():
            store.read_stored_into(name, np.arange(start, start + 256), buffer)


def _zarr_scan(store: FeatureStore, out: dict[str, np.ndarray], *, rust: bool = False) -> None:
    with zarr.config.set({"codec_pipeline.path": _RUST if rust else _PYTHON}):
        group = zarr.open_group(str(store.path), mode="r")
        for start in range(0, SAMPLES, 256):
            for name, buffer in out.items():
                array: Any = group[name]
                np.copyto(buffer, array[start : start + 256])


def _tensorstore_scan(store: FeatureStore, out: dict[str, np.ndarray]) -> None:
    opened = {name: _tensorstore(store.path / name) for name in out}
    for start in range(0, SAMPLES, 256):
        for name, buffer in out.items():
            np.copyto(buffer, opened[name][start : start + 256].read().result())


_RUST = "zarrs.ZarrsCodecPipeline"
_PYTHON = "zarr.core.codec_pipeline.BatchedCodecPipeline"


def _tensorstore(path: Path) -> Any:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, read=True).result()


def _peers(root: Path, data: dict[str, np.ndarray], store: FeatureStore) -> dict[str, Callable[..., object]]:
    """Other ways to keep and read the same features, each given its friendliest layout; all checked."""
    samples = root / "pt"
    samples.mkdir()
    for i in range(SAMPLES):
        torch.save({k: torch.from_numpy(v[i].copy()) for k, v in data.items()}, samples / f"{i}.pt")
    with h5py.File(root / "all.h5", "w") as file:
        for k, v in data.items():
            file[k] = v
    hdf5 = h5py.File(root / "all.h5", "r")
    for k, v in data.items():
        np.save(root / f"{k}.npy", v)
    mapped = {k: np.load(root / f"{k}.npy", mmap_mode="r") for k in data}
    single = write_store(root / "m-bench" / "single.zarr", data, 1)
    shards = write_store(root / "m-bench" / "shards.zarr", data, 256, rows_per_chunk=1)
    opened = {k: _tensorstore(single.path / k) for k in data}
    groups = {}
    for pipeline in (_PYTHON, _RUST):
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            for layout in (single, shards):
                group = zarr.open_group(str(layout.path), mode="r")
                groups[pipeline, layout.name] = {k: group[k] for k in data}

    def from_files(rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
        """Do what a DataLoader over such files does: load each, stack."""
        loaded = [torch.load(samples / f"{row}.pt", weights_only=True) for row in rows]
        for k, buffer in out.items():
            stacked = torch.stack([sample[k] for sample in loaded]).numpy()
            if checking:
                np.copyto(buffer, stacked)

    def from_files_into_buffers(rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
        for at, row in enumerate(rows):
            for k, v in torch.load(samples / f"{row}.pt", weights_only=True).items():
                out[k][at] = v.numpy()

    def from_hdf5(rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
        for k, buffer in out.items():
            for at, row in enumerate(rows):
                hdf5[k].read_direct(buffer, np.s_[row], np.s_[at])

    def from_memmap(rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
        for k, buffer in out.items():
            np.take(mapped[k], rows, axis=0, out=buffer)

    def from_tensorstore(rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
        for k, future in {k: opened[k][rows].read() for k in out}.items():
            np.copyto(out[k], future.result())

    def from_zarr(pipeline: str, layout: str) -> Callable[..., None]:
        def read(rows: np.ndarray, out: dict[str, np.ndarray]) -> None:
            for k, buffer in out.items():
                array: Any = groups[pipeline, layout][k]
                np.copyto(buffer, array.oindex[rows])

        return read

    peers: dict[str, Callable[..., object]] = {
        "numpy memmap, take": from_memmap,
        "tensorstore, chunks of 1": from_tensorstore,
        "h5py, contiguous": from_hdf5,
        "one .pt file per sample, stacked": from_files,
        "one .pt file per sample, into reused buffers": from_files_into_buffers,
        "zarr-python oindex, chunks of 1": from_zarr(_PYTHON, "single"),
        "zarr-python oindex, shards of 256": from_zarr(_PYTHON, "shards"),
        "zarrs oindex, chunks of 1": from_zarr(_RUST, "single"),
        "zarrs oindex, shards of 256": from_zarr(_RUST, "shards"),
    }
    rows = np.random.default_rng(5).permutation(SAMPLES)[:BATCH]
    checking = True
    for name, read in peers.items():
        out = {k: np.empty((BATCH, *v.shape[1:]), v.dtype) for k, v in data.items()}
        read(rows, out)
        for k, buffer in out.items():
            np.testing.assert_array_equal(buffer, data[k][rows], err_msg=name)
            np.testing.assert_array_equal(store.read(k, rows), buffer, err_msg=name)
    checking = False
    return peers
