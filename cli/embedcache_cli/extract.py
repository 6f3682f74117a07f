"""``embedcache extract``: images to feature stores."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcache_cli.console import human_bytes, human_seconds, print_json, say, tell
from embedcache_cli.options import (
    Cache,
    Codec,
    DataRoot,
    Dataset,
    DatasetArgs,
    Device,
    Json,
    open_options,
)

if TYPE_CHECKING:
    from embedcache.audit.record import Audit
    from embedcache.extraction_plan import ExtractionPlan


class Precision(StrEnum):
    """Arithmetic of the forward pass."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Dtype(StrEnum):
    """Stored dtype."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"
    int8 = "int8"


class What(StrEnum):
    """Which features."""

    pooled = "pooled"
    maps = "maps"
    both = "both"


class Units(StrEnum):
    """Scale of the files' pixels."""

    dn = "dn"
    reflectance = "reflectance"
    uint8 = "uint8"
    unit = "unit"


def extract(
    dataset: Dataset,
    backbone: Annotated[
        list[str],
        typer.Option("--backbone", help="Name, package.module:NAME, or terratorch:NAME[:BANDS]; repeat for several."),
    ],
    data_root: DataRoot = None,
    cache: Cache = "cache",
    weights: Annotated[
        str, typer.Option(help="pretrained (the hub), a state dict FILE, or random[:SEED] for trying things out.")
    ] = "pretrained",
    input_size: Annotated[int | None, typer.Option(help="Input height and width in px.  [default: 224]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per forward pass.  [default: auto]")] = None,
    device: Device = "auto",
    precision: Annotated[
        Precision, typer.Option(help="auto is bf16 autocast on a GPU and fp32 on a CPU.")
    ] = Precision.auto,
    dtype: Annotated[
        Dtype, typer.Option(help="Dtype of stored features; int8 has a scale per channel.")
    ] = Dtype.float16,
    compression: Annotated[
        Codec | None, typer.Option(help="Saves 10-40 % of space for 4-10 times slower reading.  [default: none]")
    ] = None,
    max_saturation: Annotated[
        float, typer.Option(min=0, max=1, help="Share of values that may be cut to what float16 holds.")
    ] = 0.0,
    what: Annotated[
        What | None, typer.Option(help="[default: pooled for classification, maps for segmentation]")
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            help="Folder: band names in file order (RED,GREEN,BLUE or B01,...). GEO-Bench: corrected or as-published."
        ),
    ] = None,
    units: Annotated[
        Units | None,
        typer.Option(help="Scale of the pixels: dn (reflectance x 10000), reflectance, uint8, unit (picture 0-1)."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="GEO-Bench partition, e.g. 0.10x_train.")] = None,
    dataset_args: DatasetArgs = None,
    limit: Annotated[int | None, typer.Option(help="Take this many samples, evenly spaced over the dataset.")] = None,
    views: Annotated[
        str | None,
        typer.Option(help="Flips and rotations to encode too: d4 (all eight), or a list such as hflip,rot90."),
    ] = None,
    coords: Annotated[bool, typer.Option(help="Give time and location to backbones that take them.")] = True,
    tag: Annotated[str | None, typer.Option(help="Name the store BACKBONE@TAG, to keep variants apart.")] = None,
    workers: Annotated[int, typer.Option(help="Threads that decode images.")] = 2,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Record unusable images and go on.")] = False,
    accept_audit: Annotated[
        bool, typer.Option("--accept-audit", help="Go on although the input audit finds errors; it is recorded.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Replace a store that is in the way.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and do nothing.")] = False,
    json: Json = False,
) -> None:
    """Run frozen backbones over a dataset once and store their features.

    Killed or interrupted, the same command continues. A store that is already there is left as it is.
    """
    from embedcache.backbones._registry import find_all
    from embedcache.datasets._registry import open_dataset
    from embedcache.extraction_plan import ExtractOptions, plan_extraction
    from embedcache.views import NO_VIEWS, parse_views

    opened = open_options(bands, units.value if units else None, partition, dataset_args)
    source = open_dataset(dataset, data_root, opened)
    options = ExtractOptions(
        weights=weights,
        input_size=input_size,
        batch_size=batch_size,
        device=device,
        precision=precision.value,
        dtype=dtype.value,
        compression=compression.value if compression else None,
        max_saturation=max_saturation,
        what=what.value if what else None,
        limit=limit,
        views=parse_views(views) if views else NO_VIEWS,
        coords=coords,
        tag=tag,
        skip_bad=skip_bad,
        accept_audit=accept_audit,
        rebuild=rebuild,
        workers=workers,
    )
    plans = [plan_extraction(source, spec, cache, options) for spec in find_all(backbone, input_size)]
    if plan:
        if json:
            print_json([p.to_json() for p in plans])
        else:
            for p in plans:
                show_plan(p)
    for p in plans:  # all of them, before the first one runs
        p.refuse()
    if plan:
        return
    done = [run_plan(p) for p in plans]
    if json:
        print_json(done)


