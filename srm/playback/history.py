"""Move of ended sessions from `sessions` to `session_history`."""

from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, CursorResult, delete, func, insert, literal, select, tuple_

from srm.db.models import PlaybackSession, SessionHistory, sessions
from srm.playback.ending import ENDED_AT_ONCE
from srm.playback.expiry import seconds


def months_to_archive(db: Connection, retention_seconds: int) -> list[datetime]:
    """Return the months (UTC) in which the sessions ended that `archive` would move now."""
    month = func.date_trunc("month", sessions.ended_at, "UTC").label("month")
    return list(db.execute(select(month).where(_is_due(retention_seconds)).distinct()).scalars())


def archive(db: Connection, retention_seconds: int) -> int:
    """Move at most ENDED_AT_ONCE sessions that ended `retention_seconds` ago or earlier; return how many were moved.

    One statement, so that a session is in exactly one of the two tables at any instant. It deletes by key: with stale
    statistics the planner picks the index on `ended_at` and reads 100,000 rows for each session.
    """
    due = (
        select(sessions.account_id, sessions.session_id)
        .where(_is_due(retention_seconds))
        .order_by(sessions.ended_at)
        .limit(ENDED_AT_ONCE)
    )
    names = [column.name for column in SessionHistory.__table__.columns]
    moved = (
        delete(PlaybackSession)
        .where(tuple_(sessions.account_id, sessions.session_id).in_(due))
        .returning(*(sessions[name] for name in names))
        .cte("moved")
    )
    statement = insert(SessionHistory).from_select(names, select(*(moved.c[name] for name in names)))
    result = db.execute(statement, execution_options={"preserve_rowcount": True})
    return cast("CursorResult[Any]", result).rowcount


def _is_due(retention_seconds: int) -> ColumnElement[bool]:
    return sessions.ended_at <= func.statement_timestamp() - seconds(literal(retention_seconds))
