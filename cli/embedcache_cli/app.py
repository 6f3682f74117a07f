"""The command ``embedcache``: one file per command."""

from __future__ import annotations

import sys

import typer

from embedcache_cli import (
    certify,
    compare,
    datasets,
    demo,
    extract,
    housekeeping,
    inspect,
    predict,
    report,
    search,
    split,
    status,
    train_head,
    tune_store,
    verify,
)
from embedcache_cli.console import run

app = typer.Typer(
    name="embedcache",
    help="Extract frozen Earth-observation backbones once, then compare and combine them in seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("extract")(extract.extract)
app.command("train-head")(train_head.train_head)
app.command("search")(search.search)
app.command("compare")(compare.compare)
app.command("split")(split.split)
app.command("leakage")(split.leakage)
app.command("predict")(predict.predict)
app.command("certify")(certify.certify)
app.command("report")(report.report)
app.command("ls")(inspect.ls)
app.command("info")(inspect.info)
app.command("status")(status.status)
app.command("tune-store")(tune_store.tune_store)
app.command("verify")(verify.verify)
app.command("rm")(housekeeping.rm)
app.command("gc")(housekeeping.gc)
app.command("cp")(housekeeping.cp)
app.command("backbones")(inspect.backbones)
app.command("datasets")(datasets.datasets)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"embedcache {version('embedcache')}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", help="Print the version and end.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line; the console script calls this."""
    sys.exit(run(app))
