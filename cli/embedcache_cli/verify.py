"""``embedcache verify``: whether every byte of a store is what was written, and what a backbone makes now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcache_cli.console import human_bytes, print_json, say, table, tell
from embedcache_cli.options import (
    Cache,
    DataRoot,
    DatasetArgs,
    Device,
    Json,
    open_options,
)

if TYPE_CHECKING:
    from embedcache_stores.verify import Verification


def verify(
    stores: Annotated[
        list[str] | None,
        typer.Argument(help="DATASET/FEATURES as in 'ls', or places of stores; none: the whole cache."),
    ] = None,
    cache: Cache = "cache",
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop bad row groups, so that 'extract' makes them again.")
    ] = False,
    recompute: Annotated[
        int, typer.Option(min=0, help="Encode this many random rows again and compare (needs --dataset).")
    ] = 0,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="For --recompute: the dataset as given to 'extract'.")
    ] = None,
    data_root: DataRoot = None,
    bands: Annotated[str | None, typer.Option(help="For --recompute: as given to 'extract'.")] = None,
    units: Annotated[str | None, typer.Option(help="For --recompute: as given to 'extract'.")] = None,
    partition: Annotated[str | None, typer.Option(help="For --recompute: as given to 'extract'.")] = None,
    dataset_args: DatasetArgs = None,
    weights: Annotated[
        str | None, typer.Option(help="For --recompute: the weights, where they came from a file.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which rows --recompute takes.")] = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Check stores: checksums, sizes, shapes, identity, NaN, infinite and saturated values; name every fault.

    Ends with 1 where something is wrong.
    """
    from embedcache_cli.stores import find_named

    places = find_named(stores, cache)
    if recompute and dataset is None:
        from embedcache.errors import SettingError

        raise SettingError("--recompute needs the images: name them with --dataset, as for 'extract'.")
    options = open_options(bands, units, partition, dataset_args)
    results: list[dict[str, Any]] = []
    for place in places:
        facts = _verify_one(place, repair=repair)
        if recompute and dataset is not None and not facts["faults"]:
            facts["recomputed"] = _recompute(place, recompute, seed, (dataset, data_root, options, weights, device))
        results.append(facts)
        if not json:
            _show(facts)
    if json:
        print_json(results)
    if any(r["faults"] or r.get("recomputed", {}).get("exceeds") for r in results):
        raise typer.Exit(1)


def _verify_one(place: Any, *, repair: bool) -> dict[str, Any]:
    from embedcache.verification import provenance_notes
    from embedcache_stores.errors import IncompleteStoreError
    from embedcache_stores.manifest import read_manifest
    from embedcache_stores.verify import verify_store

    facts: dict[str, Any] = {"store": place.url, "faults": [], "values": {}, "notes": [], "repaired": None}
    try:
        found = verify_store(place)
    except IncompleteStoreError as error:
        return {**facts, "faults": [{"file": "zarr.json", "problem": str(error), "rows": None}]}
    facts |= {
        "rows": found.rows,
        "files": found.files,
        "bytes": found.nbytes,
        "faults": [{"file": f.file, "problem": f.problem, "rows": f.rows} for f in found.faults],
        "values": {name: v.to_json() for name, v in found.values.items()},
    }
    if found.rows:
        facts["notes"] = provenance_notes(read_manifest(place))
    if repair and found.faults:
        facts["repaired"] = _repair(place, found)
    return facts


def _repair(place: Any, found: Verification) -> list[int]:
    from embedcache_stores.repair import reopen

    reopen(place, drop=found.bad_groups)
    return found.bad_groups


def _recompute(place: Any, count: int, seed: int, what: tuple[Any, ...]) -> dict[str, Any]:
    from embedcache.datasets._registry import open_dataset
    from embedcache.verification import plan_again, recompute

    dataset, data_root, options, weights, device = what
    source = open_dataset(dataset, data_root, options)
    tell(f"{place.url}: encoding {count} rows again")
    return recompute(plan_again(place, source, weights, device), count, seed).to_json()


def _show(facts: dict[str, Any]) -> None:
    if "rows" in facts:
        faults = len(facts["faults"])
        state = f"{faults} fault{'s' if faults > 1 else ''}" if faults else "sound"
        say(f"{facts['store']}: {state}; {facts['rows']} rows, {facts['files']} chunks, {human_bytes(facts['bytes'])}")
    else:
        say(f"{facts['store']}: not complete")
    for fault in facts["faults"]:
        rows = f" (rows {fault['rows'][0]}..{fault['rows'][1]})" if fault["rows"] else ""
        say(f"  fault: {fault['file']}{rows}: {fault['problem']}")
    header = ("array", "values", "NaN", "infinite", "saturated", "largest")
    values = [
        (name, v["count"], v["nan"], v["infinite"], v["saturated"], f"{v['max_abs']:.4g}")
        for name, v in facts["values"].items()
    ]
    if values:
        table(header, values, right=frozenset({1, 2, 3, 4, 5}))
    for note in facts["notes"]:
        say(f"  note: {note}")
    if again := facts.get("recomputed"):
        for name, deviation in again["deviation"].items():
            verdict = "EXCEEDS" if deviation > again["bound"] else "within"
            said = f"{again['rows']} rows encoded again differ by {deviation:.2e} at most"
            say(f"  {name}: {said}, {verdict} {again['bound']:g}")
    if facts["repaired"] is not None:
        dropped = (
            f"row groups {', '.join(map(str, facts['repaired']))} were dropped"
            if facts["repaired"]
            else "no row group had to be dropped"
        )
        say(f"  repaired: {dropped}; run the same 'embedcache extract' again to complete the store")
    elif facts["faults"] and "rows" in facts:
        say("  'embedcache verify --repair' drops only what is bad; 'embedcache extract' then makes it again")
