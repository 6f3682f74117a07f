"""Wrong things typed at the command line: one clear sentence, a non-zero exit, and nothing lost."""

from __future__ import annotations

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

FAST = ("--weights", "random", "--input-size", "32")
Cli = Callable[..., Any]


def extract_args(chips: Path, *more: str) -> tuple[str, ...]:
    return ("extract", "--dataset", f"folder:{chips}", "--backbone", "sam2_hiera_tiny", *FAST, *more)


def assert_one_sentence(ran: Any, *fragments: str) -> None:
    assert ran.code == 1, (ran.out, ran.err)
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ran.err
    assert "Traceback" not in ran.err
    assert "fault of embedcache" not in ran.err
    for fragment in fragments:
        assert fragment in errors[0]


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (("--backbone", "sam2_hiera_tiyn"), ("'sam2_hiera_tiyn' is not known", "did you mean", "'sam2_hiera_tiny'")),
        (("--backbone", "sam2_hiera_tiny", "--bands", "RED,GREEN"), ("names 2 bands", "has 3")),
        (("--backbone", "sam2_hiera_tiny", "--bands", "RED,GREEN,NIR"), ("BLUE", "not in the data", "--bands")),
        (("--backbone", "sam2_hiera_tiny", "--bands", "RED,GREEN,RED"), ("RED twice",)),
        (("--backbone", "sam2_hiera_tiny", "--input-size", "100"), ("multiples of 32", "96 or 128")),
        (("--backbone", "sam2_hiera_tiny", "--weights", "absent.pt"), ("'absent.pt'", "no such file")),
        (("--backbone", "sam2_hiera_tiny", "--weights", "random:x"), ("seed",)),
        (("--backbone", "sam2_hiera_tiny", "--weights", "pretrained"), ("sam2_hiera_tiny.pt", "--weights FILE")),
        (("--backbone", "sam2_hiera_tiny", "--device", "cuda:99"), ("'cuda:99'", "--device cpu")),
        (("--backbone", "sam2_hiera_tiny", "--limit", "0"), ("--limit",)),
        (("--backbone", "sam2_hiera_tiny", "--batch-size", "0"), ("--batch-size",)),
        (("--backbone", "sam2_hiera_tiny", "--partition", "0.10x_train"), ("--partition", "GEO-Bench")),
    ],
)
def test_bad_extract_options(chips: Path, tmp_path: Path, cli: Cli, args: tuple[str, ...], fragments: tuple) -> None:
    given = ("extract", "--dataset", f"folder:{chips}", "--weights", "random", "--input-size", "32", *args)
    assert_one_sentence(cli(*given, cwd=tmp_path), *fragments)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("reference", "fragments"),
    [
        ("folder:absent", ("'absent'", "does not exist")),
        ("foldr:chips", ("'foldr'", "'folder'")),
        ("chips", ("--data-root",)),
        ("geobench:chips", ("partition", "default_partition.json")),
    ],
)
def test_bad_dataset_references(
    chips: Path, tmp_path: Path, cli: Cli, reference: str, fragments: tuple[str, ...]
) -> None:
    ran = cli("extract", "--dataset", reference, "--backbone", "sam2_hiera_tiny", *FAST, cwd=tmp_path)
    assert_one_sentence(ran, *fragments)


def test_a_truncated_image_is_named_and_skip_bad_records_it(chips: Path, tmp_path: Path, cli: Cli) -> None:
    broken = chips / "water" / "water_7.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert_one_sentence(cli(*extract_args(chips), cwd=tmp_path), "water/water_7.png", "--skip-bad")
    ran = cli(*extract_args(chips, "--skip-bad"), cwd=tmp_path)
    assert ran.code == 0
    assert "1 unusable" in ran.err
    assert "water/water_7.png" in cli("info", "cache/chips/sam2_hiera_tiny.zarr", cwd=tmp_path).out


def test_a_picture_with_other_channels_is_named(chips: Path, tmp_path: Path, cli: Cli) -> None:
    Image.fromarray(np.zeros((32, 32), dtype=np.uint8)).save(chips / "water" / "water_9.png")
    assert_one_sentence(cli(*extract_args(chips), cwd=tmp_path), "water/water_9.png", "1 channels", "3")


def test_an_empty_class_folder_is_named(chips: Path, tmp_path: Path, cli: Cli) -> None:
    (chips / "empty_class").mkdir()
    assert_one_sentence(cli(*extract_args(chips), cwd=tmp_path), "empty_class", "no image")


def test_duplicate_ids_are_named(chips: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "twice.csv").write_text("path,label\nchips/water/water_1.png,a\nchips/water/water_1.png,b\n")
    ran = cli("extract", "--dataset", "folder:twice.csv", "--backbone", "sam2_hiera_tiny", *FAST, cwd=tmp_path)
    assert_one_sentence(ran, "water_1.png", "unique")


