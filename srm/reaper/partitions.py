"""The monthly partitions of the history and of the denials: make them ahead of time, drop them by age.

Age is judged by the trusted time (srm.reaper.trust), not by the clock alone.

Each table also has a default partition. It takes rows of a month without a partition of its own, and is empty as a
rule.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import Connection, func, select, text

from srm.db.breaker import is_timeout
from srm.db.models import SCHEMA
from srm.errors import DependencyUnavailable, first_line
from srm.playback import history
from srm.reaper.exclusive import Busy, Exclusive, Stopping

log = structlog.get_logger("srm.reaper")

LOCK_MILLISECONDS = 100
"""Longest wait for readers when a partition is made or dropped. Queries behind it wait as long."""

MONTHS_AHEAD = 2

MOVED_AT_ONCE = 20_000
"""Rows that one statement takes out of a default partition."""

PARTITIONED = {"session_history": "ended_at", "denials": "denied_at"}
"""The partitioned tables, each with the column that decides the month (UTC) of a row."""


def make(
    exclusive: Exclusive, ended_retention_seconds: int, history_retention_days: int, trusted_at: datetime
) -> list[str]:
    """Make the missing partitions; return their names.

    There has to be a partition for this month, for MONTHS_AHEAD more, and for every month with rows to keep, as of
    `trusted_at`. When one cannot be made, the others are still made, and the default partition takes its rows. Raises
    the first unexpected error at the end; Busy when another reaper is at work; DependencyUnavailable when the database
    is away.
    """
    made = []
    failures = []
    for table, month in _missing(exclusive, ended_retention_seconds, history_retention_days, trusted_at):
        name = _name(table, month)
        try:
            with exclusive.transaction() as db:
                _make_one(exclusive, db, table, month)
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


def _missing(
    exclusive: Exclusive, ended_retention_seconds: int, history_retention_days: int, trusted_at: datetime
) -> list[tuple[str, datetime]]:
    """List table and month of each partition that has to be made, and is younger than the history retention."""
    missing = []
    with exclusive.transaction() as db:
        now: datetime = db.execute(select(func.statement_timestamp())).scalar_one()
        this_month = _month_of(now)
        last = _months_after(this_month, MONTHS_AHEAD)
        oldest = _month_of(trusted_at - timedelta(days=history_retention_days))
        to_archive = {"session_history": history.months_to_archive(db, ended_retention_seconds)}
        for table in PARTITIONED:
            months = {_months_after(this_month, ahead) for ahead in range(MONTHS_AHEAD + 1)}
            months.update(to_archive.get(table, ()), _months_in_default(db, table), _months_half_made(db, table))
            months.difference_update(_existing(db, table))
            missing += [(table, _month_of(month)) for month in sorted(months) if oldest <= month <= last]
    return missing


def _make_one(exclusive: Exclusive, db: Connection, table: str, month: datetime) -> None:
    """Make one partition and move the month's rows into it. Other transactions see these rows before and after."""
    _limit_lock_wait(db)
    while not db.execute(select(func.srm.make_partition(table, month, MOVED_AT_ONCE))).scalar_one():
        if exclusive.is_stopped:
            raise Stopping


def drop(exclusive: Exclusive, history_retention_days: int, trusted_at: datetime) -> list[str]:
    """Drop the partitions in which every row is older than the history retention; return their names.

    Delete such rows from the default partitions as well. Age counts up to `trusted_at`, which is no later than the
    clock. The log names a partition before it is dropped. Raises Busy when another reaper is at work.
    """
    dropped = []
    oldest = trusted_at - timedelta(days=history_retention_days)
    with exclusive.transaction() as db:
        _limit_lock_wait(db)  # dropping needs the table for itself, and queries queue behind the wait
        for table in PARTITIONED:
            for month in _existing(db, table):
                if _months_after(month, 1) <= oldest:
                    log.info("dropping partition", partition=_name(table, month), older_than=oldest.isoformat())
                    db.execute(select(func.srm.drop_partition(table, month)))
                    dropped.append(_name(table, month))
    for table in PARTITIONED:
        _delete_from_default(exclusive, table, oldest)
    return dropped


def _delete_from_default(exclusive: Exclusive, table: str, oldest: datetime) -> None:
    deleted = MOVED_AT_ONCE
    while deleted == MOVED_AT_ONCE and not exclusive.is_stopped:
        with exclusive.transaction() as db:
            if any(month < oldest for month in _months_in_default(db, table)):
                log.info("deleting from the default partition", table=table, older_than=oldest.isoformat())
            deleted = db.execute(select(func.srm.empty_default_partition(table, oldest, MOVED_AT_ONCE))).scalar_one()
        if deleted:
            log.info("deleted from the default partition", table=table, rows=deleted)


def _month_of(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _months_after(month: datetime, count: int) -> datetime:
    years, index = divmod(month.month - 1 + count, 12)
    return month.replace(year=month.year + years, month=index + 1)


def _name(table: str, month: datetime) -> str:
    return f"{table}_{month:%Y_%m}"


def _existing(db: Connection, table: str) -> list[datetime]:
    """List the months for which the table has a partition, oldest first."""
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
    """List the months (UTC) of the rows in the table's default partition."""
    query = f"SELECT DISTINCT date_trunc('month', {PARTITIONED[table]}, 'UTC') FROM {SCHEMA}.{table}_default"  # noqa: S608
    return list(db.execute(text(query)).scalars())


def _months_half_made(db: Connection, table: str) -> list[datetime]:
    """List the months of partitions that someone began to make by hand and did not attach.

    No query on the table sees the rows of such a partition.
    """
    names = db.execute(
        text(
            "SELECT c.relname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid "
            "WHERE k.conname = 'month_in_the_making' AND c.relnamespace = CAST(:schema AS regnamespace) "
            "AND NOT c.relispartition"
        ),
        {"schema": SCHEMA},
    ).scalars()
    return _months_of(table, names)


def _limit_lock_wait(db: Connection) -> None:
    db.execute(text(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}"))
