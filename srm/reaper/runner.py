"""The reaper: ends lapsed sessions, moves ended ones to the history, looks after the monthly partitions.

A process of its own. Correctness never waits for it: a lapsed session holds no slot whether or not it has
been reaped. Any number may run; each piece of work is a short transaction that begins with an advisory
lock, so one at a time works, and when it dies, however it dies, the next one simply gets the lock.
"""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import BigInteger, Connection, bindparam, func, literal_column, select, text, true, update

from srm.db.breaker import is_timeout
from srm.db.connection import Cursor
from srm.db.database import Database
from srm.db.models import SCHEMA, ReaperState
from srm.db.sql import compiled, constant
from srm.errors import DependencyUnavailable, first_line
from srm.logs import session_ended
from srm.playback import ending, history
from srm.playback.model import Key

log = structlog.get_logger("srm.reaper")

ADVISORY_LOCK = 0x53524D5245  # "SRMRE"
STATEMENT_TIMEOUT_SECONDS = 10
"""Shorter than `srm serve` waits for the reaper to stop."""
PARTITION_LOCK_MILLISECONDS = 100
"""How long a partition to be made or dropped waits for readers, and others behind it; the next run comes anyway."""
ARCHIVE_SECONDS = 1
"""Of one run; less than the interval as shipped, so that nothing that lapses waits for it."""
MONTHS_AHEAD = 2
MOVED_AT_ONCE = 20_000
"""Rows that one statement takes out of a default partition."""
PARTITIONED = {"session_history": "ended_at", "denials": "denied_at"}
"""The tables of which there is a partition for each month (UTC) of this time, and a default one for what has none."""


