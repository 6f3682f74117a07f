"""``verify``, ``status``, ``rm``, ``gc`` and ``cp`` as a user types them; ``--dry-run`` changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Cli = Callable[..., Any]
STORE = "cache/chips/sam2_hiera_tiny.zarr"


def extract(chips: Path, *more: str) -> tuple[str, ...]:
    fast = ("--weights", "random", "--input-size", "32", "--what", "both")
    return ("extract", "--dataset", f"folder:{chips}", "--backbone", "sam2_hiera_tiny", *fast, *more)


def make_chips(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("red_soil", "water"):
        (root / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(root / name / f"{name}_{i}.png")


def every_file(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def extracted(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extract 60 chips once."""
    root = tmp_path_factory.mktemp("extracted")
    make_chips(root / "chips")
    ran = cli(*extract(root / "chips"), cwd=root)
    assert ran.code == 0, ran.err
    return root


@pytest.fixture
def folder(extracted: Path, tmp_path: Path) -> Path:
    """A folder of its own with those chips and their store."""
    return shutil.copytree(extracted, tmp_path / "work")


@pytest.fixture
def chips(folder: Path) -> Path:
    return folder / "chips"


def test_dry_runs_say_what_they_would_do_and_change_no_byte(folder: Path, cli: Cli) -> None:
    (folder / STORE / "level_0" / "c.0.0.0.0.partial").write_bytes(b"half")
    before = every_file(folder)
    for args, said in (
        (("rm", "chips/sam2_hiera_tiny"), "would remove"),
        (("gc",), "would remove"),
        (("cp", "chips/sam2_hiera_tiny", "--to", "other"), "would copy"),
    ):
        ran = cli(*args, "--dry-run", cwd=folder)
        assert ran.code == 0, ran.err
        assert said in ran.out
        facts = json.loads(cli(*args, "--dry-run", "--json", cwd=folder).out)
        assert len(facts) == 1
        assert facts[0]["bytes"] > 0
        assert every_file(folder) == before


def test_copy_verify_and_remove(folder: Path, cli: Cli) -> None:
    copy = ("cp", "chips/sam2_hiera_tiny", "--to", "other")
    assert "copied" in cli(*copy, "--compression", "zstd", cwd=folder).out
    assert "already there" in cli(*copy, cwd=folder).err
    checked = json.loads(cli("verify", "--cache", "other", "--json", cwd=folder).out)
    assert [(c["rows"], c["faults"]) for c in checked] == [(60, [])]
    assert set(checked[0]["values"]) == {"pooled_mean", "level_0", "level_1", "level_2", "level_3"}
    ran = cli("rm", "chips/sam2_hiera_tiny", "--cache", "other", cwd=folder)
    assert ran.code == 0
    assert not list((folder / "other").rglob("*.zarr"))
    assert (folder / STORE / "zarr.json").exists()
    ran = cli("rm", "chips/sam2_hiera_tyni", cwd=folder)
    assert ran.code == 1
    assert "it holds chips/sam2_hiera_tiny" in ran.err
    (folder / "thesis.zarr").mkdir()
    (folder / "thesis.zarr" / "chapter.txt").write_text("years of work")
    ran = cli("rm", "thesis.zarr", cwd=folder)
    assert ran.code == 1
    assert "not a feature store" in ran.err
    assert (folder / "thesis.zarr" / "chapter.txt").exists()


def test_a_flipped_bit_is_named_repaired_and_made_again(folder: Path, chips: Path, cli: Cli) -> None:
    before = every_file(folder / STORE)
    again = cli("verify", "--recompute", "3", "--dataset", f"folder:{chips}", cwd=folder)
    assert again.code == 0, again.err
    assert "pooled_mean: 3 rows encoded again differ by" in again.out
    assert "EXCEEDS" not in again.out
    chunk = folder / STORE / "level_1" / "c.1.0.0.0"
    raw = bytearray(chunk.read_bytes())
    raw[100] ^= 16
    chunk.write_bytes(raw)
    ran = cli("verify", cwd=folder)
    assert ran.code == 1
    assert "fault: level_1/c.1.0.0.0 (rows 32..59)" in ran.out
    assert "--repair" in ran.out
    ran = cli("verify", "--repair", cwd=folder)
    assert ran.code == 1
    assert "row groups 1 were dropped" in ran.out
    ran = cli(*extract(chips), cwd=folder)
    assert "continuing after 32 of 60 rows" in ran.err
    after = every_file(folder / STORE)
    assert {k: v for k, v in after.items() if k != "zarr.json"} == {k: v for k, v in before.items() if k != "zarr.json"}
    assert cli("verify", cwd=folder).code == 0


