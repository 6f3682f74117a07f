"""Finds backbones: built in (a module of this folder is a family, listed in ``SPECS``), plugged in, or TerraTorch's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from types import MappingProxyType
from typing import Any

import embedcache.backbones as package
from embedcache.backbones._plugins import VARIABLE, load_entry_points, load_reference
from embedcache.backbones._spec import BackboneSpec
from embedcache.errors import SettingError, unknown_name

TERRATORCH = "terratorch:"
"""Prefix of backbones that are worked out from TerraTorch's registry."""


@cache
def built_in() -> MappingProxyType[str, BackboneSpec]:
    """Return the backbones that come with embedcache by name; imports no model library."""
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


@cache
def _plugged_in() -> tuple[dict[str, BackboneSpec], tuple[str, ...]]:
    return load_entry_points(built_in())


def list_backbones() -> MappingProxyType[str, BackboneSpec]:
    """Return every known backbone by name, installed plug-ins last; imports no model library of ours."""
    return MappingProxyType({**built_in(), **_plugged_in()[0]})


def plugin_problems() -> tuple[str, ...]:
    """Return a sentence for each installed plug-in that is not used."""
    return _plugged_in()[1]


def find_backbones(text: str, input_size: int | None = None) -> tuple[BackboneSpec, ...]:
    """Return the backbones that a word of the command line names.

    Parameters
    ----------
    text
        A name of :func:`list_backbones`; ``package.module:NAME``, a spec or a list of them; or
        ``terratorch:NAME[:BANDS]``, which is built and run once.
    input_size
        Input in px, for what can only be known by running it.

    Raises
    ------
    EmbedcacheError
        In one sentence, if nothing usable is named.
    """
    if text in built_in():
        return (built_in()[text],)
    if text.startswith(TERRATORCH):
        from embedcache.backbones._adapter import adapt

        return (adapt(text, input_size),)
    if ":" in text:
        found = load_reference(text)
        for spec in found:
            if spec.name in built_in():
                raise SettingError(
                    f"backbone {text!r} is called {spec.name!r}, as a built-in one is; it needs another name."
                )
        return found
    known = list_backbones()
    if text not in known:
        hint = f"'embedcache backbones' lists them all; {VARIABLE}=package.module:NAME adds one's own."
        hint += "".join(f" By the way, {p}" for p in plugin_problems())
        raise unknown_name("backbone", text, known, hint)
    return (known[text],)


def find_all(texts: Iterable[str], input_size: int | None = None) -> tuple[BackboneSpec, ...]:
    """Return the backbones that several words name, in order.

    Raises
    ------
    SettingError
        If two of them go by one name: so would their stores.
    """
    found: dict[str, BackboneSpec] = {}
    for text in dict.fromkeys(texts):
        for spec in find_backbones(text, input_size):
            if spec.name in found:
                raise SettingError(f"two of the backbones are called {spec.name!r}; extract them one by one (--tag).")
            found[spec.name] = spec
    return tuple(found.values())


def get_backbone(name: str, input_size: int | None = None) -> BackboneSpec:
    """Return the one backbone that a word names; see :func:`find_backbones`.

    Raises
    ------
    UnknownNameError
        With near matches.
    SettingError
        If it names several.
    """
    found = find_backbones(name, input_size)
    if len(found) > 1:
        raise SettingError(
            f"backbone {name!r} holds {len(found)}; name one of {', '.join(s.reference for s in found)}."
        )
    return found[0]


def identity_of(spec: BackboneSpec) -> dict[str, Any]:
    """Return what a fingerprint holds of a backbone beside name and weights; nothing where our RECIPE stands for it."""
    return {} if built_in().get(spec.name) == spec else {"facts": spec.facts()}
