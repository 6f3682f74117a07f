"""Finds heads: one module of this folder is one head, with its ``SPEC``."""

from __future__ import annotations

import importlib
import pkgutil

import embedcache.heads as package
from embedcache.errors import unknown_name
from embedcache.heads._spec import HeadSpec


def list_heads() -> tuple[str, ...]:
    """Return the names of all heads; imports none."""
    return tuple(i.name.replace("_", "-") for i in pkgutil.iter_modules(package.__path__) if not i.name.startswith("_"))


def get_head(name: str) -> HeadSpec:
    """Return one head's spec.

    Raises
    ------
    UnknownNameError
        With near matches.
    """
    if name not in list_heads():
        raise unknown_name("head", name, list_heads(), f"There are {', '.join(list_heads())}.")
    spec: HeadSpec = importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}").SPEC
    return spec
