"""Backbones from elsewhere: installed packages' entry points, and ``package.module:NAME``."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedcache.backbones._spec import BackboneSpec
from embedcache.errors import EmbedcacheError, SettingError, UnknownNameError

GROUP = "embedcache.backbones"
"""Entry points of this group name a :class:`BackboneSpec`, or a list of them."""
VARIABLE = "EMBEDCACHE_BACKBONES"
"""Environment variable with ``package.module:NAME``, several separated by commas: known by name, as if installed."""


def load_reference(reference: str) -> tuple[BackboneSpec, ...]:
    """Import the backbones that ``package.module:NAME`` names; of a list, ``package.module:NAME#BACKBONE`` is one.

    Modules are also looked for in the working directory, after everything that is installed.

    Raises
    ------
    UnknownNameError
        If there is no such module, nothing of that name in it, or no such backbone in the list.
    SettingError
        If the module fails to import, or what it holds is no usable :class:`BackboneSpec`.
    """
    path, _, chosen = reference.partition("#")
    module, _, name = path.partition(":")
    if not (re.fullmatch(r"\w+(\.\w+)*", module) and re.fullmatch(r"\w+", name)):
        raise SettingError(f"backbone {reference!r}: write it as package.module:NAME.")
    found = _specs(_attribute(module, name, reference), reference)
    several = len(found) > 1 or bool(chosen)
    found = tuple(replace(s, reference=f"{path}#{s.name}" if several else path) for s in found)
    if chosen:
        found = tuple(s for s in found if s.name == chosen) or _none(chosen, path, [s.name for s in found])
    return found


def load_entry_points(taken: Mapping[str, BackboneSpec]) -> tuple[dict[str, BackboneSpec], tuple[str, ...]]:
    """Load every installed plug-in, and those that the environment names.

    A plug-in that cannot be used is left out and said, so that it spoils nothing for the others.

    Parameters
    ----------
    taken
        Backbones whose names are refused.

    Returns
    -------
    found, problems
        Usable backbones by name, and a sentence for each plug-in that is not used.
    """
    found: dict[str, BackboneSpec] = {}
    origin: dict[str, str] = {}
    problems: list[str] = []
    twice: set[str] = set()
    for where, reference in _announced():
        try:
            specs = load_reference(reference)
        except EmbedcacheError as error:
            problems.append(f"{where} is not used: {error}")
            continue
        for spec in specs:
            if spec.name in taken:
                problems.append(f"{where} is not used: a built-in backbone is called {spec.name!r}.")
            elif spec.name in found:
                twice.add(spec.name)
                problems.append(f"{where} and {origin[spec.name]} both call a backbone {spec.name!r}: neither is used.")
            else:
                found[spec.name], origin[spec.name] = spec, where
    return {k: v for k, v in found.items() if k not in twice}, tuple(problems)


def _announced() -> list[tuple[str, str]]:
    """Where plug-ins are announced, in words, and what they are."""
    points = importlib.metadata.entry_points(group=GROUP)
    named = [p.strip() for p in os.environ.get(VARIABLE, "").split(",") if p.strip()]
    return [
        *sorted(
            (f"plug-in {p.name!r} of {p.dist.name if p.dist else 'somewhere'} ({p.value})", p.value) for p in points
        ),
        *((f"plug-in {p!r} of {VARIABLE}", p) for p in dict.fromkeys(named)),
    ]


def check_spec(spec: BackboneSpec, reference: str) -> None:
    """Check what the rest of embedcache takes for granted.

    Raises
    ------
    SettingError
        Saying what is wrong.
    """
    reductions = [reduction for _, reduction in spec.level_facts]
    wrong = {
        "its name may hold letters, digits, '_', '-' and '.' only": not re.fullmatch(r"[A-Za-z0-9][\w.\-]*", spec.name),
        "it has no band": not spec.bands,
        "it names a band twice": len({b.name for b in spec.bands}) != len(spec.bands),
        "a band's std or gain is not above 0": any(b.std <= 0 or b.gain <= 0 for b in spec.bands),
        "it has no level": not spec.level_facts,
        "its levels are not ordered finest first": reductions != sorted(reductions),
        "it has no pooled vector": not spec.pooled,
        "its size_multiple or input_size is below 1": min(spec.size_multiple, spec.input_size) < 1,
    }
    if said := [sentence for sentence, is_so in wrong.items() if is_so]:
        raise SettingError(f"backbone {spec.name!r} of {reference!r} cannot be used: {said[0]}.")


def _attribute(module: str, name: str, reference: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that it hides nothing; left there, for what the plug-in imports later
    try:
        held = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UnknownNameError(
                f"backbone {reference!r}: there is no module {error.name!r} here; it must be installed, or lie in the "
                "working directory."
            ) from error
        raise SettingError(f"backbone {reference!r}: module {module!r} needs {error.name!r}, not found.") from error
    except Exception as error:  # the plug-in's own code may fail in any way
        reason = str(error).splitlines()[0] if str(error) else ""
        raise SettingError(
            f"backbone {reference!r}: module {module!r} failed to import ({type(error).__name__}: {reason})."
        ) from error
    if not hasattr(held, name):
        close = difflib.get_close_matches(name, [n for n in vars(held) if not n.startswith("_")], n=1)
        guess = f"; did you mean {close[0]!r}?" if close else "."
        raise UnknownNameError(f"backbone {reference!r}: module {module!r} has no {name!r}{guess}")
    return getattr(held, name)


def _specs(value: Any, reference: str) -> tuple[BackboneSpec, ...]:
    specs = tuple(value) if isinstance(value, list | tuple) else (value,)
    wrong = next((s for s in specs if not isinstance(s, BackboneSpec)), None)
    if wrong is not None or not specs:
        kind = type(wrong).__name__ if specs else "an empty list"
        raise SettingError(f"backbone {reference!r} must be a BackboneSpec, or a list of them; it is or holds {kind}.")
    for spec in specs:
        check_spec(spec, reference)
    names = [s.name for s in specs]
    if len(set(names)) != len(names):
        raise SettingError(f"backbone {reference!r} holds two backbones of one name ({', '.join(names)}).")
    return specs


def _none(chosen: str, path: str, names: list[str]) -> tuple[BackboneSpec, ...]:
    raise UnknownNameError(f"backbone {chosen!r} is not in {path!r}, which holds {', '.join(names)}.")
