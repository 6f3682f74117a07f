"""Progress of extractions and trainings: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from embedcache_cli.console import human_bytes, human_seconds, tell

if TYPE_CHECKING:
    from embedcache.extraction import Progress

_LINE_EVERY_S = 15.0


class ExtractionBar:
    """Shows rows, rows/s, time left and bytes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None
        self._task: Any = None
        self._said = time.monotonic()
        self.last: Progress | None = None

    def __enter__(self) -> ExtractionBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),  # what is said beside it must fit into 80 columns
                TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True)),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._name.rpartition("/")[2], total=None, facts="")
        return self

    def update(self, progress: Progress) -> None:
        """Take note of a finished batch."""
        self.last = progress
        facts = describe(progress)
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.rows, total=progress.total, facts=facts)
        elif time.monotonic() - self._said > _LINE_EVERY_S:
            self._said = time.monotonic()
            tell(f"{self._name}: {facts}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class EpochProgress:
    """Shows epochs of a training; call it with the epochs done and the epochs in all."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None
        self._task: Any = None
        self._said = time.monotonic()

    def __enter__(self) -> EpochProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(f"{self._name.rpartition('/')[2][:50]} epochs", total=None)
        return self

    def __call__(self, done: int, total: int) -> None:
        """Take note of a finished epoch."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._said > _LINE_EVERY_S:
            self._said = time.monotonic()
            tell(f"{self._name}: epoch {done} of {total}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, soft_wrap=True)
        else:
            tell(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe(progress: Progress) -> str:
    """Say how far it is: ``240/480, 31.9 rows/s, 8 s left, 0.2 MB``."""
    rate = progress.new_rows / progress.seconds if progress.seconds else 0.0
    left = (progress.total - progress.rows) / rate if rate else 0.0
    skipped = f", {progress.skipped} skipped" if progress.skipped else ""
    return (
        f"{progress.rows}/{progress.total}, {rate:.1f} rows/s, {human_seconds(left)} left, "
        f"{human_bytes(progress.nbytes)}{skipped}"
    )
