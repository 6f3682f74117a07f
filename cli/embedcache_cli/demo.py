"""``embedcache demo``: the whole job on scenes that it makes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcache_cli.console import human_seconds, print_json, say, tell
from embedcache_cli.options import Json

BACKBONES = ("prithvi_eo_v2_tiny_tl", "sam2_hiera_tiny")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for dataset, cache, results and report.")] = Path(
        "embedcache-demo"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Runs per features.")] = 10,
    json: Json = False,
) -> None:
    """Make a small dataset, extract two small backbones with random weights, and compare them with their ensemble.

    Needs no download; about two minutes on two CPU cores. Run again, it reuses what it made.
    """
    import time

    from embedcache.datasets._registry import open_dataset
    from embedcache.ensemble import open_ensemble
    from embedcache.evaluation.record import RunRecord
    from embedcache.evaluation.report import save_report, summarise
    from embedcache.extraction_plan import ExtractOptions, plan_extraction
    from embedcache.synthetic import CLASS_NAMES, make_scenes
    from embedcache.train_config import TrainConfig
    from embedcache.trials import TrialOptions
    from embedcache_cli.extract import run_plan
    from embedcache_cli.train_head import show_summaries, train_one

    start = time.perf_counter()
    dataset = out / "data" / "m-demo"
    if not (dataset / "default_partition.json").exists():  # written last
        make_scenes(dataset)
    tell(f"dataset: 480 procedural scenes of {len(CLASS_NAMES)} classes, 13 bands, in {dataset}")
    source = open_dataset(f"geobench:{dataset}")
    for name in BACKBONES:
        run_plan(plan_extraction(source, name, out / "cache", ExtractOptions(weights="random")))
    records: list[RunRecord] = []
    for features in (*BACKBONES, "+".join(BACKBONES)):
        view = open_ensemble(out / "cache", "m-demo", features)
        records += train_one(view, TrainConfig(), list(range(seeds)), out / "results", TrialOptions(), "cpu").records
    page, picture = save_report(records, out / "report.html")
    summaries = summarise(records)
    if json:
        print_json([s.to_json() for s in summaries])
        return
    show_summaries(summaries)
    say(
        "The scenes are made so that each backbone sees something that the other cannot: one reads six bands, the\n"
        "other RGB at a finer grid. What this shows is how the parts work together, not which backbone is good."
    )
    say(f"page: {page}\nplot: {picture}\ndone in {human_seconds(time.perf_counter() - start)}")
