"""``embedcache predict``: a trained head on stored features, or on images with the backbones in the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcache_cli.console import print_json, say, table, tell
from embedcache_cli.options import DataRoot, DatasetArgs, Device, Json, open_options

if TYPE_CHECKING:
    from embedcache.datasets._spec import OpenOptions, SampleSource
    from embedcache.ensemble import Ensemble
    from embedcache.errors import SampleError
    from embedcache.evaluation.record import RunRecord
    from embedcache.extraction_plan import ExtractionPlan
    from embedcache.prediction import Answers
    from embedcache.prediction_output import Locate


class Split(StrEnum):
    """Which samples."""

    train = "train"
    val = "val"
    test = "test"
    all = "all"


def predict(
    record: Annotated[Path, typer.Argument(help="Result record seed-K.json; its weights lie beside it.")],
    cache: Annotated[
        str | None, typer.Option("--cache", help="Where the stores lie.  [default: where the record found them]")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Another dataset in the cache, with stores of the same backbones.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images", help="Encode images instead: a folder of any, KIND:PATH, or a name under --data-root."
        ),
    ] = None,
    split: Annotated[
        Split | None, typer.Option("--split", help="[default: test of the record's dataset, all of any other]")
    ] = None,
    georeference: Annotated[
        str | None,
        typer.Option("--georeference", help="Where masks of stored maps lie: the dataset as given to 'extract'."),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write each class's probability beside every mask.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write.  [default: beside the record]")] = None,
    data_root: DataRoot = None,
    bands: Annotated[str | None, typer.Option(help="Of images: as for 'extract'.")] = None,
    units: Annotated[str | None, typer.Option(help="Of images: as for 'extract'.")] = None,
    partition: Annotated[str | None, typer.Option(help="Of images: as for 'extract'.")] = None,
    dataset_args: DatasetArgs = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="Of backbones, where they came from a file: FILE, or STORE=FILE; repeat."),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Name unusable images and go on.")] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Apply a trained head and write labels and probabilities, or masks (GeoTIFF where the place is known).

    What is written appears in one step, when all of it is there.
    """
    from embedcache.device import choose_device
    from embedcache.errors import SettingError
    from embedcache.prediction import answer_images, answer_stored, features_for, rows_of
    from embedcache.prediction_output import OutputFolder, write_labels, write_masks, write_summary
    from embedcache.rerun import open_recorded
    from embedcache.trained_head import load_head

    if images and (dataset or georeference):
        raise SettingError("--images encodes images; --dataset and --georeference are for stored features.")
    where = choose_device(device)
    made, head = load_head(record, where)
    if images and made.split and split not in {None, Split.all}:
        raise SettingError(
            f"the head was trained on split {made.split['name']!r}, which images do not know; predict on them with "
            "--split all, or on the stores."
        )
    place = cache or made.cache
    options = open_options(bands, units, partition, dataset_args)
    lost: list[SampleError] = []
    if images:
        source: SampleSource | None = (pictures := _open(images, data_root, options))
        stores = open_recorded(made, place)
        plans = _plans(stores, pictures, weights, where, skip_bad=skip_bad)
        name, ids, ignore = pictures.info.name, list(pictures.sample_ids), pictures.info.ignore_index
        rows = rows_of(pictures.splits, split or "all", name)
        answers = _without_lost(answer_images(made, head, plans, rows.tolist()), lost)
    else:
        view = features_for(made, head, place, dataset, lambda note: tell(f"note: {note}"))
        rows = rows_of(view.split, split or ("test" if view.dataset == made.dataset else "all"), view.dataset)
        name, ids = view.dataset, [str(i) for i in view.sample_ids]
        ignore = view.stores[0].manifest.attrs.get("ignore_index")
        source = _open(georeference, data_root, options) if georeference else None
        answers = answer_stored(made, head, view, rows)
    if georeference and not head.reads_maps:
        raise SettingError("--georeference is for masks; this head labels whole images.")
    chosen = str(split or ("all" if images or name != made.dataset else "test"))
    folder = out or record.with_name(f"{record.stem}-predictions-{name}-{chosen}")
    with OutputFolder(folder) as partial:
        if head.reads_maps:
            facts = write_masks(
                made,
                answers,
                partial,
                [ids[i] for i in rows],
                ignore_index=ignore,
                locate=_locate(source),
                probabilities=probabilities,
            )
        else:
            facts = write_labels(made, answers, partial)
        facts = {
            "record": str(record),
            "features": made.features,
            "dataset": name,
            "split": chosen,
            "of_split": made.split["name"] if made.split and not images and name == made.dataset else None,
            "out": str(folder),
            **facts,
            "metric": made.metric,
            "lost": {e.sample_id: e.reason for e in lost},
        }
        write_summary(partial, facts)
    if json:
        print_json(facts)
    else:
        _show(facts, made)


def weights_by_store(given: Sequence[str] | None, stores: Sequence[str]) -> dict[str, str]:
    """Read ``FILE`` (for every store) and ``STORE=FILE``."""
    out: dict[str, str] = {}
    for text in given or ():
        name, equals, file = text.partition("=")
        if equals and name in stores:
            out[name] = file
        else:
            out |= {store: text for store in stores if store not in out}
    return out


def _plans(
    stores: Ensemble, source: SampleSource, weights: list[str] | None, device: str, *, skip_bad: bool
) -> list[ExtractionPlan]:
    from dataclasses import replace

    from embedcache.live_features import plan_like

    given = weights_by_store(weights, [s.name for s in stores.stores])
    plans = [plan_like(s.place, source, given.get(s.name), device) for s in stores.stores]
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        tell(f"note: {note}")
    return [replace(plan, skip_bad=skip_bad) for plan in plans]


def _open(reference: str, data_root: Path | None, options: OpenOptions) -> SampleSource:
    """Open a dataset, or a plain folder (or file) of images without labels."""
    from embedcache.datasets._registry import is_reference, open_dataset
    from embedcache.datasets._unlabelled import UnlabelledSource

    if is_reference(reference) or data_root is not None:
        return open_dataset(reference, data_root, options)
    return UnlabelledSource(Path(reference).expanduser(), options)


def _locate(source: SampleSource | None) -> Locate | None:
    if source is None:
        return None
    from embedcache.georeference import georeference_of

    at = {sample_id: i for i, sample_id in enumerate(source.sample_ids)}
    return lambda sample_id: georeference_of(source, at[sample_id]) if sample_id in at else None


def _without_lost(answers: Iterable[Answers | SampleError], lost: list[SampleError]) -> Iterator[Answers]:
    for one in answers:
        if isinstance(one, Exception):
            lost.append(one)
            tell(f"skipped {one.sample_id}: {one.reason}")
        else:
            yield one


def _show(facts: dict[str, Any], record: RunRecord) -> None:
    from embedcache.evaluation.report import METRIC_NAMES

    part = " of ".join(filter(None, (facts["split"], facts["of_split"])))
    say(
        f"{facts['samples']} samples of {facts['dataset']} ({part}) by {record.config['head']} on "
        f"{facts['features']}, seed {record.seed}: {facts['out']}"
    )
    if facts["lost"]:
        say(f"{len(facts['lost'])} unusable images were skipped")
    if facts["scores"]:
        rows = [(METRIC_NAMES.get(k, k), f"{100 * v:.3f}") for k, v in facts["scores"].items()]
        table((f"of {facts['scored']} with a target", "%"), rows, right=frozenset({1}))
    else:
        say("no targets of these classes are known, so nothing was scored")
    if record.random_weights:
        say(f"note: random weights: {', '.join(record.random_weights)} was never trained")
