"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
    str, typer.Option("--dataset", help="geobench:PATH, folder:PATH, or a folder's name under --data-root.")
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Where named datasets lie.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
Out = Annotated[Path, typer.Option("--out", help="Folder of results.")]
