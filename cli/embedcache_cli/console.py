"""What the command line prints, and how it ends: errors become one sentence and an exit code."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 3
_TYPER_INTERRUPTED = 130
"""What Typer returns when it caught Ctrl-C inside a command."""


def say(text: str = "") -> None:
    """Print a line for the user; results only, so that it may be piped."""
    sys.stdout.write(text + "\n")


def tell(text: str) -> None:
    """Print a line about what is going on, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_json(data: object) -> None:
    """Print a result for other programs."""
    say(json.dumps(data, indent=2))


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: frozenset[int] = frozenset()) -> None:
    """Print an aligned table; columns in ``right`` are aligned to the right."""
    texts = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    for number, row in enumerate(texts):
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        say("  ".join(cells).rstrip())
        if number == 0:
            say("  ".join("-" * w for w in widths))


def human_bytes(count: float) -> str:
    """Bytes in the unit a person would choose: ``512 B``, ``36.2 MB`` (10^6)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Duration as a person would say it: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def this_command() -> str:
    """Return the command as it was typed, to be run again."""
    return shlex.join(["embedcache", *sys.argv[1:]])


def run(app: Callable[..., Any]) -> int:
    """Run the command line and return its exit code.

    0 done; 1 an error, in one sentence (``EMBEDCACHE_DEBUG=1`` adds the traceback); 2 wrong usage; 3 interrupted, with
    the command that continues.
    """
    # Libraries' warnings that no user can act on; ours are sentences of their own.
    if not os.environ.get("EMBEDCACHE_DEBUG"):
        warnings.simplefilter("ignore")
    try:
        result = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        # Typer's usage errors; their class has moved between click and a copy inside typer.
        show = getattr(error, "show", None)
        if show is not None and hasattr(error, "exit_code"):
            show()
            return EXIT_USAGE
        return _failed(error)
    if result == _TYPER_INTERRUPTED:
        return _interrupted()
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    tell(f"\ninterrupted. What was finished is kept; continue with:\n  {this_command()}")
    return EXIT_INTERRUPTED


def _failed(error: Exception) -> int:
    from embedcache_stores.errors import EmbedcacheError

    if os.environ.get("EMBEDCACHE_DEBUG"):
        traceback.print_exc()
    if isinstance(error, EmbedcacheError):
        tell(f"error: {error}")
    else:
        tell(
            f"error: {type(error).__name__}: {error}\nThis is a fault of embedcache, not yours. Run it again with "
            "EMBEDCACHE_DEBUG=1 and report what it prints."
        )
    return EXIT_ERROR