def test_status_lists_stale_rows_and_extract_makes_only_their_batches(folder: Path, chips: Path, cli: Cli) -> None:
    args = ("status", "--dataset", f"folder:{chips}")
    ran = cli(*args, cwd=folder)
    assert (ran.code, ran.out) == (0, "chips/sam2_hiera_tiny: complete, 60 rows, none stale\n")
    picture = chips / "water" / "water_7.png"
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(picture)
    gone = chips / "red_soil" / "red_soil_2.png"
    whole = gone.read_bytes()
    ran = cli(*args, cwd=folder)
    assert ran.code == 1
    assert "complete, 60 rows, 1 stale" in ran.out
    assert "water/water_7.png: the image changed" in ran.out
    gone.unlink()
    facts = json.loads(cli(*args, "--json", cwd=folder).out)[0]
    assert {r["sample_id"]: r["reason"] for r in facts["stale"]} == {
        "water/water_7.png": "the image changed",
        "red_soil/red_soil_2.png": "the sample is not in the dataset any more",
    }
    gone.write_bytes(whole)
    ran = cli(*extract(chips), "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert "1 images changed" in ran.err
    facts = json.loads(ran.out)
    assert 0 < (facts[0] if isinstance(facts, list) else facts)["new_rows"] <= 32
    assert cli(*args, cwd=folder).code == 0
    assert cli("status", "--dataset", f"folder:{chips}", "--cache", "absent", cwd=folder).code == 1


def test_a_store_being_written_is_left_alone_and_what_its_killed_writer_leaves_is_swept(
    folder: Path, chips: Path, cli: Cli
) -> None:
    shutil.rmtree(folder / "cache")
    command = [sys.executable, "-P", "-m", "embedcache_cli", *extract(chips, "--input-size", "224")]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, env={**os.environ})
    record = folder / STORE / "progress.jsonl"
    deadline = time.monotonic() + 200
    while not (record.exists() and record.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)  # alive, and in the middle of it
    try:
        assert "is being written by process" in cli("rm", "chips/sam2_hiera_tiny", cwd=folder).err
        assert "nothing to sweep up" in cli("gc", "--partial", cwd=folder).out
    finally:
        process.kill()
        process.wait()
    (folder / STORE / "level_0" / "c.0.0.0.0.partial").write_bytes(b"half")
    assert "of a killed writer" in cli("gc", cwd=folder).out
    assert "/4 groups)" in cli("ls", cwd=folder).out  # gc keeps what extract can continue
    assert "never completed, " in cli("gc", "--partial", cwd=folder).out
    assert not (folder / STORE).exists()


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (("verify", "--recompute", "2"), "--dataset"),
        (("verify", "chips/nothing"), "it holds chips/sam2_hiera_tiny"),
        (("cp", "chips/nothing", "--to", "other"), "it holds chips/sam2_hiera_tiny"),
        (("cp", "chips/sam2_hiera_tiny", "--to", "ftp://host/x"), "names no place for stores"),
        (("gc", "--cache", "absent"), "no cache at 'absent'"),
        (("status", "--dataset", "folder:absent"), "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(extracted: Path, cli: Cli, args: tuple[str, ...], fragment: str) -> None:
    ran = cli(*args, cwd=extracted)
    assert ran.code == 1, (ran.out, ran.err)
    assert len([line for line in ran.err.splitlines() if line.startswith("error: ")]) == 1
    assert fragment in ran.err
    assert "Traceback" not in ran.err
    assert "fault of embedcache" not in ran.err
