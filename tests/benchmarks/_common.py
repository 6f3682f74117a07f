"""What every benchmark needs: a fixed machine description, and a table saved under ``docs/benchmarks``."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = REPOSITORY / "docs" / "benchmarks"


def machine() -> dict[str, Any]:
    """Processor, cores, memory and versions, and the commit that was measured."""
    model = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), ""
        )
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit.strip() + ("+" if dirty.strip() else ""),
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "zarr", "numpy")},
    }


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each piece of work, taken in turns so that a drifting machine drifts for all of them."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in taken.items()}


def save(name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str]) -> None:
    """Write ``NAME.json`` and ``NAME.md``, and print the table."""
    OUT.mkdir(parents=True, exist_ok=True)
    facts = machine()
    (OUT / f"{name}.json").write_text(
        json.dumps(
            {"title": title, "machine": facts, "header": list(header), "rows": [list(r) for r in rows]}, indent=1
        )
        + "\n"
    )
    lines = [f"# {title}", "", f"`python tests/benchmarks/run.py {name}`, {facts['date']}, commit {facts['commit']}."]
    lines += [
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB; Python {facts['python']}, "
        f"torch {facts['torch']}, zarr {facts['zarr']}.",
        "",
        "| " + " | ".join(header) + " |",
        "| " + " | ".join("---" for _ in header) + " |",
        *("| " + " | ".join(str(c) for c in row) + " |" for row in rows),
        "",
        *notes,
    ]
    text = "\n".join(lines).rstrip() + "\n"
    (OUT / f"{name}.md").write_text(text)
    print(text)
