"""``embedcache tune-store`` as a user runs it: a pilot, a table, one recommendation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
FAST = ("--weights", "random", "--input-size", "32", "--seeds", "2", "--epochs", "20")


def tune(source: Path, *more: str) -> tuple[str, ...]:
    return ("tune-store", "--dataset", f"folder:{source}", "--backbone", "sam2_hiera_tiny", *FAST, *more)


def one_sentence(ran: Any) -> str:
    assert ran.code == 1, (ran.out, ran.err)
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ran.err
    assert "Traceback" not in ran.err
    assert "fault of embedcache" not in ran.err
    return str(errors[0])


def test_a_pilot_is_made_weighed_and_used_again(chips: Path, tmp_path: Path, cli: Cli) -> None:
    ran = cli(*tune(chips), cwd=tmp_path)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].split()[:2] == ["dtype", "compression"]
    table = [line.split() for line in lines[2:14]]
    assert [tuple(row[:2]) for row in table] == [
        (dtype, codec) for dtype in ("float32", "float16", "bfloat16", "int8") for codec in ("none", "lz4", "zstd")
    ]
    assert lines[-1].startswith("recommended: --dtype int8, 0.")  # two tints that no encoding can confuse
    pilot = json.loads(cli("ls", "--json", cwd=tmp_path).out)
    assert [(s["features"], s["rows"]) for s in pilot] == [("sam2_hiera_tiny@tune", 60)]
    again = cli(*tune(chips, "--compressed", "--json"), cwd=tmp_path)
    assert "already complete" in again.err
    facts = json.loads(again.out)
    assert len(facts["results"]) == 12
    assert all(r["bytes_per_sample"] > 0 and r["saturated"] == 0 for r in facts["results"])
    assert facts["results"][0]["error"] == 0
    assert facts["recommended"]["bytes_per_sample"] == min(
        r["bytes_per_sample"] for r in facts["results"] if r["equivalent"]
    )
    refused = one_sentence(cli(*tune(chips, "--limit", "40"), cwd=tmp_path))
    assert "dataset.rows is 60, asked 40" in refused
    assert "--tag" in refused
    assert "--rebuild" in refused
    other = cli(*tune(chips, "--limit", "40", "--rebuild", "--what", "both"), cwd=tmp_path)
    assert other.code == 0, other.err
    assert json.loads(cli("ls", "--json", cwd=tmp_path).out)[0]["rows"] == 40
    assert cli("rm", "chips/sam2_hiera_tiny@tune", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (("--what", "everything"), ("--what", "pooled, maps, both", "'everything'")),
        (("--units", "metres"), ("--units", "'metres'")),
        (("--backbone", "sam2_hiera_tiyn"), ("'sam2_hiera_tiyn'", "did you mean")),
        (("--weights", "absent.pt"), ("'absent.pt'", "no such file")),
        (("--partition", "0.10x_train"), ("--partition", "GEO-Bench")),
    ],
)
def test_bad_options_are_one_sentence_and_nothing_is_made(
    chips: Path, tmp_path: Path, cli: Cli, args: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    sentence = one_sentence(cli(*tune(chips, *args), cwd=tmp_path))
    assert all(f in sentence for f in fragments), sentence
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("args", [("--limit", "5"), ("--seeds", "1"), ("--epochs", "0"), ("--dtype", "int8")])
def test_wrong_usage_exits_with_two(chips: Path, tmp_path: Path, cli: Cli, args: tuple[str, ...]) -> None:
    ran = cli(*tune(chips, *args), cwd=tmp_path)
    assert ran.code == 2
    assert "Usage:" in ran.err


def test_a_pilot_without_a_test_split_is_said(chips: Path, tmp_path: Path, cli: Cli) -> None:
    rows = [f"chips/{p.parent.name}/{p.name},{p.parent.name}" for p in sorted(chips.glob("*/*.png"))]
    lines = [f"{row},{('train', 'val')[i % 2]}" for i, row in enumerate(rows)]
    (tmp_path / "two.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    assert "no 'test' samples" in one_sentence(cli(*tune(tmp_path / "two.csv"), cwd=tmp_path))
