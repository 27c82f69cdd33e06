"""How far a long command has come: a bar on a terminal, elsewhere a line now and then. On standard error."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from srm.operators.bulk.importer import Watch

LINE_SECONDS = 10


@contextmanager
def shown() -> Iterator[Watch]:
    """What a long command tells how far it has come."""
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
    """What is being done, since when, and at which rate."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._started_at = time.monotonic()

    def rate(self, rows: int) -> str:
        """Rows, and, once there is something to tell, rows per second."""
        seconds = time.monotonic() - self._started_at
        return f"{rows:,} rows, {rows / seconds:,.0f}/s" if seconds >= 1 else f"{rows:,} rows"

    def seconds_left(self, part: float | None) -> float | None:
        """How long the rest will take, if it goes on like that; None = nobody knows."""
        seconds = time.monotonic() - self._started_at
        return seconds * (1 - part) / part if part and seconds >= 1 else None


class Bars:
    """A bar for each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, tuple[Step, TaskID]] = {}

    def __call__(self, step: str, rows: int, part: float | None) -> None:
        """Move the bar of the step."""
        if step not in self._bars:
            for _, done in self._bars.values():
                self._progress.update(done, total=1, completed=1)
            self._bars[step] = Step(step), self._progress.add_task(step, total=None if part is None else 1, rows="")
        current, bar = self._bars[step]
        self._progress.update(bar, completed=part or 0, rows=current.rate(rows))


class Lines:
    """A line every LINE_SECONDS."""

    def __init__(self) -> None:
        self._step = Step("")
        self._next_at = time.monotonic() + LINE_SECONDS

    def __call__(self, step: str, rows: int, part: float | None) -> None:
        """Print a line, when it is time."""
        if step != self._step.name:
            self._step = Step(step)
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + LINE_SECONDS
        left = self._step.seconds_left(part)
        rest = "" if left is None else f", {part:.0%}, {left:.0f} s left"
        click.echo(f"{step}: {self._step.rate(rows)}{rest}", err=True)
