"""Progress of an import, as the import reports it."""

from typing import Protocol


class ProgressReporter(Protocol):
    """Called now and then while an import runs."""

    def __call__(self, step: str, rows: int, part: float | None) -> None:
        """Take note that the step has done so many rows. `part` is done, from 0 to 1; None = the total is unknown."""