def test_another_store_in_the_way_names_the_difference_and_is_kept(chips: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli(*extract_args(chips), cwd=tmp_path).code == 0
    commit = tmp_path / "cache/chips/sam2_hiera_tiny.zarr/zarr.json"
    before = commit.read_bytes()
    ran = cli(*extract_args(chips, "--weights", "random:5"), cwd=tmp_path)
    assert_one_sentence(ran, "backbone.weights.seed is 0, asked 5", "--tag", "--rebuild")
    assert commit.read_bytes() == before
    assert cli(*extract_args(chips, "--weights", "random:5", "--tag", "five"), cwd=tmp_path).code == 0
    assert cli(*extract_args(chips, "--weights", "random:5", "--rebuild"), cwd=tmp_path).code == 0
    assert commit.read_bytes() != before


def test_an_ensemble_of_different_samples_is_refused(chips: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli(*extract_args(chips), cwd=tmp_path).code == 0
    assert cli(*extract_args(chips, "--limit", "20", "--tag", "part"), cwd=tmp_path).code == 0
    names = "sam2_hiera_tiny+sam2_hiera_tiny@part"
    ran = cli("train-head", "--dataset", "chips", "--features", names, cwd=tmp_path)
    assert_one_sentence(ran, "sample ids differ", "60 and 20 rows", "--limit")


def test_a_single_class_is_refused(chips: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.rmtree(chips / "water")
    assert cli(*extract_args(chips), cwd=tmp_path).code == 0
    ran = cli("train-head", "--dataset", "chips", "--features", "sam2_hiera_tiny", cwd=tmp_path)
    assert_one_sentence(ran, "single class", "red_soil")


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (("ls", "--cache", "absent"), ("no cache at 'absent'",)),
        (("ls", "--cache", "file.txt"), ("is a file", "directory of feature stores")),
        (("info", "chips"), ("not a feature store",)),
        (("info", "absent.zarr"), ("no feature store",)),
        (("report", "absent"), ("does not exist", "train-head")),
        (("train-head", "--dataset", "x", "--features", "y", "--cache", "absent"), ("no cache",)),
    ],
)
def test_reading_what_is_not_there(
    chips: Path, tmp_path: Path, cli: Cli, args: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    (tmp_path / "file.txt").write_text("not a cache")
    assert_one_sentence(cli(*args, cwd=tmp_path), *fragments)


@pytest.mark.parametrize("args", [("extract",), ("nonsense",), ("train-head", "--seeds", "0"), ("ls", "--what")])
def test_wrong_usage_exits_with_two(tmp_path: Path, cli: Cli, args: tuple[str, ...]) -> None:
    ran = cli(*args, cwd=tmp_path)
    assert ran.code == 2
    assert "Usage:" in ran.err
    assert "Traceback" not in ran.err


def test_a_full_disk_is_said_and_the_extraction_continues_after(chips: Path, tmp_path: Path) -> None:
    # The kernel refuses files above 4 kB, as a full disk would refuse all of them.
    command = [sys.executable, "-P", "-m", "embedcache_cli", *extract_args(chips)]
    limited = f"ulimit -f 4; exec {' '.join(map(repr, command))}"
    done = subprocess.run(
        ["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "error: could not write" in done.stderr
    assert "run the same command again" in done.stderr
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_extraction_continues_to_identical_bytes(
    chips: Path, tmp_path: Path, cli: Cli, which: signal.Signals
) -> None:
    args = extract_args(chips, "--input-size", "224", "--what", "both", "--batch-size", "4")
    assert cli(*args, "--cache", "whole", cwd=tmp_path).code == 0
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "embedcache_cli", *args, "--cache", "stopped"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    record = tmp_path / "stopped/chips/sam2_hiera_tiny.zarr/progress.jsonl"
    deadline = time.monotonic() + 200
    while not (record.exists() and record.read_bytes().count(b"\n") >= 2):  # header and one row group
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(which)
    _, err = process.communicate(timeout=100)
    if which == signal.SIGINT:
        assert process.returncode == 3
        assert "embedcache extract" in err
    refused = cli(
        "train-head", "--dataset", "chips", "--features", "sam2_hiera_tiny", "--cache", "stopped", cwd=tmp_path
    )
    assert_one_sentence(refused, "not complete", "extract")
    resumed = cli(*args, "--cache", "stopped", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert "continuing after" in resumed.err
    left, right = (tmp_path / c / "chips/sam2_hiera_tiny.zarr" for c in ("whole", "stopped"))
    names = sorted(p.relative_to(left) for p in left.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(right) for p in right.rglob("*") if p.is_file())
    different = [n for n in names if (left / n).read_bytes() != (right / n).read_bytes()]
    assert [str(n) for n in different] in ([], ["zarr.json"])  # which records when it was committed
