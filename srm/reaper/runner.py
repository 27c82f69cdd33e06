"""The reaper: ends lapsed sessions, moves ended ones to the history, makes and drops monthly partitions.

It runs in a process of its own. Correctness never waits for it: a lapsed session holds no slot, reaped or not. Any
number of reapers may run; one at a time works (srm.reaper.exclusive).
"""

import signal
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import func, update

from srm.db.breaker import is_timeout
from srm.db.database import Database
from srm.db.models import ReaperState
from srm.errors import DependencyUnavailable, first_line
from srm.reaper import partitions, sessions
from srm.reaper.exclusive import Busy, Exclusive, Stopping
from srm.reaper.trust import Trust

log = structlog.get_logger("srm.reaper")

STATEMENT_TIMEOUT_SECONDS = 10
"""Limit of one statement of the reaper. `srm serve` waits longer than that for the reaper to stop."""


class TaskResult(NamedTuple):
    """Outcome of one task of the reaper."""

    value: object = None
    """Value that the task returned; None when it failed or was not done."""
    failure: str | None = None
    """Task and first line of its error; None when it did not fail."""
    goes_on: bool = True
    """False when the remaining tasks are pointless."""


class Reaper:
    """The reaper's four tasks, with the retention times that hold for them."""

    def __init__(self, database: Database, *, ended_retention_seconds: int, history_retention_days: int) -> None:
        self._exclusive = Exclusive(database)
        self._trust = Trust()
        self._ended_retention_seconds = ended_retention_seconds
        self._history_retention_days = history_retention_days

    def stop(self) -> None:
        """Finish the transaction in progress and begin no other."""
        self._exclusive.stop()

    def expire(self) -> int:
        """End all lapsed sessions; return how many. Raises Busy when another reaper is at work."""
        return sessions.expire(self._exclusive)

    def make_partitions(self) -> list[str]:
        """Make the missing partitions; return their names. Raises Busy when another reaper is at work."""
        trusted_at = self._trust.trusted_at(self._exclusive)
        return partitions.make(self._exclusive, self._ended_retention_seconds, self._history_retention_days, trusted_at)

    def archive(self) -> int:
        """Move ended sessions to the history; return how many. Raises Busy when another reaper is at work."""
        return sessions.archive(self._exclusive, self._ended_retention_seconds)

    def drop_partitions(self) -> list[str]:
        """Drop the partitions that are too old; return their names. Raises Busy when another reaper is at work."""
        trusted_at = self._trust.trusted_at(self._exclusive)
        return partitions.drop(self._exclusive, self._history_retention_days, trusted_at)

    def run(self) -> None:
        """Do all tasks once. Errors are logged, never raised, and do not keep the other tasks from running."""
        tasks: dict[str, Callable[[], object]] = {
            "expired": self.expire,
            "partitions_made": self.make_partitions,
            "archived": self.archive,
            "dropped": self.drop_partitions,
        }
        results: dict[str, TaskResult] = {}
        for name, task in tasks.items():
            results[name] = result = _try(name, task)
            if not result.goes_on:
                break
        done = {name: result.value for name, result in results.items() if result.value is not None}
        if any(done.values()):
            log.info("reaped", **done)
        if all(result.goes_on for result in results.values()):
            failures = [result.failure for result in results.values() if result.failure is not None]
            _try("state", lambda: self._record_run(failures))

    def _record_run(self, failures: list[str]) -> None:
        failed_at = func.statement_timestamp() if failures else None
        failure = "; ".join(failures) or None
        with self._exclusive.transaction() as db:
            db.execute(
                update(ReaperState).values(ran_at=func.statement_timestamp(), failed_at=failed_at, failure=failure)
            )


def _try(name: str, task: Callable[[], object]) -> TaskResult:
    """Do one task. Log its error, if any, and never raise it."""
    try:
        return TaskResult(task())
    except (Busy, Stopping):
        return TaskResult(goes_on=False)
    except DependencyUnavailable as error:
        cause = first_line(error.__cause__)
        log.warning("database unavailable", piece=name, cause=cause)
        # Without a timeout the database is away for the other tasks too.
        return TaskResult(failure=f"{name}: {cause}", goes_on=is_timeout(error))
    except Exception as error:
        log.exception("reaper failed", piece=name)
        return TaskResult(failure=f"{name}: {first_line(error)}")


def run_forever(reaper: Reaper, interval_seconds: float) -> None:
    """Run the reaper now and every `interval_seconds`, until SIGTERM or SIGINT. Finish the transaction in progress."""
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # in every thread: the main thread waits for them below
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(
        reaper.run,
        "interval",
        seconds=interval_seconds,
        next_run_time=datetime.now(UTC),
        max_instances=1,
        coalesce=True,
        misfire_grace_time=None,
    )
    scheduler.start()
    log.info("reaper starts", interval_seconds=interval_seconds)
    received = signal.sigwait(stop_signals)
    reaper.stop()
    scheduler.shutdown()
    log.info("reaper stopped", signal=signal.Signals(received).name)
