"""Lapse of sessions: its conditions, its instant, and the statement that ends lapsed sessions.

"Active" and "lapsed" are defined here and nowhere else in Python. The view `srm.active_sessions` repeats both in SQL; a
test compares the two.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Update, and_, case, func, literal_column, null, or_, update

from srm.db.models import PlaybackSession, sessions
from srm.db.sql import constant
from srm.playback.availability import AVAILABLE_SINCE, CLOCK_STEPPED_FROM

# Last keep-alive; null when it came before the last step back of the clock, because its instant is by the clock before
# the step. SILENT_SINCE then takes the end of the outage that the step has caused.
KEPT_ALIVE_AT = case(
    (sessions.last_keep_alive_at <= func.nullif(CLOCK_STEPPED_FROM, sessions.clock_stepped_from), null()),
    else_=sessions.last_keep_alive_at,
)
# Last keep-alive, or the end of the last outage if that is later. Silence during an outage is not the client's fault.
SILENT_SINCE = func.greatest(KEPT_ALIVE_AT, AVAILABLE_SINCE)
# Values that a keep-alive writes. `greatest`, because a keep-alive that waited for the row may be older than the
# keep-alive that held the row.
KEEP_ALIVE_VALUES: dict[str, ColumnElement[Any]] = {
    "last_keep_alive_at": func.greatest(KEPT_ALIVE_AT, func.statement_timestamp()),
    "clock_stepped_from": CLOCK_STEPPED_FROM,
}


def seconds(count: ColumnElement[int | None]) -> ColumnElement[object]:
    """Return an interval of so many seconds; null for null."""
    return func.make_interval(*[literal_column("0")] * 6, count)


def is_lapsed() -> ColumnElement[bool]:
    """Condition that a session has been silent for its timeout, or has reached its longest life.

    Null for a session that has neither timeout nor longest life. Only silence since the last outage counts. So a
    session that lapsed before an outage, and that nobody has ended, is active again after the outage. Nobody else
    has its slot: a setup that takes the slot ends the session.

    Compares the difference of two times with the timeout: a distributed UPDATE refuses to add to a column.
    """
    now = func.statement_timestamp()
    return or_(
        now - SILENT_SINCE >= seconds(sessions.timeout_seconds),
        now - sessions.started_at >= seconds(sessions.max_session_seconds),
    )


def is_active() -> ColumnElement[bool]:
    """Condition that a session holds a slot: it has not ended and has not lapsed. Never null."""
    return and_(sessions.ended_at.is_(None), is_lapsed().is_not(True))


def lapsed_at() -> ColumnElement[datetime]:
    """Instant at which a session lapses or has lapsed; null when it never does.

    Adds to times without zone: that is immutable, which a distributed UPDATE demands.
    """
    utc = constant("UTC")
    silent_for_timeout = func.timezone(utc, SILENT_SINCE) + seconds(sessions.timeout_seconds)
    longest_life_over = func.timezone(utc, sessions.started_at) + seconds(sessions.max_session_seconds)
    return func.timezone(utc, func.least(silent_for_timeout, longest_life_over))


def ended_at_as_seen() -> ColumnElement[datetime | None]:
    """Instant at which a session ended or lapsed; null while it is active."""
    return case((is_active(), null()), else_=func.coalesce(sessions.ended_at, lapsed_at()))


def end_reason_as_seen() -> ColumnElement[str | None]:
    """Reason why a session ended, `expired` for a lapsed session that nobody has ended; null while it is active."""
    return case((is_active(), null()), else_=func.coalesce(sessions.end_reason, constant("expired")))


def not_before_start(instant: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """Return the later of the instant and the start of the session; never null.

    After a step back of the clock a session could end before its start, and would then hide an excess from the limit
    check.
    """
    return func.greatest(sessions.started_at, instant)


def end_if_lapsed(which: ColumnElement[bool]) -> Update:
    """Statement that ends the lapsed ones of these sessions, as of the instant at which each lapsed."""
    return (
        update(PlaybackSession)
        .where(which, sessions.ended_at.is_(None), is_lapsed())
        .values(ended_at=not_before_start(lapsed_at()), end_reason=constant("expired"))
    )
