"""Teardown: ends a session at the request of its client."""

from uuid import UUID

from srm.db.connection import Cursor, Executor
from srm.playback.keep_alive import find_end
from srm.playback.model import EndedSession, Principal
from srm.playback.statements import TEAR_DOWN, params_of


def tear_down(db: Executor, principal: Principal, session_id: UUID) -> bool:
    """End the session and free its slot; False when the account and device seem to have no such active session.

    `tear_down_or_explain` has the last word.
    """
    return db.execute(TEAR_DOWN, params_of(principal, session_id)).rowcount == 1


def tear_down_or_explain(db: Cursor, principal: Principal, session_id: UUID, ended: list[EndedSession]) -> bool:
    """End the session and free its slot; False, and nothing happens, when this device has torn it down before.

    If it turns out to have lapsed, it is added to `ended`. SessionNotFound and SessionHasEnded as for a keep-alive.
    """
    while (end := find_end(db, principal, session_id, ended)) is None:
        if tear_down(db, principal, session_id):
            return True
    if end.end_reason != "teardown":
        raise end
    return False
