"""``embedcache status``: which stored rows are still what the images are."""

from __future__ import annotations

from typing import Annotated

import typer

from embedcache_cli.console import print_json, say
from embedcache_cli.options import Cache, DataRoot, Dataset, DatasetArgs, Json, open_options

_SHOWN = 20


def status(
    dataset: Dataset,
    data_root: DataRoot = None,
    cache: Cache = "cache",
    bands: Annotated[str | None, typer.Option(help="As given to 'extract'.")] = None,
    units: Annotated[str | None, typer.Option(help="As given to 'extract'.")] = None,
    partition: Annotated[str | None, typer.Option(help="As given to 'extract'.")] = None,
    dataset_args: DatasetArgs = None,
    every: Annotated[bool, typer.Option("--all", help="List every stale row, not only the first few.")] = False,
    json: Json = False,
) -> None:
    """Compare a dataset's images, labels and splits with what its stores were made from, and list stale rows.

    Reads images only where their size or times changed. Ends with 1 where something is stale.
    """
    from embedcache.contents import ContentIndex, status_of
    from embedcache.datasets._registry import open_dataset
    from embedcache_stores.errors import StoreNotFoundError
    from embedcache_stores.manifest import find_stores
    from embedcache_stores.place import open_place

    options = open_options(bands, units, partition, dataset_args)
    source = open_dataset(dataset, data_root, options)
    name = source.info.name
    stores = [m for m in find_stores(cache) if m.dataset == name]
    if not stores:
        raise StoreNotFoundError(
            f"cache {cache!r} holds no store of dataset {name!r}; 'embedcache ls' shows what it has."
        )
    index = ContentIndex(open_place(cache).child(name))
    found = [status_of(m, source, index) for m in stores]
    index.save()
    if json:
        print_json([f.to_json() for f in found])
    else:
        for one in found:
            say(f"{name}/{one.name}: {one.summary}")
            for note in one.notes:
                say(f"  {note}")
            shown = one.stale if every else one.stale[:_SHOWN]
            for row in shown:
                say(f"  row {row.row} {row.sample_id}: {row.reason}")
            if len(one.stale) > len(shown):
                say(f"  ... and {len(one.stale) - len(shown)} more (--all lists them)")
    if any(f.stale or f.notes for f in found):
        raise typer.Exit(1)
