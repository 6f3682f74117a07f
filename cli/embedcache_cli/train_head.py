"""``embedcache train-head``: stored features to test scores over seeds."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcache_cli.console import print_json, say, table, tell
from embedcache_cli.options import Device, Json, NamedSplit, Out

if TYPE_CHECKING:
    from embedcache.ensemble import Ensemble
    from embedcache.evaluation.record import RunRecord
    from embedcache.evaluation.report import Summary
    from embedcache.protocol import ProtocolResult
    from embedcache.train_config import TrainConfig
    from embedcache.trials import TrialOptions


class Schedule(StrEnum):
    """How the learning rate goes over the steps."""

    constant = "constant"
    cosine = "cosine"
    one_cycle = "one-cycle"


class Loss(StrEnum):
    """Loss of masks."""

    cross_entropy = "cross-entropy"
    dice = "dice"
    focal = "focal"
    both = "cross-entropy+dice"


class ClassWeights(StrEnum):
    """How much each class weighs."""

    none = "none"
    balanced = "balanced"


class Precision(StrEnum):
    """Arithmetic of matrix products."""

    fp32 = "fp32"
    bf16 = "bf16"


class Order(StrEnum):
    """In which order runs visit samples."""

    own = "own"
    shared = "shared"


def train_head(
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Name of a dataset in the cache, or the KIND:PATH it was extracted from."),
    ] = None,
    features: Annotated[
        list[str] | None, typer.Option("--features", help="Store, or ensemble a+b+c; repeat to compare several.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            help="Directory of feature stores, or s3://, gs://, az:// BUCKET/PREFIX.  [default: cache; with "
            "--from-record, where the record found them]",
            metavar="PLACE",
        ),
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            help="On vectors: linear, logistic, knn, mlp. On maps: upernet, linear-seg, fcn.  [default: by task]"
        ),
    ] = "",
    trials: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Trials that choose learning rate and weight decay; 0 takes those given.  [default: 16, or 0 where "
            "one of them is given]",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs; their seeds are 0, 1, 2 ...")] = 10,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Run this one seed only.")] = None,
    split: NamedSplit = None,
    pooled: Annotated[str, typer.Option(help="Pooled vectors to use: mean or cls.")] = "mean",
    channels: Annotated[str | None, typer.Option(help="START:STOP of the joined channels of pooled vectors.")] = None,
    levels: Annotated[str | None, typer.Option(help="Levels that a head on maps reads, such as 0,2.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 50,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.  [default: by size of the dataset]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's learning rate.  [default: by trials]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's weight decay.  [default: by trials]")] = None,
    schedule: Annotated[Schedule, typer.Option(help="Learning rate over the steps.")] = Schedule.constant,
    warmup: Annotated[float, typer.Option(help="Share of the steps over which the learning rate rises.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest L2 norm of a gradient; 0 is none.")] = 0.0,
    label_smoothing: Annotated[float, typer.Option(help="0 to 1.")] = 0.0,
    class_weights: Annotated[ClassWeights, typer.Option(help="balanced: rare classes weigh more.")] = ClassWeights.none,
    loss: Annotated[Loss, typer.Option(help="Loss of masks.")] = Loss.cross_entropy,
    patience: Annotated[int, typer.Option(help="Stop a run after so many epochs without a better one; 0: never.")] = 0,
    precision: Annotated[Precision, typer.Option(help="bf16: faster matrix products.")] = Precision.fp32,
    standardise: Annotated[bool, typer.Option(help="Centre and scale each channel by the training split.")] = True,
    batch_norm: Annotated[bool, typer.Option("--batch-norm", help="Batch normalisation before the head.")] = False,
    hidden: Annotated[int, typer.Option(help="Hidden units of mlp.")] = 512,
    dropout: Annotated[float, typer.Option(help="Dropout of mlp, upernet and fcn.")] = 0.0,
    decoder_channels: Annotated[int, typer.Option(help="Channels inside upernet and fcn.")] = 256,
    order: Annotated[Order, typer.Option(help="shared: every run visits the samples in one order.")] = Order.own,
    c: Annotated[float | None, typer.Option(help="C of logistic.  [default: by trials]")] = None,
    k: Annotated[int | None, typer.Option(help="Neighbours of knn.  [default: by trials]")] = None,
    trial_batch: Annotated[int, typer.Option(min=1, help="Trials asked for and trained at once.")] = 8,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GB of features held in memory; the rest is streamed.  [default: auto]")
    ] = None,
    from_record: Annotated[
        Path | None, typer.Option("--from-record", help="Run exactly what a result record says, and compare.")
    ] = None,
    out: Out = Path("results"),
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Train again what has a record.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be trained, and how much memory; do nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Choose hyperparameters by trials, train a head over several seeds, and print the test scores.

    Trials and epochs are judged on the validation split. Each run leaves a JSON record and its weights; what has a
    record is not trained again. Interrupted, the same command continues.
    """
    from embedcache.device import choose_device
    from embedcache.ensemble import open_ensemble
    from embedcache.errors import SettingError
    from embedcache.evaluation.record import save_runs_table
    from embedcache.evaluation.report import summarise
    from embedcache.train_config import TrainConfig
    from embedcache.trials import TrialOptions

    where = choose_device(device)
    budget = None if memory is None else int(min(memory * 1e9, 2**62))
    if from_record is not None:
        if dataset or features or split:
            raise SettingError("--from-record says all that is to be run; leave --dataset, --features and --split out.")
        _rerun(from_record, cache, where, budget, json=json)
        return
    if not dataset or not features:
        raise SettingError("'train-head' needs --dataset and --features (or --from-record FILE).")
    dataset = dataset_name(dataset)
    views = [open_ensemble(cache or "cache", dataset, name, split) for name in dict.fromkeys(features)]
    head = head or ("upernet" if views[0].task == "segmentation" else "linear")
    given: dict[str, Any] = {"learning_rate": learning_rate, "weight_decay": weight_decay, "c": c, "k": k}
    fixed = {name: value for name, value in given.items() if value is not None}
    _check_fixed(head, fixed, trials)
    count = (0 if fixed else 16) if trials is None else trials
    config = TrainConfig(
        head=head,
        pooled=pooled,
        channels=channels,
        levels=_levels(levels),
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        schedule=schedule.value,
        warmup=warmup,
        clip=clip,
        label_smoothing=label_smoothing,
        class_weights=class_weights.value,
        loss=loss.value,
        patience=patience,
        precision=precision.value,
        standardise=standardise,
        batch_norm=batch_norm,
        hidden=hidden,
        dropout=dropout,
        decoder_channels=decoder_channels,
        order=order.value,
        **fixed,
    )
    _check_heeded(config)
    options = TrialOptions(count=count, batch=trial_batch) if count else None
    wanted = [seed] if seed is not None else list(range(seeds))
    if plan:
        _show_plans(views, config, options, len(wanted), where, budget, json=json)
        return
    records: list[RunRecord] = []
    for view in views:
        result = train_one(view, config, wanted, out, options, where, force=force, budget=budget)
        records += result.records
    summaries = summarise(records)
    if json:
        print_json([s.to_json() for s in summaries])
    else:
        show_summaries(summaries)
    save_runs_table(out)  # after the scores: a damaged record of another run, which it names, must not hide them
    if records and all(r.failed for r in records):
        raise SettingError(f"every run was given up, and their records say so: {records[0].failed}.")


