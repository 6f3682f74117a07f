"""The README says only what is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedcache_cli.app import app

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line.strip() for language, block in FENCES if not language for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("embedcache ")])
def test_every_command_and_option_of_the_readme_exists(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    printed = CliRunner().invoke(app, [words[0], "--help"]).output
    for option in (w for w in words if w.startswith("--")):
        assert option in printed, f"{option} of {line!r}"


def test_the_readme_was_read() -> None:
    assert sum(line.startswith("embedcache ") for line in COMMANDS) >= 6


def test_every_file_that_the_documents_point_to_exists() -> None:
    for document in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"


def test_the_architecture_names_every_module_and_no_other() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text()
    for folder in ("stores/embedcache_stores", "embedcache"):
        for module in (REPOSITORY / folder).glob("*.py"):
            assert module.name == "__init__.py" or module.name in text, module
    for name in re.findall(r"^  (\w+\.py) ", text, re.MULTILINE):
        assert list(REPOSITORY.glob(f"*/**/{name}")), name
