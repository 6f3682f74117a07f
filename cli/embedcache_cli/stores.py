"""Finds the stores that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedcache_stores.place import Place


def find_named(names: Sequence[str] | None, cache: str) -> list[Place]:
    """Return the places of stores named ``DATASET/FEATURES``, or by path or URL; all of a cache's where none is named.

    Raises
    ------
    StoreNotFoundError
        If one is not there; the message lists those that are.
    """
    from embedcache_stores.errors import StoreNotFoundError
    from embedcache_stores.manifest import SUFFIX, store_places
    from embedcache_stores.place import open_place

    if not names:
        found = list(store_places(cache))
        if not found:
            raise StoreNotFoundError(f"cache {cache!r} holds no feature store; 'embedcache extract' makes them.")
        return found
    out = []
    for name in names:
        for place in (open_place(cache).child(f"{name}{SUFFIX}"), open_place(name)):
            if place.found():
                out.append(place)
                break
        else:
            there = ", ".join(f"{p.parent_name}/{p.name.removesuffix(SUFFIX)}" for p in _all(cache)) or "nothing"
            raise StoreNotFoundError(f"no feature store {name!r} in cache {cache!r}; it holds {there}.")
    return out


def _all(cache: str) -> list[Place]:
    from embedcache_stores.errors import StoreError
    from embedcache_stores.manifest import store_places

    try:
        return list(store_places(cache))
    except StoreError:
        return []
