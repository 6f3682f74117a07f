"""``predict`` and ``certify`` as a user types them, and the guide to heads, command by command."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Cli = Callable[..., Any]
GUIDE = (Path(__file__).parents[2] / "docs/guides/heads.md").read_text()
FENCES = re.findall(r"(<!-- not run: [^\n]+ -->\n)?```(\w*)\n(.*?)```", GUIDE, re.DOTALL)
RUN = [line for skipped, _, block in FENCES if not skipped for line in block.splitlines()]


def expanded(line: str, folder: Path) -> list[str]:
    """Split a line as a shell does, with its wildcards."""
    words = shlex.split(line)[1:]
    return [str(next(folder.glob(w)).relative_to(folder)) if "*" in w else w for w in words]


@pytest.fixture(scope="module")
def done(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder in which every command of the guide was run, in order, and what each printed."""
    folder = tmp_path_factory.mktemp("guide")
    rng = np.random.default_rng(0)
    for name, tint in (("red_soil", (60, 0, 0)), ("water", (0, 0, 60))):
        (folder / "chips" / name).mkdir(parents=True)
        for i in range(30):
            pixels = np.clip(rng.normal(100, 25, (32, 32, 3)) + tint, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "chips" / name / f"{name}_{i}.png")
    printed = {line: cli(*expanded(line, folder), cwd=folder) for line in RUN}
    return folder, printed


def test_every_command_of_the_guide_does_what_it_says(done: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = done
    assert len(RUN) == 7
    for line, ran in printed.items():
        assert ran.code == 0, (line, ran.err)
    assert "accuracy: the same, seed 0" in next(r.out for line, r in printed.items() if "--from-record" in line)
    record = json.loads(next(folder.glob("results/chips/*/linear-*/seed-0.json")).read_text())
    first = next(r.out for line, r in printed.items() if line.startswith("embedcache predict"))
    assert f"{100 * record['test']['accuracy']:.3f}" in first
    assert "note: random weights: sam2_hiera_tiny was never trained" in first
    assert len((folder / "predicted" / "predictions.csv").read_text().splitlines()) == 61
    assert json.loads((folder / "live" / "summary.json").read_text())["samples"] == 30
    assert "cached equals live" in printed[RUN[-1]].out
    for skipped, language, block in FENCES:
        assert skipped or not language or "embedcache" not in block


def test_certify_ends_with_1_where_images_are_others(
    done: tuple[Path, dict[str, Any]], cli: Cli, tmp_path: Path
) -> None:
    shutil.copytree(done[0] / "chips", tmp_path / "chips")
    shutil.copytree(done[0] / "cache", tmp_path / "cache")
    for name in ("red_soil/red_soil_3.png", "water/water_11.png"):
        picture = np.asarray(Image.open(tmp_path / "chips" / name))
        Image.fromarray(picture[::-1].copy()).save(tmp_path / "chips" / name)
    args = ("certify", "--dataset", "folder:chips", "--features", "sam2_hiera_tiny", "--epochs", "1")
    ran = cli(*args, cwd=tmp_path)
    assert ran.code == 1, ran.err
    assert "EXCEEDS" in ran.out
    assert "note: 2 of the images changed since they were encoded" in ran.out
    assert ran.out.endswith("cached does NOT equal live\n")
    assert "error" not in ran.err


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (("predict", "nothing.json"), "is not a result record"),
        (("predict", "RECORD", "--dataset", "nowhere"), "no features 'sam2_hiera_tiny' of dataset 'nowhere'"),
        (("predict", "RECORD", "--cache", "absent"), "it holds no feature store|no cache at"),
        (("predict", "RECORD", "--images", "absent"), "do not exist"),
        (("predict", "RECORD", "--images", "chips", "--dataset", "x"), "--dataset and --georeference are for"),
        (("predict", "RECORD", "--images", "chips", "--weights", "absent.pt"), "no such file"),
        (("predict", "RECORD", "--images", "chips", "--weights", "random:5"), "its weights was|its weights"),
        (("predict", "RECORD", "--out", "chips"), "something else than predictions"),
        (("predict", "RECORD", "--images", "chips", "--units", "metres"), "--units must be one of"),
        (("predict", "LONELY"), "does not exist: a record's weights lie beside it"),
        (("certify", "--dataset", "chips", "--features", "sam2_hiera_tiny"), "name them with --images"),
        (("certify", "--dataset", "folder:chips", "--features", "sam2_hiera_tiny", "--head", "upernet"), "upernet"),
        (("certify", "--dataset", "folder:chips", "--features", "sam2_hiera_tiny", "--weights", "random:3"), "weights"),
    ],
)
def test_bad_input_is_one_sentence(
    done: tuple[Path, dict[str, Any]], cli: Cli, tmp_path: Path, args: tuple[str, ...], fragment: str
) -> None:
    folder = done[0]
    record = next(folder.glob("results/chips/*/linear-*/seed-0.json"))
    lonely = Path(shutil.copy(record, tmp_path / "seed-0.json"))
    named = {"RECORD": str(record), "LONELY": str(lonely)}
    ran = cli(*(named.get(a, a) for a in args), cwd=folder)
    assert ran.code == 1, (ran.out, ran.err)
    assert len([line for line in ran.err.splitlines() if line.startswith("error: ")]) == 1
    assert re.search(fragment, ran.err), ran.err
    assert "Traceback" not in ran.err
    assert "fault of embedcache" not in ran.err
    assert not list(folder.rglob("*.partial"))
