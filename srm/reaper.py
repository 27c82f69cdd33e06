"""The reaper: ends lapsed sessions, moves ended ones to the history, looks after the monthly partitions.

A process of its own. Correctness never waits for it: a lapsed session holds no slot whether or not it has
been reaped. Any number may run; each piece of work is a short transaction that begins with an advisory
lock, so one at a time works, and when it dies, however it dies, the next one simply gets the lock.
"""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Connection, func, select, text, update

from srm import playback
from srm.database import Database, is_timeout
from srm.errors import DependencyUnavailable
from srm.models import SCHEMA, ReaperState

log = structlog.get_logger("srm.reaper")

ADVISORY_LOCK = 0x53524D5245  # "SRMRE"
STATEMENT_TIMEOUT_SECONDS = 10
"""Shorter than `srm serve` waits for the reaper to stop."""
DROP_LOCK_MILLISECONDS = 100
"""How long a partition to be dropped is waited for, and all others behind it; the next run comes anyway."""
ARCHIVE_SECONDS = 2
"""Of one run; less than the interval, so that nothing that lapses waits for it."""
MONTHS_AHEAD = 2
PARTITIONED = ("session_history", "denials")
"""The tables of which there is a partition for each month (UTC)."""


class Busy(Exception):
    """Another reaper is at work."""


class Stopping(Exception):
    """Nothing new is begun."""


