"""The end of sessions for a reason other than their client's."""

import time
from collections.abc import Sequence

from psycopg.errors import LockNotAvailable
from sqlalchemy import ColumnElement, Connection, case, func, literal, select, tuple_, update

from srm.db.connection import Cursor, connection_of
from srm.db.models import EndReason, PlaybackSession, sessions
from srm.db.sql import constant
from srm.playback.expiry import is_lapsed, lapsed_at
from srm.playback.model import EndedSession, ExpiredSession, Key
from srm.playback.statements import END_ALL_LAPSED, END_FREE_LAPSED, FIND_LAPSED, WAS_ENDED


def end_sessions(db: Connection, reason: EndReason, which: ColumnElement[bool]) -> list[EndedSession]:
    """End the sessions for that reason, or as expired if they turn out to have lapsed; those that were ended.

    The caller holds the locks of their accounts, taken in a statement before: no setup is under way that this one does
    not see, and none that comes later takes a slot before this end.
    """
    in_order = (
        select(sessions.account_id, sessions.session_id)
        .where(which, sessions.ended_at.is_(None))
        .order_by(sessions.account_id, sessions.session_id)
        .with_for_update(of=PlaybackSession)
    )
    ended = db.execute(
        update(PlaybackSession)
        .where(tuple_(sessions.account_id, sessions.session_id).in_(in_order), sessions.ended_at.is_(None))
        .values(
            ended_at=func.least(func.statement_timestamp(), lapsed_at()),
            end_reason=case((is_lapsed(), constant("expired")), else_=literal(reason)),
        )
        .returning(*WAS_ENDED)
    )
    return sorted((EndedSession(*row) for row in ended), key=lambda row: (row.account_id, row.started_at))


LAPSED_AT_ONCE = 100_000
"""Lapsed sessions that the reaper looks for at a time: one scan of the table, and some 30 MB of keys."""

ENDED_AT_ONCE = 100
"""Sessions that the reaper ends or moves in one transaction: short, so that nobody waits for it long."""

HELD_MILLISECONDS = 10
"""How long the reaper waits for sessions that somebody holds, before it leaves them out."""

ONE_BY_ONE_SECONDS = 2
"""How long one transaction of the reaper ends one by one; far less than its connection has patience."""

WAIT_FOR_FEW = f"SAVEPOINT before; SET LOCAL lock_timeout = {HELD_MILLISECONDS}".encode()


def find_lapsed(db: Cursor) -> list[Key]:
    """Account and id of sessions that have lapsed and are not ended yet, at most LAPSED_AT_ONCE.

    As they lie in the table, so that those on one page are ended together.
    """
    return db.execute(FIND_LAPSED, {"at_most": LAPSED_AT_ONCE}).fetchall()


def end_lapsed(db: Cursor, lapsed: Sequence[Key]) -> list[ExpiredSession]:
    """End those of the sessions that are still lapsed, and return them.

    May be repeated and may meet any other change: a session saved or ended meanwhile is left as it is. One that
    somebody holds is left to the next time, so that nobody ever waits for two for long.

    All in one statement costs a third of one each. When that has to wait it is undone, and they are ended one by one,
    past those that are held: SKIP LOCKED is for a single account, where the tables are distributed. What that does not
    get to in ONE_BY_ONE_SECONDS is left, too. The rest of the transaction waits no longer for locks than this does.
    """
    names = {"of_accounts": [account for account, _ in lapsed], "of_sessions": [id_ for _, id_ in lapsed]}
    connection_of(db).command(WAIT_FOR_FEW)
    try:
        return [ExpiredSession(*row) for row in db.execute(END_ALL_LAPSED, names).fetchall()]
    except LockNotAvailable:
        db.execute("ROLLBACK TO before")  # said so that psycopg sees it, and has the server forget what was prepared
    ended: list[ExpiredSession] = []
    give_up_at = time.monotonic() + ONE_BY_ONE_SECONDS
    for account_id, session_id in lapsed:
        if time.monotonic() > give_up_at:
            break
        rows = db.execute(END_FREE_LAPSED, {"of_account": account_id, "of_session": session_id}).fetchall()
        ended += [ExpiredSession(*row) for row in rows]
    return ended
