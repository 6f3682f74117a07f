"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from embedcache.datasets._spec import OpenOptions


class Codec(StrEnum):
    """Compression of stored features."""

    none = "none"
    lz4 = "lz4"
    zstd = "zstd"


Cache = Annotated[
    str,
    typer.Option("--cache", help="Directory of feature stores, or s3://, gs://, az:// BUCKET/PREFIX.", metavar="PLACE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Dataset = Annotated[
    str,
    typer.Option(
        "--dataset", help="KIND:PATH ('embedcache datasets'), a table's path, or a folder's name under --data-root."
    ),
]
DatasetArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset-arg",
        metavar="KEY=VALUE",
        help="Of a table: the column of a role, as path=file_name; repeat.",
    ),
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Where named datasets lie.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
NamedSplit = Annotated[
    str | None,
    typer.Option("--split", help="A split that 'embedcache split' made.  [default: the stores' own]", metavar="NAME"),
]
Out = Annotated[Path, typer.Option("--out", help="Folder of results.")]


def open_options(
    bands: str | None,
    units: str | None,
    partition: str | None,
    dataset_args: list[str] | None = None,
) -> OpenOptions:
    """Bundle the options of datasets.

    Raises
    ------
    SettingError
        If one is none of the words that it may be.
    """
    from typing import cast, get_args

    from embedcache.datasets._spec import OpenOptions, Units
    from embedcache.errors import SettingError

    if units is not None and units not in get_args(Units):
        raise SettingError(f"--units must be one of {', '.join(get_args(Units))}, got {units!r}.")
    return OpenOptions(
        bands=bands,
        units=cast("Units | None", units),
        partition=partition,
        arguments=_arguments(dataset_args or []),
    )


def _arguments(given: list[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE``; a value that is JSON is what it says, any other is text."""
    from json import loads

    from embedcache.errors import SettingError

    out: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise SettingError(f"--dataset-arg {text!r}: write KEY=VALUE, as in path=file_name.")
        if key in out:
            raise SettingError(f"--dataset-arg {key} was given twice.")
        try:
            out[key] = loads(value)
        except ValueError:
            out[key] = {"True": True, "False": False, "None": None}.get(value, value)
    return out
