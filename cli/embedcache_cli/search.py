"""``embedcache search``: which combination of stored backbones is worth its cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcache_cli.console import human_bytes, print_json, say, table, tell
from embedcache_cli.options import Cache, Device, Json, NamedSplit, Out

if TYPE_CHECKING:
    from embedcache.combinations import SearchResult
    from embedcache.ensemble import Ensemble


def search(
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name of a dataset in the cache, or the KIND:PATH it was extracted from.")
    ],
    features: Annotated[
        list[str] | None,
        typer.Option("--features", help="Store to combine; repeat.  [default: all complete stores of the dataset]"),
    ] = None,
    cache: Cache = "cache",
    head: Annotated[str, typer.Option(help="Head, as for 'train-head'.  [default: by task]")] = "",
    trials: Annotated[int, typer.Option(min=0, help="Trials for each subset; 0: the default hyperparameters.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each subset.")] = 10,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 50,
    split: NamedSplit = None,
    pooled: Annotated[str, typer.Option(help="Pooled vectors to use: mean or cls.")] = "mean",
    greedy: Annotated[
        bool | None,
        typer.Option(
            "--greedy/--exhaustive",
            help="Add the backbone that helps most, until none does; or train every subset.  [default: every subset of "
            "up to six]",
        ),
    ] = None,
    beam: Annotated[
        int, typer.Option(help="Greedy, but from so many of the best combinations of each size, not from one.")
    ] = 1,
    largest: Annotated[int | None, typer.Option(help="Backbones in a combination at most.")] = None,
    out: Out = Path("results"),
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Run the protocol on every combination of stored backbones, and show what each backbone adds, and costs.

    Combinations are ranked, and chosen, by validation; the test score is what the choice is worth. What has a record is
    not trained again.
    """
    from embedcache.combinations import search_combinations
    from embedcache.device import choose_device
    from embedcache.evaluation.record import save_runs_table
    from embedcache.train_config import TrainConfig
    from embedcache.trials import TrialOptions
    from embedcache_cli.train_head import dataset_name, train_one

    where = choose_device(device)
    dataset = dataset_name(dataset)
    names = list(dict.fromkeys(features)) if features else all_stores(cache, dataset)
    options = TrialOptions(count=trials) if trials else None

    def run(view: Ensemble) -> Any:
        config = TrainConfig(
            head=head or ("upernet" if view.task == "segmentation" else "linear"), epochs=epochs, pooled=pooled
        )
        return train_one(view, config, list(range(seeds)), out, options, where)

    result = search_combinations(
        cache,
        dataset,
        names,
        TrainConfig(epochs=epochs, pooled=pooled),
        range(seeds),
        out,
        trials=options,
        greedy=greedy,
        beam=beam,
        largest=largest,
        split=split,
        device=where,
        train=run,
    )
    save_runs_table(out)
    if json:
        print_json(result.to_json())
        return
    _show(result)


def all_stores(cache: str, dataset: str) -> list[str]:
    """Return the names of a dataset's complete stores, two or more, and say which."""
    from embedcache.errors import SettingError
    from embedcache_stores.manifest import find_stores

    found = [m.name for m in find_stores(cache) if m.dataset == dataset and m.state == "complete"]
    if len(found) < 2:
        raise SettingError(
            f"two stores or more are needed; the cache {cache!r} has {', '.join(found) or 'none'} of {dataset!r}."
        )
    tell(f"{dataset}: {', '.join(found)}")
    return found


def _show(result: SearchResult) -> None:
    from embedcache.evaluation.report import METRIC_NAMES

    metric = METRIC_NAMES.get(result.combinations[0].metric, result.combinations[0].metric)
    rows = [
        (
            c.name,
            f"{100 * c.val:.1f}",
            f"{100 * c.test:.1f}",
            f"{100 * c.std:.1f}",
            f"{100 * c.interval[0]:.1f} to {100 * c.interval[1]:.1f}" if c.interval else "-",
            f"{c.parameters_m:.0f} M",
            human_bytes(c.bytes_per_sample),
            "*" if c.pareto else "",
        )
        for c in result.combinations
    ]
    header = ("combination", f"val {metric} %", "test %", "spread", "95 % interval", "weights", "per sample", "front")
    table(header, rows, right=frozenset({1, 2, 3, 4, 5, 6}))
    say("front: nothing with as few weights has as good a validation score")
    say()
    added = [
        (
            c.member,
            f"{100 * c.alone:.1f}",
            "-" if c.gain is None else f"{100 * c.gain:+.1f}",
            "-" if c.shapley is None else f"{100 * c.shapley:+.1f}",
        )
        for c in sorted(result.contributions, key=lambda c: -(c.shapley or c.gain or 0.0))
    ]
    table(("backbone", "alone %", "gain", "Shapley value"), added, right=frozenset({1, 2, 3}))
    say("gain: the best combination with it minus the best without it, on test, both chosen on validation")
    if result.exhaustive:
        say(f"Shapley values sum to the score of all together minus {100 * result.floor:.1f} (class frequencies alone)")
    best = result.combinations[0]
    say(f"best on validation: {best.name}, {100 * best.test:.1f} % on test")
    names = sorted({n for c in result.combinations for n in c.random_members})
    if names:
        say(f"note: the weights of {', '.join(names)} are random: nothing here says how good these backbones are.")
