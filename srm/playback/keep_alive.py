"""Keep-alive: starts the timeout of a session anew."""

from uuid import UUID

from srm.db.connection import Cursor, Executor
from srm.errors import SessionHasEnded, SessionNotFound
from srm.playback.model import EndedSession, Principal
from srm.playback.statements import END_OWN_IF_LAPSED, EXPLAIN, KEEP_ALIVE, ended_sessions, params_of


def keep_alive(db: Executor, principal: Principal, session_id: UUID) -> bool:
    """Start the timeout of the session anew; False when the account and device seem to have no such active session.

    The hot path: one statement, and nothing between it and the driver. `keep_alive_or_explain` has the last word.
    """
    return db.execute(KEEP_ALIVE, params_of(principal, session_id)).rowcount == 1


def keep_alive_or_explain(db: Cursor, principal: Principal, session_id: UUID, ended: list[EndedSession]) -> None:
    """Start the timeout of the session anew. If it turns out to have lapsed, it is added to `ended`.

    SessionNotFound, also when the session is another account's or device's. SessionHasEnded when it has ended or
    lapsed: a lapsed session never comes back, its slot may be taken.
    """
    while (end := find_end(db, principal, session_id, ended)) is None:
        if keep_alive(db, principal, session_id):
            return
    raise end


def find_end(db: Cursor, principal: Principal, session_id: UUID, ended: list[EndedSession]) -> SessionHasEnded | None:
    """Why the session has ended; None while it is active. SessionNotFound when it never was.

    A session that looks lapsed may just be saved by a keep-alive which began in time and is not committed. To end it
    waits for that one and looks again; only then is it a fact that it has lapsed.
    """
    names = params_of(principal, session_id)
    ended += ended_sessions(db.execute(END_OWN_IF_LAPSED, names))
    session = db.execute(EXPLAIN, names).fetchone()
    if session is None:
        raise SessionNotFound
    end_reason, ended_by = session
    return None if end_reason is None else SessionHasEnded(end_reason, ended_by)
