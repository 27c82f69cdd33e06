"""Figures of the interleaved rounds of one run, and the marks that they have to meet."""

import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

Run = dict[str, float]
"""Figures of one load in one round. `rps`: answers a second. `p50_ms`, `p99_ms`: latency. `cpu_us`: processor time of
the workers for each request. `hot_share`: share of heap-only updates. `reached`: share of the rate that was asked for.
"""

COLUMNS = {"rps": "{:,.0f}", "p50_ms": "{:.2f}", "p99_ms": "{:.2f}", "cpu_us": "{:,.0f}", "hot_share": "{:.2%}"}


@dataclass
class Rounds:
    """Runs of each load, one a round, by the load's name."""

    count: int
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def add(self, load: str, run: Run) -> None:
        """Add the run of one round."""
        self.runs.setdefault(load, []).append(run)

    def median(self, load: str, figure: str = "rps") -> float:
        """Return the median over the rounds. Raises KeyError when the load was not measured."""
        return statistics.median(run[figure] for run in self.runs[load])

    def medians(self) -> dict[str, dict[str, float]]:
        """Return the median of each figure of each load."""
        return {load: {figure: self.median(load, figure) for figure in runs[0]} for load, runs in self.runs.items()}


@dataclass(frozen=True)
class Mark:
    """A bound for the median of one figure, or for its quotient by the highest median of other loads."""

    load: str
    bound: float
    figure: str = "rps"
    of: tuple[str, ...] = ()
    at_most: bool = False

    def found(self, rounds: Rounds) -> float:
        """Return the value to compare with the bound. Raises KeyError when a load was not measured."""
        value = rounds.median(self.load, self.figure)
        return value / max(rounds.median(other, self.figure) for other in self.of) if self.of else value

    def is_met(self, rounds: Rounds) -> bool:
        """True when the value is on the right side of the bound, or equal to it."""
        found = self.found(rounds)
        return found <= self.bound if self.at_most else found >= self.bound

    def says(self, rounds: Rounds) -> str:
        """Return one line: met or missed, the figure and the bound."""
        others = " or ".join(self.of)
        return (
            f"{'met   ' if self.is_met(rounds) else 'MISSED'} {self.load}: {self.figure} {self.found(rounds):.3g}"
            f"{f' of {others}' if others else ''}, {'at most' if self.at_most else 'at least'} {self.bound:.3g}"
        )


def conclude(file: Path, rounds: Rounds, marks: Iterable[Mark], settings: dict[str, object]) -> None:
    """Print all medians and marks, and write them into the file. Exit with 1 when a mark is missed."""
    marks = list(marks)
    medians = rounds.medians()
    table = Table("median of the rounds", *COLUMNS, title=f"{settings}")
    for load, figures in medians.items():
        table.add_row(
            load, *(form.format(figures[column]) if column in figures else "" for column, form in COLUMNS.items())
        )
    Console(width=120).print(table)
    lines = [mark.says(rounds) for mark in marks]
    print("\n".join(lines))
    missed = [line for mark, line in zip(marks, lines, strict=True) if not mark.is_met(rounds)]
    report = {"targets_missed": missed, "marks": lines, "medians": medians, "rounds": rounds.runs, "settings": settings}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"{len(missed)} of {len(marks)} marks are missed. Written to {file}")
    if missed:
        sys.exit(1)
