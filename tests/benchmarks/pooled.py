"""A million pooled vectors: how long opening takes, and how fast they are scanned and picked from."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from _common import interleaved, save
from _stores import write_store

from embedcache_stores import FeatureStore

ROWS, CHANNELS, GROUP = 1_000_000, 1024, 1024


def main() -> None:
    """Write 2 GB once, then read with the page cache warm."""
    rng = np.random.default_rng(0)
    block = rng.normal(size=(1 << 16, CHANNELS)).astype(np.float16)
    data = np.resize(block, (ROWS, CHANNELS))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = write_store(root / "m-bench" / "pooled.zarr", {"pooled_mean": data}, GROUP)
        np.save(root / "flat.npy", data)
        flat = np.load(root / "flat.npy", mmap_mode="r")
        out = np.empty((65536, CHANNELS), np.float16)
        few = np.empty((4096, CHANNELS), np.float16)

        def opened() -> float:
            start = time.perf_counter()
            FeatureStore(store.path)
            return time.perf_counter() - start

        opening = sorted(opened() for _ in range(5))[2]

        def scan(source: FeatureStore) -> None:
            for start in range(0, ROWS - len(out), len(out)):
                source.read_stored_into("pooled_mean", np.arange(start, start + len(out)), out)

        def copy(source: np.ndarray) -> None:
            for start in range(0, ROWS - len(out), len(out)):
                np.copyto(out, source[start : start + len(out)])

        def by_zarr() -> None:
            array = zarr.open_group(str(store.path), mode="r")["pooled_mean"]
            for start in range(0, ROWS - len(out), len(out)):
                np.copyto(out, array[start : start + len(out)])

        unchecked = FeatureStore(store.path, check=False)
        scans: dict[str, Callable[[], object]] = {
            "memcpy": lambda: copy(data),
            "embedcache": lambda: scan(store),
            "embedcache, first pass of a process": lambda: scan(FeatureStore(store.path)),
            "embedcache, first pass, checksums off": lambda: scan(FeatureStore(store.path, check=False)),
            "numpy memmap of one file": lambda: copy(flat),
            "zarr-python slices": by_zarr,
        }
        picks: dict[str, Callable[[], object]] = {
            "memcpy": lambda: np.copyto(few, data[: len(few)]),
            "numpy take from RAM": lambda: np.take(data, rng.permutation(ROWS)[: len(few)], axis=0, out=few),
            "embedcache": lambda: unchecked.read_stored_into("pooled_mean", rng.integers(0, ROWS, len(few)), few),
        }
        for work in (*scans.values(), *picks.values()):
            work()
        taken, picked = interleaved(scans, 5), interleaved(picks, 5)
    rows = [("open", "embedcache", f"{1000 * opening:.1f} ms", "")]
    rows += [
        ("scan", n, f"{ROWS * CHANNELS * 2 / t / 1e9:.2f} GB/s", f"{taken['memcpy'] / t:.2f}") for n, t in taken.items()
    ]
    rows += [
        ("4096 random rows", n, f"{few.nbytes / t / 1e9:.2f} GB/s", f"{picked['memcpy'] / t:.2f}")
        for n, t in picked.items()
    ]
    save(
        "pooled",
        "A million pooled vectors of 1024, float16",
        ("job", "reader", "speed", "of memcpy"),
        rows,
        [
            f"2.05 GB in row groups of {GROUP}; blocks of 65,536 rows into a reused buffer; page cache warm, medians in "  # noqa: E501
            "turns. Opening reads one file.",
        ],
    )
