"""``embedcache certify``: cached equals live, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from embedcache_cli.console import print_json, say, table, tell
from embedcache_cli.options import (
    Cache,
    DataRoot,
    DatasetArgs,
    Device,
    Json,
    open_options,
)

if TYPE_CHECKING:
    from embedcache.certification import Certificate


def certify(
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name of a dataset in the cache, or the KIND:PATH it was extracted from.")
    ],
    features: Annotated[str, typer.Option("--features", help="Store, or ensemble a+b+c.")],
    images: Annotated[
        str | None,
        typer.Option(
            "--images", help="The images, as given to 'extract'.  [default: --dataset, where it is KIND:PATH]"
        ),
    ] = None,
    cache: Cache = "cache",
    data_root: DataRoot = None,
    bands: Annotated[str | None, typer.Option(help="As given to 'extract'.")] = None,
    units: Annotated[str | None, typer.Option(help="As given to 'extract'.")] = None,
    partition: Annotated[str | None, typer.Option(help="As given to 'extract'.")] = None,
    dataset_args: DatasetArgs = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="The weights, where they came from a file: FILE, or STORE=FILE; repeat."),
    ] = None,
    head: Annotated[
        str, typer.Option(help="linear, logistic, mlp, upernet, linear-seg, fcn.  [default: by task]")
    ] = "",
    pooled: Annotated[str, typer.Option(help="Pooled vectors to use: mean or cls.")] = "mean",
    limit: Annotated[int, typer.Option(help="Rows in all, evenly spaced in each split.")] = 200,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 3,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.  [default: by number of rows]")] = None,
    learning_rate: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1e-3,
    decoder_channels: Annotated[int, typer.Option(help="Channels inside upernet and fcn.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the run.")] = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train one head from the cache and with the frozen backbones in the loop, and compare; ends with 1 if they differ.

    The live side stores nothing: every batch of every epoch goes through the backbones.
    """
    from embedcache.certification import certify as run
    from embedcache.datasets._registry import is_reference, open_dataset
    from embedcache.device import choose_device
    from embedcache.ensemble import open_ensemble
    from embedcache.errors import SettingError
    from embedcache.train_config import TrainConfig
    from embedcache.verification import plan_again
    from embedcache_cli.predict import weights_by_store
    from embedcache_cli.train_head import dataset_name

    reference = images or (dataset if is_reference(dataset) or data_root is not None else None)
    if reference is None:
        raise SettingError("'certify' needs the images: name them with --images, as for 'extract'.")
    where = choose_device(device)
    view = open_ensemble(cache, dataset_name(dataset), features)
    options = open_options(bands, units, partition, dataset_args)
    source = open_dataset(reference, data_root, options)
    given = weights_by_store(weights, [s.name for s in view.stores])
    plans = [plan_again(s.place, source, given.get(s.name), where) for s in view.stores]
    config = TrainConfig(
        head=head or ("upernet" if view.task == "segmentation" else "linear"),
        pooled=pooled,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        decoder_channels=decoder_channels,
    )
    name = f"{view.dataset}/{view.name}"
    found = run(view, plans, config, seed, limit=limit, device=where, on_step=lambda text: tell(f"{name}: {text}"))
    if json:
        print_json(found.to_json())
    else:
        _show(found)
    if not found.holds:
        raise typer.Exit(1)


def _show(found: Certificate) -> None:
    rows = [
        (
            name,
            f"{d.of_spread:.2e}",
            f"{d.bound_of_spread:.2e}",
            f"{d.of_bound:.3f}",
            "EXCEEDS" if d.of_bound > 1 else "within",
        )
        for name, d in found.features_deviate.items()
    ]
    header = ("features", "largest deviation / spread", "bound / spread, where nearest", "deviation / bound", "")
    table(header, rows, right=frozenset({1, 2, 3}))
    verdict = "EXCEEDS" if found.logits_exceed else "within"
    say(
        f"test logits: differ by {found.logits_deviate:.2e} of their spread at most, {verdict} "
        f"{found.logits_bound:.2e} (4 times what other rounding errors do)"
    )
    say(f"predictions that differ: {100 * found.changed:.2f} %")
    say(f"test {found.metric}: cached {100 * found.cached:.3f} %, live {100 * found.live:.3f} %")
    counts = " / ".join(str(n) for n in found.rows.values())
    say(
        f"{found.dataset}/{found.features}, head {found.head}, seed {found.seed}, {found.epochs} epochs, rows {counts} "
        f"(train / val / test); {found.images_encoded} images encoded live"
    )
    for note in found.notes:
        say(f"note: {note}")
    say("cached equals live" if found.holds else "cached does NOT equal live")
