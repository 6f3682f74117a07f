"""``embedcache report``: result records to a page and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedcache_cli.console import print_json, say
from embedcache_cli.options import Json


def report(
    results: Annotated[Path, typer.Argument(help="Folder of results that train-head wrote.")] = Path("results"),
    out: Annotated[Path, typer.Option("--out", help="HTML page to write; the picture goes beside it as PNG.")] = Path(
        "report.html"
    ),
    json: Json = False,
) -> None:
    """Gather all results into one page: a box plot over seeds and a table, per dataset."""
    from embedcache.evaluation.record import find_records
    from embedcache.evaluation.report import save_report, summarise
    from embedcache_cli.train_head import show_summaries

    records = list(find_records(results))
    page, picture = save_report(records, out)
    if json:
        print_json([s.to_json() for s in summarise(records)])
        return
    show_summaries(summarise(records))
    say(f"page: {page}\nplot: {picture}")
