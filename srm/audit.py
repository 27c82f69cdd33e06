"""Checks afterwards, from the tables alone, that no account ever held more sessions than it may."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, literal, select, union_all

from srm import playback
from srm.models import EndedSession, PlaybackSession
from srm.playback import sessions


@dataclass(frozen=True, slots=True)
class Excess:
    """An instant at which a setup was admitted though the limit in force was reached."""

    account_id: str
    at: datetime
    active: int
    max_sessions: int


def excesses(db: Connection) -> list[Excess]:
    """Every setup, kept in `sessions` or `session_history`, that took an account over its limit.

    A sweep over [start, end) of all sessions of each account, ends before starts at the same instant;
    each session is held against the limit under which it was admitted, since limits change. A lapsed
    session ended when it lapsed, whether or not the reaper has seen it.
    """
    # The end of an active session, in the future or null, comes after every start.
    ended_at = func.coalesce(sessions.ended_at, playback.lapsed_at()).label("ended_at")
    kept, moved = PlaybackSession, EndedSession
    spans = union_all(
        select(kept.account_id, kept.started_at, ended_at, kept.max_sessions),
        select(moved.account_id, moved.started_at, moved.ended_at, moved.max_sessions),
    ).cte("spans")
    events = union_all(
        select(
            spans.c.account_id,
            spans.c.started_at.label("at"),
            literal(1).label("change"),
            spans.c.max_sessions,
        ),
        select(spans.c.account_id, spans.c.ended_at, literal(-1), literal(None)).where(spans.c.ended_at.is_not(None)),
    ).cte("events")
    sweep = select(
        events,
        func.sum(events.c.change)
        .over(partition_by=events.c.account_id, order_by=(events.c.at, events.c.change), rows=(None, 0))
        .label("active"),
    ).cte("sweep")
    found = select(sweep.c.account_id, sweep.c.at, sweep.c.active, sweep.c.max_sessions).where(
        sweep.c.change == 1, sweep.c.active > sweep.c.max_sessions
    )
    return [Excess(*row) for row in db.execute(found.order_by(sweep.c.account_id, sweep.c.at))]


def counted(db: Connection) -> int:
    """How many sessions there are to check."""
    tables = (PlaybackSession, EndedSession)
    return sum(db.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)
