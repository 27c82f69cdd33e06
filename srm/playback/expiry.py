"""When a session lapses, and the ending of those that have."""

from datetime import datetime

from sqlalchemy import ColumnElement, Update, and_, func, literal_column, or_, update

from srm.db.models import PlaybackSession, sessions
from srm.db.sql import constant
from srm.playback.availability import AVAILABLE_SINCE

# When the client was last heard of, or could be again: in an outage it tries in vain.
HEARD_OF_AT = func.greatest(sessions.last_keep_alive_at, AVAILABLE_SINCE)


def seconds(count: ColumnElement[int | None]) -> ColumnElement[object]:
    """The interval of that many seconds."""
    return func.make_interval(*[literal_column("0")] * 6, count)


def is_lapsed() -> ColumnElement[bool]:
    """Whether a session has been silent for its timeout, or is as old as it may get; null where it has neither.

    Of the silence counts what was not an outage, nor before one. A session that had lapsed, and was not ended, when one
    began is active again after it: whoever took its slot would have ended it.

    Subtracts two times instead of adding to a column, which a distributed UPDATE refuses.
    """
    now = func.statement_timestamp()
    return or_(
        now - HEARD_OF_AT >= seconds(sessions.timeout_seconds),
        now - sessions.started_at >= seconds(sessions.max_session_seconds),
    )


def is_active() -> ColumnElement[bool]:
    """Condition that a session holds a slot: it has not ended and has not lapsed. Never null.

    The only definition in Python; the view `srm.active_sessions` repeats it for people with psql.
    """
    return and_(sessions.ended_at.is_(None), is_lapsed().is_not(True))


def lapsed_at() -> ColumnElement[datetime]:
    """The instant at which a session lapses, or did; null where it never does.

    By way of times without zone: adding to one is immutable, as a distributed UPDATE demands.
    """
    utc = constant("UTC")
    silent = func.timezone(utc, HEARD_OF_AT) + seconds(sessions.timeout_seconds)
    old = func.timezone(utc, sessions.started_at) + seconds(sessions.max_session_seconds)
    return func.timezone(utc, func.least(silent, old))


def lapse(which: ColumnElement[bool]) -> Update:
    """End those of the sessions that have lapsed, as of the instant of their lapse."""
    return (
        update(PlaybackSession)
        .where(which, sessions.ended_at.is_(None), is_lapsed())
        .values(ended_at=lapsed_at(), end_reason=constant("expired"))
    )
