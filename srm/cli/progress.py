"""Progress of a long command on standard error: bars on a terminal, elsewhere a line every few seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from srm.operators.bulk.progress import ProgressReporter

LINE_SECONDS = 10


@contextmanager
def shown() -> Iterator[ProgressReporter]:
    """Yield the function that a long command calls to report its progress."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description:>6}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


class Step:
    """One step of a command, with its start time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._started_at = time.monotonic()

    def rate(self, rows: int) -> str:
        """Format the number of rows, after one second with rows per second."""
        seconds = time.monotonic() - self._started_at
        return f"{rows:,} rows, {rows / seconds:,.0f}/s" if seconds >= 1 else f"{rows:,} rows"

    def seconds_left(self, part: float | None) -> float | None:
        """Estimate the seconds left at the current rate. None: unknown.

        `part`: the finished part of the step, from 0 to 1; None when unknown.
        """
        seconds = time.monotonic() - self._started_at
        return seconds * (1 - part) / part if part and seconds >= 1 else None


class Bars:
    """Progress as one bar for each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, tuple[Step, TaskID]] = {}

    def __call__(self, step: str, rows: int, part: float | None) -> None:
        """Move the bar of the step; a new step completes the bars before it."""
        if step not in self._bars:
            for _, done in self._bars.values():
                self._progress.update(done, total=1, completed=1)
            self._bars[step] = Step(step), self._progress.add_task(step, total=None if part is None else 1, rows="")
        current, bar = self._bars[step]
        self._progress.update(bar, completed=part or 0, rows=current.rate(rows))


class Lines:
    """Progress as a line every LINE_SECONDS."""

    def __init__(self) -> None:
        self._step = Step("")
        self._next_at = time.monotonic() + LINE_SECONDS

    def __call__(self, step: str, rows: int, part: float | None) -> None:
        """Print a line unless the last one is less than LINE_SECONDS old."""
        if step != self._step.name:
            self._step = Step(step)
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + LINE_SECONDS
        left = self._step.seconds_left(part)
        rest = "" if left is None else f", {part:.0%}, {left:.0f} s left"
        click.echo(f"{step}: {self._step.rate(rows)}{rest}", err=True)
