"""What each dtype and compression costs: bytes, error, and the speed of writing and reading."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import save, seconds
from _stores import write_store

from embedcache.datasets._registry import open_dataset
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractOptions, plan_extraction
from embedcache.synthetic import make_scenes
from embedcache_stores import FeatureStore

SAMPLES, BATCH = 256, 32


def main() -> None:
    """Extract real activations once, then keep them in every way."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = make_scenes(root / "m-bench", train=SAMPLES, val=0, test=0)
        options = ExtractOptions(weights="random", what="maps", dtype="float32")
        plan = plan_extraction(open_dataset(f"geobench:{dataset}"), "sam2_hiera_tiny", root / "cache", options)
        pilot = FeatureStore(extract(plan))
        rows = np.arange(SAMPLES)
        live = {level.name: pilot.read(level.name, rows) for level in pilot.levels}
        table = []
        for dtype in ("float32", "float16", "bfloat16", "int8"):
            for compression in ("none", "lz4", "zstd"):
                table.append((dtype, compression, *_measure(root / "one.zarr", live, dtype, compression)))
    base = {row[0]: row for row in table if row[1] == "none"}["float16"]
    rows_out = [
        (d, c, f"{size / base[2]:.2f}", f"{error:.1e}", *(f"{base[i] / t:.2f}" for i, t in ((4, w), (5, s), (6, r))))
        for d, c, size, error, w, s, r in table
    ]
    save(
        "dtypes",
        "Dtypes and compression of feature maps",
        ("dtype", "compression", "bytes", "error", "write", "scan", "random 32"),
        rows_out,
        [
            f"{SAMPLES} samples of SAM 2 Hiera tiny at 224 px (random weights, procedural scenes), four levels, row groups of "  # noqa: E501
            "16. Bytes and speeds relative to float16 uncompressed; speeds are samples per second, decoded to what "
            "`FeatureStore.read` returns (float32 for bfloat16 and int8). Error: relative root mean square.",
        ],
    )


def _measure(path: Path, live: dict[str, np.ndarray], dtype: str, compression: Any) -> tuple[float, ...]:
    values = {k: v.astype(np.float16) if dtype == "float16" else v for k, v in live.items()}
    written = []
    for _ in range(3):
        shutil.rmtree(path, ignore_errors=True)
        start = time.perf_counter()
        store = write_store(path, values, 16, dtype, compression=compression)
        written.append(time.perf_counter() - start)
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    rng = np.random.default_rng(0)

    def scan() -> None:
        for start in range(0, SAMPLES, 64):
            for name in live:
                store.read(name, np.arange(start, start + 64))

    def random() -> None:
        rows = rng.permutation(SAMPLES)[:BATCH]
        for name in live:
            store.read(name, rows)

    scan()
    scans, randoms = sorted(seconds(scan) for _ in range(5))[2], sorted(seconds(random) for _ in range(9))[4]
    wrong = power = 0.0
    for name, values_ in live.items():
        got = store.read(name, np.arange(SAMPLES)).astype(np.float64)
        wrong += float(((got - values_) ** 2).sum())
        power += float((values_.astype(np.float64) ** 2).sum())
    return size, float(np.sqrt(wrong / power)), sorted(written)[1], scans, randoms