BE_ALONE = select(
    func.pg_try_advisory_xact_lock(literal_column(str(ADVISORY_LOCK))).label("is_alone"),
    func.set_config(constant("synchronous_commit"), constant("off"), true()),
)
BE_ALONE_IN_A_HURRY = compiled(BE_ALONE)
COUNT_EXPIRED = compiled(update(ReaperState).values(expired=ReaperState.expired + bindparam("more", type_=BigInteger)))


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
            cause = first_line(error.__cause__)
            log.warning("database unavailable", piece=name, cause=cause)
            failures.append(f"{name}: {cause}")
            return is_timeout(error)  # else it is away for the other pieces too
        except Exception as error:
            log.exception("reaper failed", piece=name)
            failures.append(f"{name}: {first_line(error)}")
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
        """End all lapsed sessions, with a line in the log for each; how many. Busy when another reaper is at work.

        It rests half as long as it works: 100,000 at once are to be no burden to those who ask meanwhile.
        """
        total = 0
        while not self._stopped.is_set():
            with self._alone_in_a_hurry() as db:
                lapsed = ending.find_lapsed(db)
            for start in range(0, len(lapsed), ending.ENDED_AT_ONCE):
                if self._stopped.is_set():
                    break
                began_at = time.monotonic()
                try:
                    total += self._end(lapsed[start : start + ending.ENDED_AT_ONCE])
                except Busy:
                    return total  # another one has begun in a rest, and goes on
                self._stopped.wait((time.monotonic() - began_at) / 2)
            if len(lapsed) < ending.LAPSED_AT_ONCE:
                break
        return total

    def _end(self, lapsed: list[Key]) -> int:
        with self._alone_in_a_hurry() as db:
            ended = ending.end_lapsed(db, lapsed)
            db.execute(COUNT_EXPIRED, {"more": len(ended)})
        for session in ended:
            at = session.ended_at.isoformat()
            session_ended(log, session.account_id, session.device_id, session.session_id, "expired", ended_at=at)
        return len(ended)

    def archive(self) -> int:
        """Move to the history what has been kept long enough; how many. Busy as for `expire`.

        There is no hurry: it works a quarter of the time, and leaves the rest to the next run after ARCHIVE_SECONDS,
        since what lapses meanwhile is to be ended first.
        """
        total = 0
        give_up_at = time.monotonic() + ARCHIVE_SECONDS
        while not self._stopped.is_set():
            began_at = time.monotonic()
            with self._alone() as db:
                moved = history.archive(db, self._ended_retention_seconds)
                if moved:
                    db.execute(update(ReaperState).values(archived=ReaperState.archived + moved))
            total += moved
            if moved < ending.ENDED_AT_ONCE or time.monotonic() > give_up_at:
                break
            self._stopped.wait(3 * (time.monotonic() - began_at))
        return total

    def make_partitions(self) -> list[str]:
        """Have partitions for this month, those ahead, and all that is kept without one; the names of the new.

        One that cannot be made keeps no other from being made. What has none meanwhile is in the default partition.
        """
        made = []
        failures = []
        for table, month in self._missing_partitions():
            name = _partition_name(table, month)
            try:
                with self._alone() as db:
                    self._make_partition(db, table, month)
            except (Busy, Stopping):
                raise
            except DependencyUnavailable as error:
                if not is_timeout(error):
                    raise
                log.warning("partition not made yet", partition=name, cause=first_line(error.__cause__))
            except Exception as error:
                error.add_note(f"partition {name}")
                failures.append(error)
            else:
                made.append(name)
        if failures:
            raise failures[0]
        return made

    def _missing_partitions(self) -> list[tuple[str, datetime]]:
        missing = []
        with self._alone() as db:
            now: datetime = db.execute(select(func.statement_timestamp())).scalar_one()
            this_month = _month_of(now)
            last = _months_after(this_month, MONTHS_AHEAD)
            oldest = _month_of(now - timedelta(days=self._history_retention_days))
            needed = {"session_history": history.months_to_archive(db, self._ended_retention_seconds)}
            for table in PARTITIONED:
                months = {_months_after(this_month, ahead) for ahead in range(MONTHS_AHEAD + 1)}
                months.update(needed.get(table, ()), _months_in_default(db, table), _months_half_made(db, table))
                months.difference_update(_partitions(db, table))
                missing += [(table, _month_of(month)) for month in sorted(months) if oldest <= month <= last]
        return missing

    def _make_partition(self, db: Connection, table: str, month: datetime) -> None:
        """Make it, with all that the default partition has of it: others see its rows there or here."""
        _wait_no_longer_for_readers(db)
        while not db.execute(select(func.srm.make_partition(table, month, MOVED_AT_ONCE))).scalar_one():
            if self._stopped.is_set():
                raise Stopping

    def drop_partitions(self) -> list[str]:
        """Drop the partitions that hold nothing younger than the history retention; their names.

        What is older than it in the default partitions is deleted.
        """
        dropped = []
        with self._alone() as db:
            # It wants the table for itself. Behind it everybody would wait for whoever reads just now.
            _wait_no_longer_for_readers(db)
            now: datetime = db.execute(select(func.statement_timestamp())).scalar_one()
            oldest = now - timedelta(days=self._history_retention_days)
            for table in PARTITIONED:
                for month in _partitions(db, table):
                    if _months_after(month, 1) <= oldest:
                        db.execute(select(func.srm.drop_partition(table, month)))
                        dropped.append(_partition_name(table, month))
        for table in PARTITIONED:
            self._delete_from_default(table, oldest)
        return dropped

    def _delete_from_default(self, table: str, oldest: datetime) -> None:
        deleted = MOVED_AT_ONCE
        while deleted == MOVED_AT_ONCE and not self._stopped.is_set():
            with self._alone() as db:
                deleted = db.execute(
                    select(func.srm.empty_default_partition(table, oldest, MOVED_AT_ONCE))
                ).scalar_one()
            if deleted:
                log.info("deleted from the default partition", table=table, rows=deleted)

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        """A transaction during which no other reaper works. Busy when one does already; Stopping after `stop()`.

        It does not wait for the disk: what a crash of the database undoes is simply done again.
        """
        self._go_on()
        with self._database.transaction() as db:
            if not db.execute(BE_ALONE).one().is_alone:
                raise Busy
            yield db

    @contextmanager
    def _alone_in_a_hurry(self) -> Iterator[Cursor]:
        """The same for `compiled` statements, at a fourth of the cost: for what is done by the hundred thousand."""
        self._go_on()
        with self._database.request() as db:
            ((is_alone, _),) = db.execute(BE_ALONE_IN_A_HURRY).fetchall()
            if not is_alone:
                raise Busy
            yield db

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise Stopping


def _month_of(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


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
    return _months_of(table, names)


def _months_of(table: str, partitions: Iterable[str]) -> list[datetime]:
    matches = (re.fullmatch(rf"{table}_(\d{{4}})_(\d{{2}})", name) for name in partitions)
    return sorted(datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC) for match in matches if match)


def _months_in_default(db: Connection, table: str) -> list[datetime]:
    """The months (UTC) of what is in the default partition of the table."""
    query = f"SELECT DISTINCT date_trunc('month', {PARTITIONED[table]}, 'UTC') FROM {SCHEMA}.{table}_default"  # noqa: S608
    return list(db.execute(text(query)).scalars())


def _months_half_made(db: Connection, table: str) -> list[datetime]:
    """The months whose partition somebody began by hand and left unattached: its rows are seen nowhere."""
    names = db.execute(
        text(
            "SELECT c.relname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid "
            "WHERE k.conname = 'month_in_the_making' AND c.relnamespace = CAST(:schema AS regnamespace) "
            "AND NOT c.relispartition"
        ),
        {"schema": SCHEMA},
    ).scalars()
    return _months_of(table, names)


def _wait_no_longer_for_readers(db: Connection) -> None:
    db.execute(text(f"SET LOCAL lock_timeout = {PARTITION_LOCK_MILLISECONDS}"))


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
