"""A real process, really killed: at random instants, and before every single operation on files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from embedcache_stores import (
    FeatureStore,
    FeatureWriter,
    IncompleteStoreError,
    NotAStoreError,
    StoreNotFoundError,
    StoreSpec,
)
from embedcache_stores.manifest import read_progress

SCRIPT = Path(__file__).with_name("writer_process.py")
LEFTOVERS = {"progress.jsonl", "writer.lock"}  # of a writer killed after its commit: no part of the store


@pytest.fixture(scope="module")
def process_module() -> Any:
    spec = importlib.util.spec_from_file_location("writer_process", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KILLS = 120


def test_resume_after_sigkill_at_random_instants_is_byte_identical(tmp_path: Path, process_module: Any) -> None:
    whole = tmp_path / "whole.zarr"
    process_module.write(whole, process_module.SPEC)
    expected = files(whole)
    command = [sys.executable, SCRIPT, "random-kills", tmp_path, str(KILLS), "7"]
    killed, halfway, ended, seen = 0, set(), set(), None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready"):
                continue
            what, path = line.split(maxsplit=1)
            killed += what == "killed"
            if not Path(path.strip()).exists():
                recorded: int | None = 0
            else:
                recorded = check_what_a_reader_sees(Path(path.strip()), process_module, process_module.SPEC)
            if recorded is None:
                assert files(Path(path.strip())) == expected
                ended.add(path)
                seen = None
            else:
                assert recorded >= (seen or 0), "row groups that were durable are not any more"
                seen = recorded
                halfway.add(recorded)
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert killed == KILLS
    assert len(halfway - {0}) >= 10, "the kills did not hit the writing of row groups; change the delays"
    assert len(ended) >= 3, "no killed store was continued to its end; change the delays"


@pytest.fixture(scope="module")
def killed_everywhere(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return one store per operation on files that the writer makes, its writer killed just before it."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, SCRIPT, "every-operation", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return [folder / f"{number}.zarr" for number in range(1, int(done.stdout.split()[-1]) + 1)]


def test_no_reader_takes_a_store_for_whole_wherever_its_writer_was_killed(
    killed_everywhere: list[Path], process_module: Any
) -> None:
    seen = [check_what_a_reader_sees(path, process_module, process_module.TINY) for path in killed_everywhere]
    groups = [process_module.TINY.groups if s is None else s for s in seen]
    assert groups == sorted(groups), "row groups that were durable are not any more"
    assert set(groups) == {0, 1, 2}
    assert 0 < seen.count(None) < 5  # committed, and killed while the writer tidied up
    assert len(seen) > 40


def test_a_writer_killed_before_any_operation_is_continued_to_the_same_bytes(
    killed_everywhere: list[Path], tmp_path: Path, process_module: Any
) -> None:
    whole = tmp_path / "whole.zarr"
    process_module.write(whole, process_module.TINY)
    expected = files(whole)
    resumed = 0
    for path in killed_everywhere:
        if not (path / "zarr.json").exists():
            done = len(read_progress(path)[1]) if header_is_recorded(path) else 0
            with FeatureWriter(path, process_module.TINY) as writer:
                assert writer.done == frozenset(range(done)), path.name
            process_module.write(path, process_module.TINY)
            resumed += 1
        assert files(path) == expected, path.name
    assert resumed > 40


def header_is_recorded(path: Path) -> bool:
    return (path / "progress.jsonl").exists() and read_progress(path)[0] is not None


def check_what_a_reader_sees(path: Path, module: Any, spec: StoreSpec) -> int | None:
    """Check that it is a whole store (None) or none, and that every recorded row group (their number) is right."""
    if (path / "zarr.json").exists():
        store = FeatureStore(path)
        for group in range(spec.groups):
            for name, values in module.content(group, spec)[0].items():
                rows = np.arange(spec.rows)[spec.group_rows(group)]
                np.testing.assert_array_equal(store.read(name, rows), values)
        return None
    with pytest.raises((IncompleteStoreError, NotAStoreError, StoreNotFoundError)):
        FeatureStore(path)
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(path)
    if not header_is_recorded(path):
        return 0
    _, records, _ = read_progress(path)
    for group in records:
        for name, values in module.content(group, spec)[0].items():
            array: Any = zarr.open_array(str(path / name), mode="r")
            np.testing.assert_array_equal(array[spec.group_rows(group)], values)
    return len(records)


def files(path: Path) -> dict[str, bytes]:
    """Every file of a committed store, the root's time of creation taken out."""
    out = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    root = json.loads(out["zarr.json"])
    root["attributes"]["embedcache"].pop("created")
    out["zarr.json"] = json.dumps(root).encode()
    return {name: raw for name, raw in out.items() if name not in LEFTOVERS}