def show_plan(plan: ExtractionPlan) -> None:
    """Print a plan for a person."""
    from embedcache.extraction_plan import seconds_estimated

    facts = plan.to_json()
    bands = ", ".join(b if b == s else f"{b} (from {s})" for b, s in facts["bands"].items())
    say(f"{facts['store']}  [{facts['state']}]")
    say(f"  backbone   {facts['backbone']}, {facts['weights']}")
    say(f"  rows       {facts['rows']} ({facts['rows_done']} done), in groups of {facts['rows_per_group']}")
    compressed = "" if facts["compression"] == "none" else f", compressed with {facts['compression']}"
    say(f"  arrays     {', '.join(f'{k} {v}' for k, v in facts['arrays'].items())}, {facts['dtype']}{compressed}")
    if len(facts["views"]) > 1:
        say(f"  views      {', '.join(facts['views'])}")
    say(f"  bytes      {human_bytes(facts['bytes'])}")
    say(f"  bands      {bands}")
    if facts["absent_bands"]:
        say(f"  absent     {', '.join(facts['absent_bands'])}: not in the data, the backbone runs without them")
    how = f"batches of {facts['batch_size']}, {facts['precision']} on {facts['device']}"
    say(f"  input      {facts['input_size']} px, {how}")
    if plan.backbone.uses_coords:
        given = [name for name in ("time", "location") if facts[name]]
        say(f"  coords     {' and '.join(given) or 'none'}")
    if not plan.complete:
        say(f"  work       {facts['tflop']} TFLOP, about {human_seconds(seconds_estimated(plan))} here (a rough guess)")
    for note in facts["notes"]:
        say(f"  note       {note}")
    if plan.audit is not None:
        show_audit(plan.audit)


def show_audit(audit: Audit) -> None:
    """Print what was found in the images, for a person."""
    say(f"  audit      {audit.summary()}")
    for name, s in audit.bands.items():
        if s.model_mean is not None:
            given = f"the backbone gets {s.model_mean:.2f} +- {s.model_std:.2f}"
            say(f"    {name:16} {s.p1:g} ... {s.median:g} ... {s.p99:g}; {given}")
    for finding in audit.findings:
        say(f"  {finding.severity:10} {finding.message}")


def run_plan(plan: ExtractionPlan) -> dict[str, Any]:
    """Extract with a progress bar and return facts for ``--json``."""
    from embedcache.extraction import extract as run
    from embedcache_cli.progress import ExtractionBar

    facts = plan.to_json()
    name = f"{facts['dataset']}/{plan.place.name.removesuffix('.zarr')}"
    if plan.complete:
        tell(f"{name}: already complete, {plan.spec.rows} rows in {plan.place}")
        return {**facts, "seconds": 0.0, "new_rows": 0, "skipped": 0}
    for note in facts["notes"]:
        tell(f"{name}: note: {note}")
    for finding in plan.audit.findings if plan.audit else ():
        if finding.check != "missing":
            tell(f"{name}: audit {finding.severity}: {finding.message}")
    if facts["absent_bands"]:
        tell(f"{name}: the data lack {', '.join(facts['absent_bands'])}; the backbone runs without")
    if plan.rows_done:
        tell(f"{name}: continuing after {plan.rows_done} of {plan.spec.rows} rows")
    if plan.rows_done == plan.spec.rows:
        tell(f"{name}: every row is there; writing the commit record")
    else:
        tell(
            f"{name}: loading {plan.backbone.name} ({plan.backbone.parameters_m:g} M parameters, {plan.weights.source})"
        )
    with ExtractionBar(name) as bar:
        run(plan, on_progress=bar.update)
    last = bar.last
    seconds = last.seconds if last else 0.0
    new_rows = last.new_rows if last else 0
    skipped = last.skipped if last else 0
    rate = new_rows / seconds if seconds else 0.0
    tell(
        f"{name}: {plan.spec.rows} rows, {human_bytes(plan.spec.rows * plan.spec.row_bytes)} in {plan.place}"
        + (f" ({rate:.1f} rows/s, {human_seconds(seconds)})" if new_rows else "")
    )
    if skipped:
        tell(f"{name}: {skipped} unusable images were skipped; 'embedcache info {plan.place}' names them")
    return {**facts, "state": "complete", "seconds": round(seconds, 3), "new_rows": new_rows, "skipped": skipped}
