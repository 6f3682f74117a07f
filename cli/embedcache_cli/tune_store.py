"""``embedcache tune-store``: the smallest encoding of features that a head does not notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from embedcache_cli.console import human_bytes, print_json, say, table, tell
from embedcache_cli.options import (
    Cache,
    DataRoot,
    Dataset,
    DatasetArgs,
    Device,
    Json,
    open_options,
)

if TYPE_CHECKING:
    from embedcache.tuning import EncodingResult


def tune_store(
    dataset: Dataset,
    backbone: Annotated[str, typer.Option("--backbone", help="Backbone; 'embedcache backbones' lists them.")],
    data_root: DataRoot = None,
    cache: Cache = "cache",
    limit: Annotated[int, typer.Option(min=30, help="Samples of the pilot, evenly spaced over the dataset.")] = 1000,
    weights: Annotated[str, typer.Option(help="As for 'extract'.")] = "pretrained",
    input_size: Annotated[int | None, typer.Option(help="As for 'extract'.")] = None,
    what: Annotated[str | None, typer.Option(help="pooled, maps or both, as for 'extract'.")] = None,
    bands: Annotated[str | None, typer.Option(help="As for 'extract'.")] = None,
    units: Annotated[str | None, typer.Option(help="As for 'extract'.")] = None,
    partition: Annotated[str | None, typer.Option(help="As for 'extract'.")] = None,
    dataset_args: DatasetArgs = None,
    tag: Annotated[str, typer.Option(help="The pilot is kept as BACKBONE@TAG.")] = "tune",
    accept_audit: Annotated[bool, typer.Option("--accept-audit", help="As for 'extract'.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Replace a pilot that was made with other options.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=2, help="Heads per encoding.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training split.")] = 50,
    compressed: Annotated[
        bool, typer.Option("--compressed", help="Let the recommendation be a compressed one.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Extract a float32 pilot, store it in every dtype and compression, and train a head on each.

    Recommends the smallest one whose score cannot be told from float32's. The pilot stays, as BACKBONE@tune, and is
    used again by the same command; 'embedcache rm' removes it.
    """
    from typing import get_args

    from embedcache.datasets._registry import open_dataset
    from embedcache.errors import SettingError
    from embedcache.evaluation.report import METRIC_NAMES
    from embedcache.extraction_plan import ExtractOptions, plan_extraction
    from embedcache.store_layout import What
    from embedcache.train_config import TrainConfig
    from embedcache.tuning import recommended
    from embedcache.tuning import tune_store as run
    from embedcache_cli.extract import run_plan
    from embedcache_stores.feature_store import FeatureStore

    if what is not None and what not in get_args(What):
        raise SettingError(f"--what must be one of {', '.join(get_args(What))}, got {what!r}.")
    opened = open_options(bands, units, partition, dataset_args)
    source = open_dataset(dataset, data_root, opened)
    options = ExtractOptions(
        accept_audit=accept_audit,
        weights=weights,
        input_size=input_size,
        what=what,  # type: ignore[arg-type]
        limit=limit,
        device=device,
        dtype="float32",
        tag=tag,
        rebuild=rebuild,
    )
    plan = plan_extraction(source, backbone, cache, options)
    run_plan(plan)
    tell(f"training {seeds} heads on each encoding")
    results = run(FeatureStore(plan.place), range(seeds), TrainConfig(epochs=epochs), _tell_dtype)
    best = recommended(results, compressed=compressed)
    if json:
        print_json({"results": [r.to_json() for r in results], "recommended": best.to_json()})
        return
    whole = results[0].bytes_per_sample
    rows = [
        (
            r.dtype,
            r.compression,
            human_bytes(r.bytes_per_sample),
            f"{r.bytes_per_sample / whole:.2f}",
            f"{r.error:.1e}",
            f"{100 * r.mean:.1f}",
            f"{100 * r.difference:+.2f} ({100 * r.low:+.2f} to {100 * r.high:+.2f})",
            "yes" if r.equivalent else f"no, {r.saturated} values saturate" if r.saturated else "no",
        )
        for r in results
    ]
    metric = METRIC_NAMES.get(best.metric, best.metric)
    header = ("dtype", "compression", "per sample", "of float32", "error", f"{metric} %", "difference", "equivalent")
    table(header, rows, right=frozenset({2, 3, 4, 5}))
    say(
        f"Equivalent: the 95 % interval of the difference, over {seeds} seeds and resampled test samples, lies within\n"
        f"+-{100 * best.margin:.2f}, which is what this pilot leaves open about float32 itself. More samples (--limit) "
        "make it stricter."
    )
    if best.margin == 0:
        say("note: no resample changes float32's score, so this pilot can tell little; take more samples.")
    codec = "" if best.compression == "none" else f" --compression {best.compression}"
    say(f"recommended: --dtype {best.dtype}{codec}, {best.bytes_per_sample / whole:.2f} of float32's bytes")


def _tell_dtype(result: EncodingResult) -> None:
    """Say that a dtype is done, once; its compressions have the same score."""
    if result.compression == "none":
        tell(f"  {result.dtype}: {100 * result.mean:.1f} %")
