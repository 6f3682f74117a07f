"""``embedcache split`` and ``leakage``: who trains and who tests, decided anew without extracting anything."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcache_cli.console import print_json, say, table, tell
from embedcache_cli.options import Cache, Json, NamedSplit

if TYPE_CHECKING:
    from embedcache.ensemble import Ensemble
    from embedcache.leakage import Leakage


FEW = 100
"""Training samples below which quantiles of their distances mean little."""


class By(StrEnum):
    """How samples are divided."""

    random = "random"
    stratified = "stratified"
    blocks = "blocks"
    regions = "regions"
    stored = "stored"
    file = "file"


Dataset = Annotated[
    str, typer.Option("--dataset", help="Name of a dataset in the cache, or the KIND:PATH it was extracted from.")
]
Features = Annotated[
    str | None,
    typer.Option("--features", help="Store, or ensemble a+b+c, to go by.  [default: the dataset's first store]"),
]
Pooled = Annotated[str, typer.Option(help="Pooled vectors that the leakage report compares: mean or cls.")]
Near = Annotated[float, typer.Option(help="Cosine from which two samples count as near-duplicates.")]
Sample = Annotated[int, typer.Option(help="Samples of each part that the leakage report looks at, at most.")]
Pairs = Annotated[int, typer.Option(help="Near-duplicates to list.")]


def split(
    dataset: Dataset,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the new split; without it, the splits there are are listed.")
    ] = None,
    by: Annotated[
        By,
        typer.Option(
            help="random; stratified by class; blocks of ground (--block-km); regions left out (--regions); the split "
            "that the stores hold; a file (--file)."
        ),
    ] = By.stratified,
    fractions: Annotated[str, typer.Option(help="Of train, val and test.")] = "0.6,0.2,0.2",
    seed: Annotated[int, typer.Option(help="Of all chance.")] = 0,
    block_km: Annotated[float | None, typer.Option("--block-km", help="Side of a block in km.")] = None,
    buffer_km: Annotated[
        float, typer.Option("--buffer-km", help="Leave training samples nearer than this to val or test samples out.")
    ] = 0.0,
    regions: Annotated[
        str | None,
        typer.Option(help="kmeans:K or grid:DEGREES by latitude and longitude, or a CSV with sample_id and region."),
    ] = None,
    test_region: Annotated[
        list[str] | None,
        typer.Option("--test-region", help="Region to leave out for test; repeat.  [default: some by chance]"),
    ] = None,
    val_region: Annotated[
        list[str] | None,
        typer.Option("--val-region", help="Region for validation; repeat.  [default: a share of the training regions]"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="CSV with sample_id and split, or a GEO-Bench *_partition.json.")
    ] = None,
    train_fraction: Annotated[
        float | None, typer.Option("--train-fraction", help="Label budget: keep this share of the training samples.")
    ] = None,
    per_class: Annotated[
        int | None, typer.Option("--per-class", help="Label budget: keep so many training samples of each class.")
    ] = None,
    features: Features = None,
    pooled: Pooled = "mean",
    near: Near = 0.99,
    sample: Sample = 4096,
    pairs: Pairs = 5,
    leakage: Annotated[bool, typer.Option(help="Report how independent the parts are.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace another split of that name.")] = False,
    cache: Cache = "cache",
    json: Json = False,
) -> None:
    """Divide a dataset's samples anew and keep that under a name; no store is touched.

    'train-head --split NAME' and 'search --split NAME' use it, with any store of the dataset.
    """
    from embedcache.errors import FeatureError
    from embedcache.leakage import measure_leakage
    from embedcache.named_split import save_split
    from embedcache.splitting import SplitOptions, class_counts, make_split
    from embedcache_cli.train_head import dataset_name
    from embedcache_stores.errors import StoreNotFoundError

    dataset = dataset_name(dataset)
    if name is None:
        _first_store(cache, dataset)
        _list(cache, dataset, json=json)
        return
    options = SplitOptions(
        by=by.value,
        seed=seed,
        fractions=_fractions(fractions),
        block_km=block_km,
        buffer_km=buffer_km,
        regions=regions,
        test_regions=tuple(test_region or ()),
        val_regions=tuple(val_region or ()),
        file=None if file is None else str(file),
        train_fraction=train_fraction,
        per_class=per_class,
    )
    view = _open(cache, dataset, features, None)
    made = make_split(view, name, options)
    where, written = save_split(cache, made, force=force)
    counts = class_counts(view, made)
    facts = {"path": where, "written": written, **made.identity, "counts": made.counts, "classes": counts}
    report = None
    if leakage:
        try:
            report = measure_leakage(view.with_split(made), pooled, near=near, sample=sample, pairs=pairs)
        except (StoreNotFoundError, FeatureError) as error:
            tell(f"no leakage report: {error}")
    if json:
        print_json({**facts, "leakage": report.to_json() if report else None})
        return
    say(f"{dataset}: split {name!r} {'written to' if written else 'is there already, the same:'} {where}")
    parts = [p for p, n in made.counts.items() if n or p != "unused"]
    rows = [(c, *(counts[p][c] for p in parts)) for c in view.class_names]
    unit = "images with class" if view.task == "segmentation" else "class"
    if len(rows) > 30:
        tell(f"{len(rows)} classes; --json counts each")
        rows = []
    table((unit, *parts), [*rows, ("samples", *(made.counts[p] for p in parts))], right=frozenset({1, 2, 3, 4}))
    for key in ("blocks", "in_buffer", "regions_of"):
        if key in made.made:
            say(f"{key.replace('_', ' ')}: {_plain(made.made[key])}")
    if report:
        say()
        show_leakage(report)
    say(f"use it: embedcache train-head --dataset {dataset} --features {view.name} --split {name}")


def leakage(
    dataset: Dataset,
    split: NamedSplit = None,
    features: Features = None,
    pooled: Pooled = "mean",
    near: Near = 0.99,
    sample: Sample = 4096,
    pairs: Pairs = 20,
    cache: Cache = "cache",
    json: Json = False,
) -> None:
    """Report how independent the parts of a split are: neighbours across it, near-duplicates, distances in km."""
    from embedcache.leakage import measure_leakage
    from embedcache_cli.train_head import dataset_name

    report = measure_leakage(
        _open(cache, dataset_name(dataset), features, split), pooled, near=near, sample=sample, pairs=pairs
    )
    if json:
        print_json(report.to_json())
    else:
        show_leakage(report)


def show_leakage(report: Leakage) -> None:
    """Print the report."""
    say(f"leakage of split {report.split!r} into {report.train} training samples, by {report.features}:")
    rows = [
        (
            p.part,
            p.compared if p.compared == p.samples else f"{p.compared} of {p.samples}",
            f"{p.distance:.3f}",
            f"{p.nearness:.2f}",
            f"{100 * p.closer_share:.1f}",
            p.near_duplicates,
            p.same_files,
            *(() if p.km is None else (f"{p.km['smallest']:.2f}", f"{p.km['median']:.2f}")),
        )
        for p in report.parts
    ]
    header = ("part", "samples", "distance", "nearness", "close %", "near-duplicates", "same files")
    located = report.parts[0].km is not None
    table((*header, *(("nearest km", "median km") if located else ())), rows, right=frozenset(range(1, 9)))
    apart = f", {report.train_km['median']:.2f} km apart" if report.train_km else ""
    say(
        f"distance: median to the nearest training sample, 1 - cosine; training samples: {report.train_distance:.3f}"
        f"{apart}"
    )
    say("nearness: 0.5 as near to training samples as they are to each other, 0 apart, 1 repeated; close %: 5 is usual")
    if report.train < FEW:
        say(f"note: with {report.train} training samples, chance alone moves these numbers far")
    if report.pairs:
        say(f"near-duplicates (cosine from {report.near:g}), the most similar first:")
        for pair in report.pairs:
            more = ", same files" if pair.same_files else ""
            more += f", {pair.km:.2f} km" if pair.km is not None else ""
            say(f"  {pair.part} {pair.sample_id} ~ {pair.train_id}: {pair.similarity:.4f}{more}")
    if report.random_members:
        say(f"note: random weights: {', '.join(report.random_members)}; what looks alike to it need not be")


def _list(cache: str, dataset: str, *, json: bool) -> None:
    from embedcache.named_split import list_splits, load_split

    splits = [load_split(cache, dataset, name) for name in list_splits(cache, dataset)]
    if json:
        print_json([{**s.identity, "counts": s.counts} for s in splits])
        return
    if not splits:
        say(f"{dataset} has no split in {cache} but the stores' own; 'embedcache split --name' makes one.")
        return
    rows = [(s.name, s.digest[:12], s.made.get("by"), s.made.get("seed"), *s.counts.values()) for s in splits]
    table(("split", "digest", "by", "seed", *splits[0].counts), rows, right=frozenset({3, 4, 5, 6, 7}))


def _open(cache: str, dataset: str, features: str | None, split: str | None) -> Ensemble:
    from embedcache.ensemble import open_ensemble

    return open_ensemble(cache, dataset, features or _first_store(cache, dataset), split)


def _first_store(cache: str, dataset: str) -> str:
    from embedcache_stores.errors import StoreNotFoundError
    from embedcache_stores.manifest import find_stores

    stores = list(find_stores(cache))
    found = [m.name for m in stores if m.dataset == dataset and m.state == "complete"]
    if not found:
        there = ", ".join(sorted({m.dataset for m in stores})) or "none"
        raise StoreNotFoundError(
            f"cache {cache!r} has no complete store of dataset {dataset!r}; its datasets are {there}."
        )
    return found[0]


def _fractions(text: str) -> tuple[float, float, float]:
    from embedcache.errors import SettingError

    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"--fractions are three numbers, such as 0.6,0.2,0.2, got {text!r}.") from error
    return train, val, test


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k}: {', '.join(v)}" for k, v in value.items())
    return str(value)
