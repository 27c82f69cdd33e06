"""Ended sessions move to the history."""

from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, CursorResult, delete, func, insert, literal, select, tuple_

from srm.db.models import PlaybackSession, SessionHistory, sessions
from srm.playback.ending import ENDED_AT_ONCE
from srm.playback.expiry import seconds


def months_to_archive(db: Connection, retention_seconds: int) -> list[datetime]:
    """The months (UTC) in which the sessions ended that `archive` would move now."""
    month = func.date_trunc("month", sessions.ended_at, "UTC").label("month")
    return list(db.execute(select(month).where(_is_kept_long_enough(retention_seconds)).distinct()).scalars())


def archive(db: Connection, retention_seconds: int) -> int:
    """Move sessions that ended longer ago than that to the history, at most ENDED_AT_ONCE; how many.

    One statement: a session is in one table or in the other, never in both or in none. Only its key leads to a row that
    is deleted: by way of `ended_at`, which a planner takes who believes that hardly any session has ended, each of 500
    was looked for among 100,000.
    """
    ended = (
        select(sessions.account_id, sessions.session_id)
        .where(_is_kept_long_enough(retention_seconds))
        .order_by(sessions.ended_at)
        .limit(ENDED_AT_ONCE)
    )
    names = [column.name for column in SessionHistory.__table__.columns]
    moved = (
        delete(PlaybackSession)
        .where(tuple_(sessions.account_id, sessions.session_id).in_(ended))
        .returning(*(sessions[name] for name in names))
        .cte("moved")
    )
    statement = insert(SessionHistory).from_select(names, select(*(moved.c[name] for name in names)))
    result = db.execute(statement, execution_options={"preserve_rowcount": True})
    return cast("CursorResult[Any]", result).rowcount


def _is_kept_long_enough(retention_seconds: int) -> ColumnElement[bool]:
    return sessions.ended_at <= func.statement_timestamp() - seconds(literal(retention_seconds))