class Reaper:
    """The work, piece by piece. `stop()` lets the piece in hand finish and begins no other."""

    def __init__(self, database: Database, *, ended_retention_seconds: int, history_retention_days: int) -> None:
        self._database = database
        self._ended_retention_seconds = ended_retention_seconds
        self._history_retention_days = history_retention_days
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Finish the transaction in hand, then nothing more."""
        self._stopped.set()

    def run(self) -> None:
        """All that is to be done now. Logs what goes wrong instead of raising: the next run comes anyway.

        A piece that fails does not keep the others from being done.
        """
        pieces: dict[str, Callable[[], object]] = {
            "expired": self.expire,
            "partitions_made": self.make_partitions,
            "archived": self.archive,
            "dropped": self.drop_partitions,
        }
        done: dict[str, object] = {}
        failures: list[str] = []
        is_through = all(self._try(name, piece, done, failures) for name, piece in pieces.items())
        if any(done.values()):
            log.info("reaped", **done)
        if is_through:
            self._try("state", lambda: self._record_run(failures), {}, [])

    def _try(self, name: str, piece: Callable[[], object], done: dict[str, object], failures: list[str]) -> bool:
        """Do a piece, and note what was done or why it failed; False when the others need not be tried."""
        try:
            done[name] = piece()
        except (Busy, Stopping):
            return False
        except DependencyUnavailable as error:
            cause = str(error.__cause__).split("\n")[0]
            log.warning("database unavailable", piece=name, cause=cause)
            failures.append(f"{name}: {cause}")
            return is_timeout(error)  # else it is away for the other pieces too
        except Exception as error:
            log.exception("reaper failed", piece=name)
            failures.append(f"{name}: {str(error).split(chr(10))[0]}")
        return True

    def _record_run(self, failures: list[str]) -> None:
        now = func.statement_timestamp() if failures else None
        with self._alone() as db:
            db.execute(
                update(ReaperState).values(
                    ran_at=func.statement_timestamp(), failed_at=now, failure="; ".join(failures) or None
                )
            )

    def expire(self) -> int:
        """End all lapsed sessions, with a line in the log for each; how many. Busy when another reaper is at work."""
        total = 0
        while not self._stopped.is_set():
            with self._alone() as db:
                lapsed = playback.find_lapsed(db)
            for start in range(0, len(lapsed), playback.ENDED_AT_ONCE):
                if self._stopped.is_set():
                    break
                with self._alone() as db:
                    ended = playback.end_lapsed(db, lapsed[start : start + playback.ENDED_AT_ONCE])
                    db.execute(update(ReaperState).values(expired=ReaperState.expired + len(ended)))
                for session in ended:
                    log.info(
                        "session ended",
                        account=session.account_id,
                        device=session.device_id,
                        session=str(session.session_id),
                        end_reason="expired",
                        ended_at=session.ended_at.isoformat(),
                    )
                total += len(ended)
            if len(lapsed) < playback.LAPSED_AT_ONCE:
                break
        return total

    def archive(self) -> int:
        """Move to the history what has been kept long enough; how many. Busy as for `expire`.

        There is no hurry: it works half of the time, and leaves the rest to the next run after ARCHIVE_SECONDS, since
        what lapses meanwhile is to be ended first.
        """
        total = 0
        give_up_at = time.monotonic() + ARCHIVE_SECONDS
        while not self._stopped.is_set():
            began_at = time.monotonic()
            with self._alone() as db:
                moved = playback.archive(db, self._ended_retention_seconds)
                if moved:
                    db.execute(update(ReaperState).values(archived=ReaperState.archived + moved))
            total += moved
            if moved < playback.ENDED_AT_ONCE or time.monotonic() > give_up_at:
                break
            self._stopped.wait(time.monotonic() - began_at)
        return total

    def make_partitions(self) -> list[str]:
        """Have partitions for this month, those ahead, and all that the archive needs now; the names of the new."""
        made = []
        with self._alone() as db:
            this_month = db.execute(select(func.date_trunc("month", func.statement_timestamp(), "UTC"))).scalar_one()
            wanted = {_months_after(this_month, ahead) for ahead in range(MONTHS_AHEAD + 1)}
            needed = {"session_history": playback.months_to_archive(db, self._ended_retention_seconds)}
            for table in PARTITIONED:
                for month in sorted(wanted.union(needed.get(table, ())) - set(_partitions(db, table))):
                    _make_partition(db, table, month)
                    made.append(_partition_name(table, month))
        return made

    def drop_partitions(self) -> list[str]:
        """Drop the partitions that hold nothing younger than the history retention; their names."""
        dropped = []
        with self._alone() as db:
            # It wants the table for itself. Behind it everybody would wait for whoever reads just now.
            db.execute(text(f"SET LOCAL lock_timeout = {DROP_LOCK_MILLISECONDS}"))
            now: datetime = db.execute(select(func.statement_timestamp())).scalar_one()
            oldest = now - timedelta(days=self._history_retention_days)
            for table in PARTITIONED:
                for month in _partitions(db, table):
                    if _months_after(month, 1) <= oldest:
                        db.execute(text(f"DROP TABLE {SCHEMA}.{_partition_name(table, month)}"))
                        dropped.append(_partition_name(table, month))
        return dropped

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        """A transaction during which no other reaper works. Busy when one does already; Stopping after `stop()`."""
        if self._stopped.is_set():
            raise Stopping
        with self._database.transaction() as db:
            if not db.execute(select(func.pg_try_advisory_xact_lock(ADVISORY_LOCK))).scalar_one():
                raise Busy
            yield db


def _months_after(month: datetime, count: int) -> datetime:
    years, index = divmod(month.month - 1 + count, 12)
    return month.replace(year=month.year + years, month=index + 1)


def _partition_name(table: str, month: datetime) -> str:
    return f"{table}_{month:%Y_%m}"


def _partitions(db: Connection, table: str) -> list[datetime]:
    """The months of which the table has a partition, oldest first."""
    names = db.execute(
        text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = CAST(:parent AS regclass)"
        ),
        {"parent": f"{SCHEMA}.{table}"},
    ).scalars()
    matches = (re.fullmatch(rf"{table}_(\d{{4}})_(\d{{2}})", name) for name in names)
    return sorted(datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC) for match in matches if match)


def _make_partition(db: Connection, table: str, month: datetime) -> None:
    """Attach a new table: unlike `CREATE TABLE … PARTITION OF`, this lets others read and write meanwhile."""
    partition = f"{SCHEMA}.{_partition_name(table, month)}"
    db.execute(text(f"CREATE TABLE {partition} (LIKE {SCHEMA}.{table} INCLUDING DEFAULTS)"))
    db.execute(
        text(
            f"ALTER TABLE {SCHEMA}.{table} ATTACH PARTITION {partition} "
            f"FOR VALUES FROM ('{month.isoformat()}') TO ('{_months_after(month, 1).isoformat()}')"
        )
    )


def run_forever(reaper: Reaper, interval_seconds: float) -> None:
    """Run now and every so often, until SIGTERM or SIGINT; the transaction in hand is finished first."""
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # for all threads; one waits for them below
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
    received = signal.sigwait(stopping)
    reaper.stop()
    scheduler.shutdown()
    log.info("reaper stopped", signal=signal.Signals(received).name)
