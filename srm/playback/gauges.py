"""Gauges that /metrics reads from the database: active sessions, and the health of schema, partitions and reaper.

All hosts read one database, so a dashboard takes the maximum over them, not the sum. Values are up to KEPT_SECONDS old,
or older where reading takes long: to count a million sessions takes a while.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import (
    ColumnElement,
    Connection,
    SQLColumnExpression,
    case,
    func,
    literal_column,
    not_,
    select,
    table,
    text,
)

from srm import version
from srm.db import schema
from srm.db.breaker import is_timeout
from srm.db.database import Database
from srm.db.models import SCHEMA, Availability, ReaperState, sessions
from srm.db.sql import constant
from srm.errors import DependencyUnavailable, first_line
from srm.playback.expiry import is_active, is_lapsed, lapsed_at

log = structlog.get_logger("srm.gauges")

KEPT_SECONDS = 10
"""Least time for which values are kept."""

READ_SHARE = 0.05
"""Most of its time that a process spends reading."""

MAX_GROUPS = 20
"""Device groups with a label of their own, the largest first. A subscriber system may have filled in anything."""

MAX_DEFAULT_ROWS = 1000
"""Rows of a default partition are counted up to this number. There should be none."""

COUNTED = (
    select(
        sessions.content_type,
        func.coalesce(sessions.device_group, constant("none")).label("device_group"),
        not_(is_active()).label("lapsed"),
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
    .limit(MAX_GROUPS)
)
COUNT_SESSIONS = select(
    COUNTED.c.content_type,
    case((COUNTED.c.device_group.in_(LARGEST), COUNTED.c.device_group), else_=constant("other")).label("device_group"),
    COUNTED.c.lapsed,
    func.sum(COUNTED.c.sessions).label("sessions"),
    func.max(COUNTED.c.lag).label("lag"),
).group_by(literal_column("1"), literal_column("2"), literal_column("3"))

LIST_PARTITIONS = text("""
SELECT parent.relname AS name,
       count(*) FILTER (WHERE child.relname::text COLLATE "C" ~ '_[0-9]{4}_[0-9]{2}$'
           AND child.relname::text COLLATE "C"
               > parent.relname || to_char(statement_timestamp() AT TIME ZONE 'UTC', '_YYYY_MM')) AS ahead,
       bool_or(child.relname = parent.relname || '_default') AS has_default
FROM pg_class parent
LEFT JOIN pg_inherits ON inhparent = parent.oid
LEFT JOIN pg_class child ON child.oid = inhrelid
WHERE parent.relkind = 'p' AND parent.relnamespace = to_regnamespace('srm')
GROUP BY parent.relname
""")


class DatabaseGauges(Collector):
    """Reads the gauges when Prometheus asks. Requests may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reading = threading.Lock()
        self._found: list[Metric] = []
        self._kept_until = float("-inf")

    def collect(self) -> Iterable[Metric]:
        """Return the latest values. Never raises; takes at most a few seconds, if the database is slow.

        One request reads at a time. Another one does not wait for it, and gets the values that were read before.
        """
        if time.monotonic() >= self._kept_until and self._reading.acquire(blocking=False):
            try:
                began_at = time.monotonic()
                self._found = self._read()
                now = time.monotonic()
                self._kept_until = now + max(KEPT_SECONDS, (now - began_at) / READ_SHARE)
            finally:
                self._reading.release()
        return [_build(), *self._found]

    def _read(self) -> list[Metric]:
        """Read one part after the other. A part that fails does not keep the others from being read."""
        up = GaugeMetricFamily("srm_database_up", "1 if the database answers, else 0")
        failed = GaugeMetricFamily(
            "srm_database_look_failed", "1 if a part of the following could not be read, else 0", labels=["part"]
        )
        took = GaugeMetricFamily("srm_database_look_seconds", "Seconds that it took to read a part", labels=["part"])
        parts: dict[str, Callable[[Connection], Iterable[Metric]]] = {
            "schema": _schema,
            "partitions": _partitions,
            "tick": _heartbeat,  # the label is older than the word heartbeat, and public
            "reaper": _reaper,
            "sessions": _sessions,
        }
        found: list[Metric] = [up, failed, took]
        is_up = False
        for part, read in parts.items():
            began_at = time.monotonic()
            try:
                with self._database.monitoring() as db:
                    found += read(db)
                is_up = True
                failed.add_metric([part], 0)
                took.add_metric([part], time.monotonic() - began_at)
            except Exception as error:
                cause = first_line(error.__cause__ or error)
                log.warning("database not looked at", part=part, cause=cause)
                failed.add_metric([part], 1)
                if isinstance(error, DependencyUnavailable) and not is_timeout(error):
                    is_up = False
                    break  # The database is away for the other parts too.
        up.add_metric([], is_up)
        return found


