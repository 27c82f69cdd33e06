"""What /metrics tells of the database: who is watching, and whether all is as it should be there.

All hosts see the same there, so a dashboard takes the maximum over the processes asked, not the sum. Whoever asks gets
what was found up to KEPT_SECONDS ago: a look counts all sessions, which takes its time where there are a million.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, Connection, SQLColumnExpression, case, func, literal_column, select, table, text

from srm import version
from srm.db import schema
from srm.db.breaker import is_timeout
from srm.db.database import Database
from srm.db.models import SCHEMA, Availability, ReaperState, sessions
from srm.db.sql import constant
from srm.errors import DependencyUnavailable, first_line
from srm.playback.expiry import is_lapsed, lapsed_at

log = structlog.get_logger("srm.collector")

KEPT_SECONDS = 10
"""What was found is told so long, at least."""

LOOK_SHARE = 0.05
"""A process spends no more of its time than that on looking."""

GROUPS = 20
"""Device groups that are told apart, the largest; a subscriber system may have filled in anything."""

DEFAULT_ROWS = 1000
"""Rows of a default partition that are counted; there should be none."""

LAPSED = func.coalesce(is_lapsed(), literal_column("false"))
COUNTED = (
    select(
        sessions.content_type,
        func.coalesce(sessions.device_group, constant("none")).label("device_group"),
        LAPSED.label("lapsed"),
        func.count().label("sessions"),
        func.max(func.extract("epoch", func.statement_timestamp() - lapsed_at())).filter(is_lapsed()).label("lag"),
    )
    .where(sessions.ended_at.is_(None))
    .group_by(literal_column("1"), literal_column("2"), literal_column("3"))
    .cte("counted")
)
LARGEST = (
    select(COUNTED.c.device_group)
    .group_by(COUNTED.c.device_group)
    .order_by(func.sum(COUNTED.c.sessions).desc(), COUNTED.c.device_group)
    .limit(GROUPS)
)
COUNT_SESSIONS = select(
    COUNTED.c.content_type,
    case((COUNTED.c.device_group.in_(LARGEST), COUNTED.c.device_group), else_=constant("other")).label("device_group"),
    COUNTED.c.lapsed,
    func.sum(COUNTED.c.sessions),
    func.max(COUNTED.c.lag),
).group_by(literal_column("1"), literal_column("2"), literal_column("3"))

LIST_PARTITIONS = text("""
SELECT parent.relname,
       count(*) FILTER (WHERE child.relname::text COLLATE "C" ~ '_[0-9]{4}_[0-9]{2}$'
           AND child.relname::text COLLATE "C"
               > parent.relname || to_char(statement_timestamp() AT TIME ZONE 'UTC', '_YYYY_MM')),
       bool_or(child.relname = parent.relname || '_default')
FROM pg_class parent
LEFT JOIN pg_inherits ON inhparent = parent.oid
LEFT JOIN pg_class child ON child.oid = inhrelid
WHERE parent.relkind = 'p' AND parent.relnamespace = to_regnamespace('srm')
GROUP BY parent.relname
""")


class DatabaseGauges(Collector):
    """Looks at the database when Prometheus asks; safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looking = threading.Lock()
        self._found: list[Metric] = []
        self._kept_until = float("-inf")

    def collect(self) -> Iterable[Metric]:
        """What was found last. Never raises; takes a few seconds at the most, when the database is slow.

        One thread looks at a time, and nobody waits for it: the others answer requests.
        """
        if time.monotonic() >= self._kept_until and self._looking.acquire(blocking=False):
            try:
                began_at = time.monotonic()
                self._found = self._look()
                now = time.monotonic()
                self._kept_until = now + max(KEPT_SECONDS, (now - began_at) / LOOK_SHARE)
            finally:
                self._looking.release()
        return [_build(), *self._found]

    def _look(self) -> list[Metric]:
        """Look at one thing after the other; one that fails does not keep the others from being seen."""
        up = GaugeMetricFamily("srm_database_up", "Whether the database answers: 1 or 0")
        failed = GaugeMetricFamily(
            "srm_database_look_failed", "Whether a part of what follows could not be found out: 1 or 0", labels=["part"]
        )
        took = GaugeMetricFamily(
            "srm_database_look_seconds", "Seconds that it took to find out a part of it", labels=["part"]
        )
        parts: dict[str, Callable[[Connection], Iterable[Metric]]] = {
            "schema": _schema,
            "partitions": _partitions,
            "tick": _tick,
            "reaper": _reaper,
            "sessions": _sessions,
        }
        found: list[Metric] = [up, failed, took]
        is_up = False
        for part, look in parts.items():
            began_at = time.monotonic()
            try:
                with self._database.transaction() as db:
                    found += look(db)
                is_up = True
                failed.add_metric([part], 0)
                took.add_metric([part], time.monotonic() - began_at)
            except Exception as error:
                cause = first_line(error.__cause__ or error)
                log.warning("database not looked at", part=part, cause=cause)
                failed.add_metric([part], 1)
                if isinstance(error, DependencyUnavailable) and not is_timeout(error):
                    is_up = False
                    break  # it is away for the other parts too
        up.add_metric([], is_up)
        return found


