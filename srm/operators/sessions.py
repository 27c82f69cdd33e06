"""Sessions as operators see and stop them, and the denials of an account.

Reading locks nothing: a list shows the sessions as of its own instant. Stopping locks the account first.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, func, not_, select, tuple_, union_all
from sqlalchemy.orm import Session

from srm.db.models import Denial, Device, EndReason, PlaybackSession, SessionColumns, SessionHistory, sessions
from srm.errors import ResourceNotFound, SessionNotFound
from srm.operators import change_log, rows
from srm.operators.cursors import InstantCursor, SessionCursor
from srm.operators.resources import ReadModel
from srm.playback import ending
from srm.playback.expiry import end_reason_as_seen, ended_at_as_seen, is_active
from srm.playback.model import EndedSession

State = Literal["active", "ended", "all"]


class SessionView(ReadModel):
    """A session as operators see it.

    A lapsed session is shown as ended, with the reason `expired`, even before the reaper has ended it.
    """

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


class DenialView(ReadModel):
    """A setup that was denied. With `observed`, the profile only observes, and the setup was admitted."""

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
    """Selects active sessions of all accounts. Each field that is not None must match."""

    content_id: str | None = None
    content_type: str | None = None
    device_group: str | None = None
    started_before: datetime | None = None

    def condition(self) -> ColumnElement[bool]:
        """Condition that a session is active and matches."""
        conditions = [is_active()]
        if self.content_id is not None:
            conditions.append(sessions.content_id == self.content_id)
        if self.content_type is not None:
            conditions.append(sessions.content_type == self.content_type)
        if self.device_group is not None:
            conditions.append(sessions.device_group == self.device_group)
        if self.started_before is not None:
            conditions.append(sessions.started_at < self.started_before)
        return and_(*conditions)


def list_account_sessions(
    db: Session, account_id: str, state: State, *, limit: int, after: InstantCursor | None = None
) -> list[SessionView]:
    """Return at most `limit` sessions of the account in that state, newest first, that come after the cursor.

    A deleted account still has its history. Raises ResourceNotFound when there is neither a session nor the account.
    """
    query: Select[Any]
    recent = _recent_sessions().where(sessions.account_id == account_id)
    if state == "active":
        query = recent.where(is_active())
        started_at, session_id = sessions.started_at, sessions.session_id
    else:
        if state == "ended":
            recent = recent.where(not_(is_active()))
        both = union_all(recent, _archived_sessions(account_id)).subquery("both")
        query = select(both)
        started_at, session_id = both.c.started_at, both.c.session_id
    if after is not None:
        query = query.where(tuple_(started_at, session_id) < tuple_(*after))
    found = db.execute(query.order_by(started_at.desc(), session_id.desc()).limit(limit)).all()
    if not found:
        rows.check_account_exists(db, account_id)
    return [SessionView.of_row(row) for row in found]


def list_account_denials(
    db: Session, account_id: str, *, limit: int, after: InstantCursor | None = None
) -> list[DenialView]:
    """Return at most `limit` denials of the account, newest first, that come after the cursor.

    A deleted account still has its denials. Raises ResourceNotFound when there is neither a denial nor the account.
    """
    query = select(*(getattr(Denial, name) for name in DenialView.model_fields)).where(Denial.account_id == account_id)
    if after is not None:
        query = query.where(tuple_(Denial.denied_at, Denial.denial_id) < tuple_(*after))
    newest_first = (Denial.denied_at.desc(), Denial.denial_id.desc())
    found = db.execute(query.order_by(*newest_first).limit(limit)).all()
    if not found:
        rows.check_account_exists(db, account_id)
    return [DenialView.of_row(row) for row in found]


def list_active_sessions(
    db: Session, which: SessionFilter, *, limit: int, after: SessionCursor | None = None
) -> list[SessionView]:
    """Return at most `limit` active sessions of all accounts, by account and session id, that come after the cursor."""
    query = _recent_sessions().where(which.condition())
    if after is not None:
        query = query.where(tuple_(sessions.account_id, sessions.session_id) > tuple_(*after))
    found = db.execute(query.order_by(sessions.account_id, sessions.session_id).limit(limit))
    return [SessionView.of_row(row) for row in found]


def count_active_sessions(db: Session, which: SessionFilter) -> int:
    """Return the number of active sessions of all accounts that match."""
    return db.execute(select(func.count()).select_from(PlaybackSession).where(which.condition())).scalar_one()


def end_account_sessions(db: Session, operator: str, account_id: str) -> list[EndedSession]:
    """End all sessions of the account; record and return them. Raises ResourceNotFound for an unknown account."""
    rows.lock_account(db, account_id)
    return end_and_record(db, operator, "operator", sessions.account_id == account_id)


def end_device_sessions(db: Session, operator: str, account_id: str, device_id: str) -> list[EndedSession]:
    """End all sessions of the device; record and return them.

    A removed device may still have sessions. Raises ResourceNotFound when there is neither a session nor the device, or
    when the account does not exist.
    """
    rows.lock_account(db, account_id)
    of_device = and_(sessions.account_id == account_id, sessions.device_id == device_id)
    ended = end_and_record(db, operator, "operator", of_device)
    if not ended and db.get(Device, (account_id, device_id)) is None:
        raise ResourceNotFound
    return ended


def end_session(db: Session, operator: str, account_id: str, session_id: UUID) -> list[EndedSession]:
    """End the session of the account; record and return it. The list is empty when it has ended already.

    Raises SessionNotFound when the account never had the session, or its history has been dropped. Raises
    ResourceNotFound when the account does not exist.
    """
    rows.lock_account(db, account_id)
    is_session = and_(sessions.account_id == account_id, sessions.session_id == session_id)
    ended = end_and_record(db, operator, "operator", is_session)
    if not ended and not _is_known(db, account_id, session_id):
        raise SessionNotFound
    return ended


def end_and_record(db: Session, operator: str, reason: EndReason, which: ColumnElement[bool]) -> list[EndedSession]:
    """End the sessions and record in the change log that the operator ended them.

    The caller holds the locks of their accounts. Sessions that have lapsed end as `expired` and are not recorded.
    """
    ended = ending.end_sessions(db.connection(), reason, which)
    change_log.record_ended(db.connection(), operator, ended)
    return ended


def _is_known(db: Session, account_id: str, session_id: UUID) -> bool:
    known = union_all(
        *(
            select(table.session_id).where(table.account_id == account_id, table.session_id == session_id)
            for table in (PlaybackSession, SessionHistory)
        )
    )
    return db.execute(known).first() is not None


def _recent_sessions() -> Select[Any]:
    """Query for all sessions that are not archived, with the columns of SessionView."""
    return select(
        *_columns_before_end(PlaybackSession),
        ended_at_as_seen().label("ended_at"),
        end_reason_as_seen().label("end_reason"),
        sessions.ended_by,
    )


def _archived_sessions(account_id: str) -> Select[Any]:
    """Query for the archived sessions of the account, with the columns of SessionView."""
    table = SessionHistory
    columns = (*_columns_before_end(table), table.ended_at, table.end_reason, table.ended_by)
    return select(*columns).where(table.account_id == account_id)


def _columns_before_end(table: type[SessionColumns]) -> list[ColumnElement[Any]]:
    """Columns of SessionView that do not tell how the session ended."""
    return [getattr(table, name) for name in SessionView.model_fields if not name.startswith("end")]