def train_one(
    view: Ensemble,
    config: TrainConfig,
    seeds: list[int],
    out: Path,
    options: TrialOptions | None,
    device: str,
    *,
    force: bool = False,
    budget: int | None = None,
) -> ProtocolResult:
    """Run the protocol on one store or ensemble, and tell how it goes."""
    from embedcache.protocol import run_protocol
    from embedcache.trials import describe
    from embedcache_cli.progress import EpochProgress

    name = f"{view.dataset}/{view.name}"
    with EpochProgress(name) as progress:
        result = run_protocol(
            view,
            config,
            seeds,
            out,
            trials=options,
            device=device,
            force=force,
            budget_bytes=budget,
            on_epoch=progress,
            on_choice=lambda choice: progress.say(f"{name}: {describe(choice)}"),
        )
    lost = [r for r in result.records if r.failed]
    found = len(result.records) - result.trained
    failed = f", {len(lost)} given up ({lost[0].failed})" if lost else ""
    tell(f"{name}: {result.trained} runs trained, {found} found in {out}{failed}")
    return result


def dataset_name(reference: str) -> str:
    """Return a dataset's name in the cache, given that name or the ``KIND:PATH`` that ``extract`` took."""
    from embedcache.datasets._registry import name_in_cache

    return name_in_cache(reference)


