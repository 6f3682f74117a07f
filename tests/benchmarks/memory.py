"""Peak memory of an extraction as the number of rows grows."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from _common import save

from embedcache.synthetic import make_scenes

_CHILD = """
import sys
from embedcache.datasets._registry import open_dataset
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractOptions, plan_extraction
source = open_dataset("geobench:" + sys.argv[1])
options = ExtractOptions(weights="random", input_size=128, what="both", limit=int(sys.argv[3]))
plan = plan_extraction(source, "sam2_hiera_tiny", sys.argv[2], options)
extract(plan)
# Not getrusage: its peak is handed down from the parent process.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024, plan.spec.rows * plan.spec.row_bytes / 2**20)
"""


def main() -> None:
    """Extract more and more rows, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = make_scenes(root / "m-bench", train=1600, val=0, test=0)
        base = 0.0
        for count in (200, 400, 800, 1600):
            command = [sys.executable, "-c", _CHILD, str(dataset), str(root / f"cache{count}"), str(count)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            peak, written = float(out[0]), float(out[1])
            base = base or peak
            rows.append((count, f"{written:.0f}", f"{peak:.0f}", f"{peak / base:.2f}"))
    save(
        "memory",
        "Peak memory of extraction against the number of rows",
        ("rows", "MiB written", "peak MiB", "of the smallest"),
        rows,
        ["SAM 2 Hiera tiny, maps and pooled vectors at 128 px; the peak includes Python, torch and the model."],
    )
