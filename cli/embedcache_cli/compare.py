"""``embedcache compare``: how alike stored representations are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcache_cli.console import print_json, say, table, tell
from embedcache_cli.options import Cache, Json, NamedSplit


def compare(
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name of a dataset in the cache, or the KIND:PATH it was extracted from.")
    ],
    features: Annotated[
        list[str] | None,
        typer.Option("--features", help="Store, or ensemble a+b; repeat.  [default: all complete stores]"),
    ] = None,
    array: Annotated[
        list[str] | None,
        typer.Option("--array", help="pooled_mean, level_0 ..., or all; repeat.  [default: pooled_mean]"),
    ] = None,
    positions: Annotated[
        int, typer.Option(help="Compare maps at so many positions of each sample; 0: their mean over space.")
    ] = 0,
    part: Annotated[str, typer.Option(help="Samples to compare: train, val, test or all.")] = "all",
    split: NamedSplit = None,
    sample: Annotated[int, typer.Option(min=0, help="Compare so many samples at most, by seed 0; 0: all.")] = 0,
    standardise: Annotated[bool, typer.Option(help="Divide channels by their spread first, as heads do.")] = False,
    neighbours: Annotated[int, typer.Option(min=0, help="Nearest neighbours to share; 0: leave that out.")] = 10,
    plot: Annotated[Path | None, typer.Option("--plot", help="Heat map to write: a .png or .svg file.")] = None,
    cache: Cache = "cache",
    json: Json = False,
) -> None:
    """Compare representations: linear CKA, biased and debiased, and the nearest neighbours that they share."""
    from embedcache.errors import SettingError
    from embedcache.representations import POOLED, open_representations, rows_to_compare
    from embedcache.similarity import cka, heat_map, shared_neighbours
    from embedcache_cli.search import all_stores
    from embedcache_cli.train_head import dataset_name

    if plot is not None and plot.suffix.lower() not in {".png", ".svg"}:
        raise SettingError(f"--plot must end with .png or .svg, got {str(plot)!r}.")
    dataset = dataset_name(dataset)
    names = features or all_stores(cache, dataset)
    reps, view = open_representations(
        cache, dataset, names, tuple(array or (POOLED,)), split=split, positions=positions
    )
    if len(reps) < 2:
        raise SettingError(f"a comparison needs two representations or more, and this is {reps[0].name!r} alone.")
    rows = rows_to_compare(view, part, sample)
    result = cka(reps, rows, standardise=standardise)
    shared = shared_neighbours(reps, rows, neighbours) if neighbours and not positions else None
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        heat_map(result, f"{dataset}, {len(rows)} samples ({part})").savefig(plot, dpi=150)
    if json:
        print_json(
            {**result.to_json(), "shared_neighbours": None if shared is None else shared.tolist(), "k": neighbours}
        )
        return
    matrices = [("debiased CKA", result.debiased), ("biased CKA", result.biased)]
    if shared is not None:
        matrices.append((f"share of {min(neighbours, len(rows) - 1)} nearest neighbours in common", shared))
    for title, matrix in matrices:
        say(f"{title}, {result.samples} {'positions' if positions else 'samples'} of {dataset} ({part}):")
        lines = enumerate(zip(result.names, matrix, strict=True), start=1)
        body = [(f"{i} {name}", *(f"{v:.3f}" for v in row)) for i, (name, row) in lines]
        table(("", *(str(i + 1) for i in range(len(body)))), body, right=frozenset(range(1, len(body) + 1)))
        say()
    if plot is not None:
        say(f"heat map: {plot}")
    if view.random_members:
        tell(f"note: random weights: {', '.join(view.random_members)}")