def show_summaries(summaries: list[Summary]) -> None:
    """Print the table of scores, and say which weights were random."""
    from embedcache.evaluation.report import METRIC_NAMES, RANDOM_MARK, weights_warning

    metric = METRIC_NAMES.get(summaries[0].metric, summaries[0].metric)
    rows = [
        (
            s.setting,
            s.features + (f" ({RANDOM_MARK})" if s.random_weights else ""),
            s.head,
            *((f"{100 * s.mean:.1f}", f"{100 * s.std:.1f}") if s.scores else ("-", "-")),
            f"{100 * s.interval[0]:.1f} to {100 * s.interval[1]:.1f}" if s.interval else "-",
            len(s.scores),
        )
        for s in summaries
    ]
    header = ("dataset", "features", "head", f"test {metric} %", "spread", "95 % interval", "seeds")
    table(header, rows, right=frozenset({3, 4, 5, 6}))
    for note in sorted({n for s in summaries for n in s.notes}):
        say(f"note: {note}")
    if warning := weights_warning(summaries):
        say(f"note: {warning}")


def _check_fixed(head: str, fixed: dict[str, Any], trials: int | None) -> None:
    """Refuse a hyperparameter that the head does not have, or that trials would choose."""
    from embedcache.errors import SettingError
    from embedcache.heads._registry import get_head
    from embedcache.trials import search_space

    own = list(search_space(get_head(head)))
    for name in fixed:
        flag = "--" + name.replace("_", "-")
        if name not in own:
            flags = " and ".join("--" + n.replace("_", "-") for n in own)
            raise SettingError(f"head {head!r} has no {flag}; it has {flags}.")
        if trials:
            raise SettingError(f"--trials chooses {flag} itself; give one of the two, or --trials 0.")


def _check_heeded(config: TrainConfig) -> None:
    """Refuse a setting that the head would say nothing to."""
    from embedcache.errors import SettingError
    from embedcache.heads._registry import get_head, list_heads
    from embedcache.heads._spec import NOT_FOR_ALL
    from embedcache.train_config import TrainConfig

    usual = TrainConfig()
    for name in NOT_FOR_ALL:
        if name not in get_head(config.head).heeds and getattr(config, name) != getattr(usual, name):
            able = [h for h in list_heads() if name in get_head(h).heeds]
            raise SettingError(
                f"head {config.head!r} has no --{name.replace('_', '-')}; heads that have it are {', '.join(able)}."
            )


def _levels(text: str | None) -> tuple[int, ...] | None:
    from embedcache.errors import SettingError

    if text is None:
        return None
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() for p in parts):
        raise SettingError(f"--levels must be whole numbers such as 0,2 (0 is the finest), got {text!r}.")
    return tuple(int(p) for p in parts)


def _show_plans(
    views: list[Ensemble],
    config: TrainConfig,
    options: TrialOptions | None,
    seeds: int,
    device: str,
    budget: int | None,
    *,
    json: bool,
) -> None:
    from embedcache.training_plan import plan_training

    plans = [plan_training(v, config, options.count if options else 0, seeds, device, budget) for v in views]
    if json:
        print_json([p.to_json() for p in plans])
        return
    for p in plans:
        for line in p.lines():
            say(line)


def _rerun(path: Path, cache: str | None, device: str, budget: int | None, *, json: bool) -> None:
    """Run what a record says, and say by how much the scores differ."""
    from embedcache.evaluation.record import load_record
    from embedcache.rerun import rerun

    record: RunRecord = load_record(path)
    again = rerun(record, cache or record.cache, device, budget)
    pairs = {k: (record.test.get(k), v) for k, v in again.test.items()}
    if json:
        print_json({"record": str(path), "failed": again.failed, "then_and_now": pairs})
        return
    rows = [(k, "-" if then is None else f"{100 * then:.3f}", f"{100 * now:.3f}") for k, (then, now) in pairs.items()]
    table(("test metric", "recorded %", "now %"), rows, right=frozenset({1, 2}))
    if record.environment.get("torch") != (now := again.torch):
        say(f"note: the record was made with torch {record.environment.get('torch')}, this is {now}")
    if again.failed:
        say(f"given up {'as recorded' if record.failed else 'this time'}: {again.failed}")
        return
    score = again.test.get(record.metric)
    equal = score is not None and abs(score - record.score) < 1e-9
    say(f"{record.metric}: {'the same' if equal else 'not the same'}, seed {record.seed} of {record.features}")
