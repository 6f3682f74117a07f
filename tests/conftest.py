"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of genuine imagery (see its SOURCES.md), or skip, saying so loudly."""
    named = os.environ.get("EMBEDCACHE_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"REAL DATA IS MISSING, NOTHING GENUINE WAS READ: no folder {folder}; set EMBEDCACHE_TEST_DATA")
    return folder
