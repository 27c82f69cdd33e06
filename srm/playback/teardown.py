"""Teardown: ends a session at the request of its client."""

from uuid import UUID

from srm.db.connection import Cursor, Executor
from srm.errors import SessionHasEnded
from srm.playback.keep_alive import find_inactive
from srm.playback.model import Principal, Result
from srm.playback.statements import TEAR_DOWN, params_of


def tear_down(db: Executor, principal: Principal, session_id: UUID) -> bool:
    """End the session and free its slot. Return False when account and device seem to have no such active session.

    After False, `tear_down_or_explain` has the last word.
    """
    return db.execute(TEAR_DOWN, params_of(principal, session_id)).rowcount == 1


def tear_down_or_explain(db: Cursor, principal: Principal, session_id: UUID) -> Result[bool]:
    """End the session and free its slot, or return the error that says why not.

    The outcome is True when the session was torn down now. It is False when this device tore the session down before:
    a client repeats a teardown whose answer got lost. SessionNotFound and SessionHasEnded as for a keep-alive.
    """
    while (inactive := find_inactive(db, principal, session_id)) is None:
        if tear_down(db, principal, session_id):
            return Result(True)
    if isinstance(inactive.error, SessionHasEnded) and inactive.error.end_reason == "teardown":
        return Result(False)
    return Result(inactive.error, inactive.ended)
