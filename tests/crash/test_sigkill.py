"""A real process, really killed, again and again."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache_stores import FeatureStore, IncompleteStoreError, NotAStoreError
from embedcache_stores.manifest import read_progress

SCRIPT = Path(__file__).with_name("writer_process.py")


@pytest.fixture(scope="module")
def process_module() -> Any:
    spec = importlib.util.spec_from_file_location("writer_process", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_resume_after_sigkill_is_byte_identical(tmp_path: Path, process_module: Any) -> None:
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    subprocess.run([sys.executable, SCRIPT, whole], check=True, capture_output=True)
    rng = np.random.default_rng(7)
    kills = 0
    for _ in range(60):
        process = subprocess.Popen([sys.executable, SCRIPT, killed], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.03)))
        process.kill()
        process.wait()
        process.stdout.close()
        if (killed / "zarr.json").exists():
            break
        kills += 1
        check_what_a_reader_sees(killed, process_module)
    else:
        subprocess.run([sys.executable, SCRIPT, killed], check=True, capture_output=True)
    assert kills >= 3
    left, right = (files(p) for p in (whole, killed))
    assert left.keys() == right.keys()
    assert [n for n in left if left[n] != right[n] and n != "zarr.json"] == []


def check_what_a_reader_sees(path: Path, module: Any) -> None:
    """Either a whole store or none; and every row group that is recorded holds what was written."""
    if (path / "zarr.json").exists():
        assert FeatureStore(path).rows == module.ROWS
        return
    with pytest.raises((IncompleteStoreError, NotAStoreError)):
        FeatureStore(path)
    if not (path / "progress.jsonl").exists():
        return
    import zarr

    _, records, _ = read_progress(path / "progress.jsonl")
    for record in records:
        group = record["group"]
        rows = module.SPEC.group_rows(group)
        for name, values in module.content(group)[0].items():
            array: Any = zarr.open_array(str(path / name), mode="r")
            np.testing.assert_array_equal(array[rows], values)


def files(path: Path) -> dict[str, bytes]:
    out = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    json.loads(out["zarr.json"])
    return out
