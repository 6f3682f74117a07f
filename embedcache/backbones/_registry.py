"""Finds backbones: one module of this folder is one family, and lists its sizes in ``SPECS``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import MappingProxyType

import embedcache.backbones as package
from embedcache.backbones._spec import BackboneSpec
from embedcache.errors import unknown_name


@cache
def list_backbones() -> MappingProxyType[str, BackboneSpec]:
    """Return every known backbone by name; imports no model library."""
    found: dict[str, BackboneSpec] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for spec in module.SPECS:
            if spec.name in found:
                raise ValueError(f"two backbones are called {spec.name!r}")
            found[spec.name] = spec
    return MappingProxyType(found)


def get_backbone(name: str) -> BackboneSpec:
    """Return one backbone's spec.

    Raises
    ------
    UnknownNameError
        With near matches.
    """
    known = list_backbones()
    if name not in known:
        raise unknown_name("backbone", name, known, "'embedcache backbones' lists them all.")
    return known[name]
