"""Ending of sessions by an operator, an import or the reaper."""

import time
from collections.abc import Sequence

from psycopg.errors import LockNotAvailable
from sqlalchemy import ColumnElement, Connection, case, func, literal, select, tuple_, update

from srm.db.connection import Cursor, connection_of
from srm.db.models import EndReason, PlaybackSession, sessions
from srm.db.sql import constant, is_among
from srm.playback.expiry import is_lapsed, lapsed_at, not_before_start
from srm.playback.model import EndedSession, ExpiredSession, SessionKey
from srm.playback.statements import END_ALL_LAPSED, END_LAPSED_UNLESS_HELD, ENDED_SESSION, FIND_LAPSED

LAPSED_AT_ONCE = 100_000
"""Most lapsed sessions that the reaper looks for at a time: one scan of the table, and some 30 MB of keys."""

ENDED_AT_ONCE = 100
"""Most sessions that the reaper ends or moves in one transaction. Short transactions make nobody wait for long."""

HELD_MILLISECONDS = 10
"""Time that the reaper waits for sessions that somebody holds, before it leaves them out."""

ONE_BY_ONE_SECONDS = 2
"""Time in which one transaction of the reaper ends sessions one by one; far less than its connection may take."""

WAIT_BRIEFLY = f"SAVEPOINT before; SET LOCAL lock_timeout = {HELD_MILLISECONDS}".encode()


def end_sessions(db: Connection, reason: EndReason, which: ColumnElement[bool]) -> list[EndedSession]:
    """End these sessions for the reason, or as expired where they have lapsed. Return the sessions that this ended.

    The caller has locked the accounts in an earlier statement. So every setup that came before is seen here, and no
    later setup takes a slot before the sessions have ended.
    """
    in_order = (
        select(sessions.account_id, sessions.session_id)
        .where(which, sessions.ended_at.is_(None))
        .order_by(sessions.account_id, sessions.session_id)
        .with_for_update(of=PlaybackSession)
    )
    ended = db.execute(
        update(PlaybackSession)
        .where(which, is_among(tuple_(sessions.account_id, sessions.session_id), in_order), sessions.ended_at.is_(None))
        .values(
            ended_at=not_before_start(func.least(func.statement_timestamp(), lapsed_at())),
            end_reason=case((is_lapsed(), constant("expired")), else_=literal(reason)),
        )
        .returning(*ENDED_SESSION)
    )
    return sorted((EndedSession(*row) for row in ended), key=lambda session: (session.account_id, session.started_at))


def find_lapsed(db: Cursor) -> list[SessionKey]:
    """Return at most LAPSED_AT_ONCE sessions that have lapsed and are not ended.

    They come in the order of the table, so that sessions on one page are ended together.
    """
    return db.execute(FIND_LAPSED, {"at_most": LAPSED_AT_ONCE}).fetchall()


def end_lapsed(db: Cursor, lapsed: Sequence[SessionKey]) -> list[ExpiredSession]:
    """End the given sessions that are still lapsed, and return them.

    A session that was kept alive or ended meanwhile stays as it is, so a call may be repeated. A session that somebody
    holds is left to the next run: whoever waits for the reaper must not wait for that holder too.

    One statement for all costs a third of a statement for each. When the one statement would have to wait, it is
    undone, and the sessions are ended one by one, without held sessions. On distributed tables SKIP LOCKED works for a
    single account only. Sessions not reached within ONE_BY_ONE_SECONDS wait for the next run.

    In the rest of the transaction, `lock_timeout` may be HELD_MILLISECONDS.
    """
    keys = {"account_ids": [account_id for account_id, _ in lapsed], "session_ids": [id_ for _, id_ in lapsed]}
    connection_of(db).command(WAIT_BRIEFLY)
    try:
        return [ExpiredSession(*row) for row in db.execute(END_ALL_LAPSED, keys).fetchall()]
    except LockNotAvailable:
        # Through the cursor, so that psycopg notices, and has the server forget the statements prepared since.
        db.execute("ROLLBACK TO before")
    ended: list[ExpiredSession] = []
    give_up_at = time.monotonic() + ONE_BY_ONE_SECONDS
    for account_id, session_id in lapsed:
        if time.monotonic() > give_up_at:
            break
        rows = db.execute(END_LAPSED_UNLESS_HELD, {"account_id": account_id, "session_id": session_id}).fetchall()
        ended += [ExpiredSession(*row) for row in rows]
    return ended
