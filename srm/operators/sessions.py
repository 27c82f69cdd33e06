"""What a care agent looks at: the sessions of an account and its refusals, and who watches what just now.

All of it is read as it is at that instant; nothing here locks anything.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    func,
    or_,
    select,
    tuple_,
    union_all,
)

from srm.db.models import Denial, PlaybackSession, SessionColumns, SessionHistory, sessions
from srm.db.sql import constant
from srm.operators.resources import Shown
from srm.playback.expiry import is_active, is_lapsed, lapsed_at

State = Literal["active", "ended", "all"]
Position = tuple[datetime, UUID]
"""Of the last one seen, in a list that begins with the newest: its instant and its id."""


class SeenSession(Shown):
    """A session, as an operator sees it. One that has lapsed has ended, whether or not the reaper has seen it."""

    account_id: str
    session_id: UUID
    device_id: str
    device_group: str | None
    content_type: str
    content_id: str
    address: str | None
    started_at: datetime
    last_keep_alive_at: datetime
    timeout_seconds: int | None
    ended_at: datetime | None
    end_reason: str | None
    ended_by: str | None


class Refusal(Shown):
    """A setup that was refused, or would have been."""

    denial_id: UUID
    denied_at: datetime
    device_id: str
    content_type: str
    content_id: str
    address: str | None
    error_code: str
    rule: str | None
    rule_limit: int | None
    in_the_way: list[UUID] | None
    observed: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions to look for, across accounts: those that are all of this; None = any."""

    content_id: str | None = None
    content_type: str | None = None
    device_group: str | None = None
    started_before: datetime | None = None

    def condition(self) -> ColumnElement[bool]:
        """Of an active session like that."""
        wanted = [is_active()]
        if self.content_id is not None:
            wanted.append(sessions.content_id == self.content_id)
        if self.content_type is not None:
            wanted.append(sessions.content_type == self.content_type)
        if self.device_group is not None:
            wanted.append(sessions.device_group == self.device_group)
        if self.started_before is not None:
            wanted.append(sessions.started_at < self.started_before)
        return and_(*wanted)


def sessions_of(
    db: Connection, account_id: str, state: State, *, limit: int, after: Position | None
) -> list[SeenSession]:
    """The sessions of an account, the newest first: those that are active, those that have ended, or both."""
    hot = _hot().where(sessions.account_id == account_id)
    query: Select[Any]
    if state == "active":
        query = hot.where(is_active())
        started_at, session_id = sessions.started_at, sessions.session_id
    else:
        if state == "ended":
            hot = hot.where(or_(sessions.ended_at.is_not(None), is_lapsed()))
        past = select(
            *_seen(SessionHistory), SessionHistory.ended_at, SessionHistory.end_reason, SessionHistory.ended_by
        )
        both = union_all(hot, past.where(SessionHistory.account_id == account_id)).subquery("both")
        query = select(both)
        started_at, session_id = both.c.started_at, both.c.session_id
    if after is not None:
        query = query.where(tuple_(started_at, session_id) < tuple_(*after))
    return [
        SeenSession.of_row(row) for row in db.execute(query.order_by(started_at.desc(), session_id.desc()).limit(limit))
    ]


def is_known(db: Connection, account_id: str, session_id: UUID) -> bool:
    """Whether the account has, or had, the session."""
    known = union_all(
        *(
            select(table.session_id).where(table.account_id == account_id, table.session_id == session_id)
            for table in (PlaybackSession, SessionHistory)
        )
    )
    return db.execute(known).first() is not None


def sessions_everywhere(
    db: Connection, watched: SessionFilter, *, limit: int, after: tuple[str, UUID] | None
) -> list[SeenSession]:
    """Active sessions of all accounts, by account; `after`: behind the session of that account with that id."""
    query = _hot().where(watched.condition())
    if after is not None:
        query = query.where(tuple_(sessions.account_id, sessions.session_id) > tuple_(*after))
    found = db.execute(query.order_by(sessions.account_id, sessions.session_id).limit(limit))
    return [SeenSession.of_row(row) for row in found]


def count_everywhere(db: Connection, watched: SessionFilter) -> int:
    """How many active sessions all accounts have."""
    return db.execute(select(func.count()).select_from(PlaybackSession).where(watched.condition())).scalar_one()


def refusals_of(db: Connection, account_id: str, *, limit: int, after: Position | None) -> list[Refusal]:
    """The refusals of an account, the newest first."""
    query = select(*(getattr(Denial, name) for name in Refusal.model_fields)).where(Denial.account_id == account_id)
    if after is not None:
        query = query.where(tuple_(Denial.denied_at, Denial.denial_id) < tuple_(*after))
    newest_first = (Denial.denied_at.desc(), Denial.denial_id.desc())
    return [Refusal.of_row(row) for row in db.execute(query.order_by(*newest_first).limit(limit))]


def _hot() -> Select[Any]:
    """Sessions that are active, lapsed or freshly ended, as they are seen."""
    ended_at = case((sessions.ended_at.is_not(None), sessions.ended_at), (is_lapsed(), lapsed_at()))
    end_reason = case((sessions.ended_at.is_not(None), sessions.end_reason), (is_lapsed(), constant("expired")))
    return select(
        *_seen(PlaybackSession), ended_at.label("ended_at"), end_reason.label("end_reason"), sessions.ended_by
    )


def _seen(table: type[SessionColumns]) -> list[ColumnElement[Any]]:
    return [getattr(table, name) for name in SeenSession.model_fields if not name.startswith("end")]
