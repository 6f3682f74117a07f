"""``embedcache rm``, ``gc`` and ``cp``: remove stores, sweep up after killed writers, copy stores elsewhere."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from embedcache_cli.console import human_bytes, print_json, say, tell
from embedcache_cli.options import Cache, Codec, Json

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")]


def rm(
    stores: Annotated[list[str], typer.Argument(help="DATASET/FEATURES as in 'ls', or places of stores.")],
    cache: Cache = "cache",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove feature stores, complete or not; nothing that embedcache did not make."""
    from embedcache_cli.stores import find_named
    from embedcache_stores.manifest import peek_manifest
    from embedcache_stores.ownership import discard

    places = find_named(stores, cache)
    facts = [{"store": m.place.url, "rows": m.rows, "bytes": m.nbytes} for m in map(peek_manifest, places)]
    for place, fact in zip(places, facts, strict=True):
        if not dry_run:
            discard(place)
        if not json:
            size = human_bytes(_number(fact["bytes"]))
            say(f"{_verb(dry_run, 'remove')} {fact['store']} ({fact['rows']} rows, {size})")
    if json:
        print_json(facts)


def gc(
    cache: Cache = "cache",
    partial: Annotated[bool, typer.Option("--partial", help="Also remove stores that were never completed.")] = False,
    break_locks: Annotated[
        bool, typer.Option("--break-locks", help="Also remove locks in a bucket; be sure that their owners are gone.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Sweep up what killed writers and interrupted removals left; stores that are being written are not touched."""
    from embedcache_stores.errors import StoreNotFoundError
    from embedcache_stores.housekeeping import leftovers, locks, sweep
    from embedcache_stores.place import LOCK_FILE

    facts: list[dict[str, Any]] = []
    for place, owner in locks(cache) if break_locks else ():
        facts.append({"place": place.url, "what": f"lock {owner}", "files": [LOCK_FILE], "bytes": len(owner)})
        if not dry_run:
            place.remove(LOCK_FILE)
    with contextlib.suppress(*([StoreNotFoundError] if facts else [])):  # a bucket that held nothing but a lock
        for found in list(leftovers(cache, partial=partial)):
            facts.append(
                {"place": found.place.url, "what": found.what, "files": list(found.keys), "bytes": found.nbytes}
            )
            if not dry_run:
                sweep(found)
    if json:
        print_json(facts)
        return
    for fact in facts:
        files = f"{len(fact['files'])} files" if fact["files"] else "all"
        say(f"{_verb(dry_run, 'remove')} {fact['place']}: {files}, {fact['what']} ({human_bytes(fact['bytes'])})")
    if not facts:
        say(f"{cache}: nothing to sweep up")


def cp(
    stores: Annotated[list[str], typer.Argument(help="DATASET/FEATURES as in 'ls', or places of stores.")],
    to: Annotated[
        str, typer.Option("--to", help="Cache to copy to: a directory, s3://, gs:// or az:// BUCKET/PREFIX.")
    ],
    cache: Cache = "cache",
    compression: Annotated[Codec | None, typer.Option(help="Compress the copy.  [default: as it is]")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Copy complete stores to another cache, in the layout that suits it; checksums are compared while reading.

    Stopped, the same command continues. A copy that is there already is left as it is.
    """
    from embedcache_cli.stores import find_named
    from embedcache_stores.copying import copy_store, is_copied
    from embedcache_stores.feature_store import FeatureStore
    from embedcache_stores.place import open_place

    facts: list[dict[str, Any]] = []
    for place in find_named(stores, cache):
        store = FeatureStore(place)
        target = open_place(to).child(place.parent_name).child(place.name)
        there = is_copied(store, target)
        facts.append({"store": place.url, "to": target.url, "bytes": store.manifest.nbytes, "done": there})
        if there:
            tell(f"{target.url}: already there")
            continue
        if not dry_run:
            copy_store(store, target, compression=compression.value if compression else None)
            facts[-1]["done"] = True
        if not json:
            say(f"{_verb(dry_run, 'copy')} {place.url} to {target.url} ({human_bytes(store.manifest.nbytes)})")
    if json:
        print_json(facts)


def _verb(dry_run: bool, verb: str) -> str:
    past = {"remove": "removed", "copy": "copied"}[verb]
    return f"would {verb}" if dry_run else past


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
