"""Teardown: ends a session at the request of its client."""

from collections.abc import Sequence
from uuid import UUID

from srm.db.connection import Cursor, Executor
from srm.errors import SessionHasEnded
from srm.playback.keep_alive import find_inactive
from srm.playback.model import Principal, Result
from srm.playback.statements import TEAR_ALL_DOWN, TEAR_DOWN, OwnSession, own_sessions, params_of


def tear_down(db: Executor, principal: Principal, session_id: UUID) -> bool:
    """End the session and free its slot. Return False when account and device seem to have no such active session.

    After False, `tear_down_or_explain` has the last word.
    """
    return db.execute(TEAR_DOWN, params_of(principal, session_id)).rowcount == 1


def tear_all_down(db: Executor, batch: Sequence[OwnSession]) -> list[bool | None]:
    """End these sessions in one statement. The answer to each is True, or None where `tear_down` has to look.

    When the batch names a session twice, the first request gets True. The second one is a repeat, and gets None.
    """
    torn_down = set(db.execute(TEAR_ALL_DOWN, own_sessions(batch)).fetchall())
    answers: list[bool | None] = []
    for session in batch:
        answers.append(True if session in torn_down else None)
        torn_down.discard(session)
    return answers


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