def _build() -> Metric:
    info = InfoMetricFamily("srm_build", "Version of SRM, and the revision of the schema that it is written for")
    info.add_metric([], {"version": version.build(), "schema": schema.head_revision()})
    return info


def _gauge(name: str, meaning: str, value: float | None) -> Sequence[Metric]:
    """The metric; none where there is no value."""
    return [] if value is None else [GaugeMetricFamily(name, meaning, value=value)]


def _schema(db: Connection) -> list[Metric]:
    current = schema.current_revision(db)
    is_behind = schema.is_behind(current)
    info = InfoMetricFamily("srm_database_schema", "Revision of the schema of the database")
    info.add_metric([], {"revision": current or "none"})
    return [
        info,
        *_gauge("srm_schema_behind", "Whether the schema is older than this version needs: 1 or 0", is_behind),
        *_gauge(
            "srm_schema_ahead",
            "Whether the schema is that of a later version, which is no fault: 1 or 0",
            not is_behind and current != schema.head_revision(),
        ),
    ]


def _partitions(db: Connection) -> list[Metric]:
    ahead = GaugeMetricFamily(
        "srm_partitions_ahead", "Monthly partitions that are there for months to come", labels=["table"]
    )
    strays = GaugeMetricFamily(
        "srm_default_partition_rows",
        f"Rows for which there was no monthly partition; counted up to {DEFAULT_ROWS}",
        labels=["table"],
    )
    for name, count, has_default in db.execute(LIST_PARTITIONS).all():
        ahead.add_metric([name], count)
        if has_default:
            rows = (
                select(literal_column("1"))
                .select_from(table(f"{name}_default", schema=SCHEMA))
                .limit(DEFAULT_ROWS)
                .subquery()
            )
            strays.add_metric([name], db.execute(select(func.count()).select_from(rows)).scalar_one())
    return [ahead, strays]


def _age(instant: SQLColumnExpression[Any]) -> ColumnElement[Any]:
    """Seconds since then; null where it is `-infinity`, 0 where it is `infinity`."""
    now = func.statement_timestamp()
    seconds = func.greatest(0, func.extract("epoch", now - instant))
    return case((func.isfinite(instant), seconds), (instant > now, 0))


def _tick(db: Connection) -> list[Metric]:
    seen, since = db.execute(select(_age(Availability.seen_at), _age(Availability.available_since))).one()
    return [
        *_gauge("srm_tick_age_seconds", "Seconds since any process of the API has last said that it is there", seen),
        *_gauge("srm_available_seconds", "Seconds since the last outage ended; without one, none", since),
    ]


def _reaper(db: Connection) -> list[Metric]:
    of = ReaperState
    ran, failed, expired, archived = db.execute(
        select(_age(of.ran_at), _age(of.failed_at), of.expired, of.archived)
    ).one()
    return [
        *_gauge("srm_reaper_run_age_seconds", "Seconds since the last run of a reaper", ran),
        *_gauge(
            "srm_reaper_failure_age_seconds", "Seconds since the last failure of a reaper; without one, none", failed
        ),
        CounterMetricFamily("srm_reaper_expired", "Lapsed sessions that reapers have ended", value=expired),
        CounterMetricFamily(
            "srm_reaper_archived", "Ended sessions that reapers have moved to the history", value=archived
        ),
    ]


def _sessions(db: Connection) -> list[Metric]:
    active = GaugeMetricFamily(
        "srm_active_sessions",
        "Active sessions by content type and group of the device",
        labels=["content_type", "device_group"],
    )
    lapsed, oldest = 0, 0.0
    for content_type, device_group, has_lapsed, count, lag in db.execute(COUNT_SESSIONS):
        if has_lapsed:
            lapsed += int(count)
            oldest = max(oldest, float(lag))
        else:
            active.add_metric([content_type, device_group], count)
    return [
        active,
        *_gauge("srm_lapsed_sessions", "Sessions that have lapsed and that nobody has ended yet", lapsed),
        *_gauge("srm_reaper_lag_seconds", "Seconds since the oldest of them has lapsed; 0 without any", oldest),
    ]