def _build() -> Metric:
    info = InfoMetricFamily("srm_build", "Version of SRM, and the schema revision that it needs")
    info.add_metric([], {"version": version.build(), "schema": schema.head_revision()})
    return info


def _gauge(name: str, help_: str, value: float | None) -> Sequence[Metric]:
    """Return the metric; no metric when there is no value."""
    return [] if value is None else [GaugeMetricFamily(name, help_, value=value)]


def _schema(db: Connection) -> list[Metric]:
    current = schema.current_revision(db)
    is_behind = schema.is_behind(current)
    info = InfoMetricFamily("srm_database_schema", "Schema revision of the database")
    info.add_metric([], {"revision": current or "none"})
    return [
        info,
        *_gauge("srm_schema_behind", "1 if the schema is older than this version needs, else 0", is_behind),
        *_gauge(
            "srm_schema_ahead",
            "1 if the schema is that of a later version, which is no fault, else 0",
            not is_behind and current != schema.head_revision(),
        ),
    ]


def _partitions(db: Connection) -> list[Metric]:
    ahead = GaugeMetricFamily(
        "srm_partitions_ahead", "Monthly partitions that exist for months to come", labels=["table"]
    )
    strays = GaugeMetricFamily(
        "srm_default_partition_rows",
        f"Rows for which there was no monthly partition; counted up to {MAX_DEFAULT_ROWS}",
        labels=["table"],
    )
    for parent in db.execute(LIST_PARTITIONS).all():
        ahead.add_metric([parent.name], parent.ahead)
        if parent.has_default:
            default = table(f"{parent.name}_default", schema=SCHEMA)
            rows = select(literal_column("1")).select_from(default).limit(MAX_DEFAULT_ROWS).subquery()
            strays.add_metric([parent.name], db.execute(select(func.count()).select_from(rows)).scalar_one())
    return [ahead, strays]


def _age(instant: SQLColumnExpression[Any]) -> ColumnElement[Any]:
    """Seconds since an instant, or until an instant in the future; 0 for `infinity`, null for `-infinity`.

    An instant in the future shows a step back of the clock that no heartbeat has noticed yet.
    """
    now = func.statement_timestamp()
    seconds = func.abs(func.extract("epoch", now - instant))
    return case((func.isfinite(instant), seconds), (instant > now, 0))


def _heartbeat(db: Connection) -> list[Metric]:
    seen, available = _age(Availability.seen_at).label("seen"), _age(Availability.available_since).label("available")
    age = db.execute(select(seen, available, _age(Availability.clock_stepped_at).label("step"))).one()
    step_help = "Seconds since the database's clock was seen to step back; no value if it never was"
    available_help = "Seconds since the last outage ended; no value without an outage"
    return [
        *_gauge("srm_tick_age_seconds", "Seconds since the last heartbeat of any process of the API", age.seen),
        *_gauge("srm_available_seconds", available_help, age.available),
        *_gauge("srm_clock_step_age_seconds", step_help, age.step),
    ]


def _reaper(db: Connection) -> list[Metric]:
    run_age, failure_age = _age(ReaperState.ran_at).label("run_age"), _age(ReaperState.failed_at).label("failure_age")
    state = db.execute(select(run_age, failure_age, ReaperState.expired, ReaperState.archived)).one()
    failure_help = "Seconds since the last failure of a reaper; no value without a failure"
    archived_help = "Ended sessions that reapers have moved to the history"
    return [
        *_gauge("srm_reaper_run_age_seconds", "Seconds since the last run of a reaper", state.run_age),
        *_gauge("srm_reaper_failure_age_seconds", failure_help, state.failure_age),
        CounterMetricFamily("srm_reaper_expired", "Lapsed sessions that reapers have ended", value=state.expired),
        CounterMetricFamily("srm_reaper_archived", archived_help, value=state.archived),
    ]


def _sessions(db: Connection) -> list[Metric]:
    active = GaugeMetricFamily(
        "srm_active_sessions",
        "Active sessions by content type and group of the device",
        labels=["content_type", "device_group"],
    )
    lapsed, oldest = 0, 0.0
    for row in db.execute(COUNT_SESSIONS):
        if row.lapsed:
            lapsed += int(row.sessions)
            oldest = max(oldest, float(row.lag))
        else:
            active.add_metric([row.content_type, row.device_group], row.sessions)
    return [
        active,
        *_gauge("srm_lapsed_sessions", "Sessions that have lapsed and that nobody has ended yet", lapsed),
        *_gauge("srm_reaper_lag_seconds", "Seconds since the oldest lapsed session lapsed; 0 without any", oldest),
    ]
