"""Keep-alive: restarts the timeout of a session."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from srm.db.connection import Cursor, Executor, waive_durability
from srm.errors import SessionHasEnded, SessionNotFound
from srm.playback.model import EndedSession, Principal, Result
from srm.playback.statements import (
    END_OWN_IF_LAPSED,
    GET_END,
    KEEP_ALIVE,
    KEEP_ALL_ALIVE,
    OwnSession,
    ended_sessions,
    own_sessions,
    params_of,
    read_end,
)


def keep_alive(db: Executor, principal: Principal, session_id: UUID) -> bool:
    """Restart the timeout of the session. Return False when account and device seem to have no such active session.

    The hot path: one statement, and nothing between it and the driver. After False, `keep_alive_or_explain` has the
    last word.
    """
    return db.execute(KEEP_ALIVE, params_of(principal, session_id)).rowcount == 1


def keep_all_alive(db: Executor, batch: Sequence[OwnSession]) -> list[bool | None]:
    """Restart the timeouts of these sessions in one statement. The batch may name a session twice.

    The answer to each is True, or None where `keep_alive` has to look: the session is not active, or somebody holds its
    row.
    """
    # Answers are found by key, not by place: the statement returns rows in any order, and only those that it changed.
    kept = set(db.execute(KEEP_ALL_ALIVE, own_sessions(batch)).fetchall())
    return [True if session in kept else None for session in batch]


class InactiveSession(NamedTuple):
    """Why account and device have no such active session. `ended`: the session, if it was ended as expired just now."""

    error: SessionNotFound | SessionHasEnded
    ended: Sequence[EndedSession] = ()


def keep_alive_or_explain(db: Cursor, principal: Principal, session_id: UUID) -> Result[None]:
    """Restart the timeout of the session, or return the error that says why not.

    SessionNotFound: account and device never had the session. SessionHasEnded: the session has ended or lapsed. A
    lapsed session never comes back, because its slot may be taken (docs/design.md, Invariant 2).
    """
    while (inactive := find_inactive(db, principal, session_id)) is None:
        if keep_alive(db, principal, session_id):
            return Result(None)
    return Result(inactive.error, inactive.ended)


def find_inactive(db: Cursor, principal: Principal, session_id: UUID) -> InactiveSession | None:
    """Return why the session is not active; None while it is.

    A session that looks lapsed may have been kept alive by a statement that began in time and is not committed. Ending
    the session waits for that statement and looks again. So the session is ended only if it has really lapsed.
    """
    params = params_of(principal, session_id)
    ended = ended_sessions(db.execute(END_OWN_IF_LAPSED, params))
    row = db.execute(GET_END, params).fetchone()
    if row is None:
        waive_durability(db)
        return InactiveSession(SessionNotFound())
    end = read_end(row)
    if end.end_reason is None:
        return None
    waive_durability(db)
    return InactiveSession(SessionHasEnded(end.end_reason, end.ended_by), ended)
