"""``embedcache train-head``: features to scores over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedcache_cli.console import print_json, say, table, tell
from embedcache_cli.options import Cache, Device, Json, Out

if TYPE_CHECKING:
    from embedcache.evaluation.report import Summary


def train_head(
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name of a dataset in the cache, or the KIND:PATH it was extracted from.")
    ],
    features: Annotated[
        list[str], typer.Option("--features", help="Store, or ensemble a+b+c; repeat to compare several.")
    ],
    cache: Cache = "cache",
    head: Annotated[str, typer.Option(help="Head to train.")] = "linear",
    pooled: Annotated[str, typer.Option(help="Pooled vectors to use: mean or cls.")] = "mean",
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs; their seeds are 0, 1, 2 ...")] = 10,
    seed: Annotated[int | None, typer.Option(min=0, help="Run this one seed only.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Samples per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 1e-2,
    out: Out = Path("results"),
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Train again what has a record.")] = False,
    json: Json = False,
) -> None:
    """Train a head on stored features over several seeds and print the test scores.

    The epoch is chosen on the validation split. Each run leaves a JSON record and its weights; a run that has a record
    is not trained again.
    """
    from embedcache.device import choose_device
    from embedcache.ensemble import open_ensemble
    from embedcache.evaluation.record import RunRecord
    from embedcache.evaluation.report import summarise
    from embedcache.protocol import run_seeds
    from embedcache.training import TrainConfig

    config = TrainConfig(
        head=head,
        pooled=pooled,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        epochs=epochs,
        batch_size=batch_size,
    )
    where = choose_device(device)
    dataset = dataset_name(dataset)
    wanted = [seed] if seed is not None else list(range(seeds))
    views = [open_ensemble(cache, dataset, name) for name in dict.fromkeys(features)]
    records: list[RunRecord] = []
    for view in views:
        trained: list[bool] = []

        def note(_: RunRecord, new: bool, to: list[bool] = trained) -> None:
            to.append(new)

        records += run_seeds(view, config, wanted, out, device=where, force=force, on_run=note)
        tell(f"{dataset}/{view.name}: {sum(trained)} runs trained, {len(trained) - sum(trained)} found in {out}")
    summaries = summarise(records)
    if json:
        print_json([s.to_json() for s in summaries])
    else:
        show_summaries(summaries)


def dataset_name(reference: str) -> str:
    """Return a dataset's name in the cache, given that name or the ``KIND:PATH`` that ``extract`` took."""
    from embedcache.datasets._spec import name_of

    kind, colon, rest = reference.partition(":")
    return name_of(Path(rest)) if colon and kind else reference


def show_summaries(summaries: list[Summary]) -> None:
    """Print the table of scores, and say which weights were random."""
    from embedcache.evaluation.report import METRIC_NAMES, RANDOM_MARK, weights_warning

    metric = METRIC_NAMES.get(summaries[0].metric, summaries[0].metric)
    rows = [
        (
            s.dataset,
            s.features + (f" ({RANDOM_MARK})" if s.random_weights else ""),
            s.head,
            f"{100 * s.mean:.1f}",
            f"{100 * s.std:.1f}",
            f"{100 * min(s.scores):.1f}",
            f"{100 * max(s.scores):.1f}",
            len(s.scores),
        )
        for s in summaries
    ]
    header = ("dataset", "features", "head", f"test {metric} %", "spread", "lowest", "highest", "seeds")
    table(header, rows, right=frozenset({3, 4, 5, 6, 7}))
    for note in sorted({n for s in summaries for n in s.notes}):
        say(f"note: {note}")
    if warning := weights_warning(summaries):
        say(f"note: {warning}")
