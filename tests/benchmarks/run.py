"""Runs benchmarks and saves their tables: ``python tests/benchmarks/run.py [NAME ...]``."""

from __future__ import annotations

import importlib
import sys

NAMES = ("startup", "extraction", "memory", "reading", "writing", "pooled", "dtypes", "heads", "decoders")

if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        importlib.import_module(name).main()
