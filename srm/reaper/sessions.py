"""The reaper's work on sessions: end those that have lapsed, move ended ones to the history."""

import time

import structlog
from sqlalchemy import BigInteger, bindparam, update

from srm.db.models import ReaperState
from srm.db.sql import compiled
from srm.logs import session_ended
from srm.playback import ending, history
from srm.playback.model import SessionKey
from srm.reaper.exclusive import Busy, Exclusive

log = structlog.get_logger("srm.reaper")

ARCHIVE_SECONDS = 1
"""Limit of one call of `archive`. It is shorter than the default interval, so that the next sessions end in time."""

COUNT_EXPIRED = compiled(update(ReaperState).values(expired=ReaperState.expired + bindparam("more", type_=BigInteger)))


def expire(exclusive: Exclusive) -> int:
    """End all lapsed sessions and log each one; return how many. Raises Busy when another reaper is at work.

    After each transaction the reaper rests half as long as the transaction took. So 100,000 sessions that lapse at once
    do not slow down the API.
    """
    total = 0
    while not exclusive.is_stopped:
        with exclusive.request() as db:
            lapsed = ending.find_lapsed(db)
        for start in range(0, len(lapsed), ending.ENDED_AT_ONCE):
            if exclusive.is_stopped:
                break
            began_at = time.monotonic()
            try:
                total += _end(exclusive, lapsed[start : start + ending.ENDED_AT_ONCE])
            except Busy:
                return total  # another reaper has begun during the rest, and goes on with the work
            exclusive.rest((time.monotonic() - began_at) / 2)
        if len(lapsed) < ending.LAPSED_AT_ONCE:
            break
    return total


def _end(exclusive: Exclusive, lapsed: list[SessionKey]) -> int:
    with exclusive.request() as db:
        ended = ending.end_lapsed(db, lapsed)
        db.execute(COUNT_EXPIRED, {"more": len(ended)})
    for session in ended:
        at = session.ended_at.isoformat()
        session_ended(log, session.account_id, session.device_id, session.session_id, "expired", ended_at=at)
    return len(ended)


def archive(exclusive: Exclusive, retention_seconds: int) -> int:
    """Move sessions that ended more than `retention_seconds` ago to the history; return how many.

    Moving is never urgent. This function works a quarter of the time and rests for the remainder. After
    ARCHIVE_SECONDS it leaves the other sessions to the next run, because sessions that lapse meanwhile must end first.
    Raises Busy when another reaper is at work.
    """
    total = 0
    give_up_at = time.monotonic() + ARCHIVE_SECONDS
    while not exclusive.is_stopped:
        began_at = time.monotonic()
        with exclusive.transaction() as db:
            moved = history.archive(db, retention_seconds)
            if moved:
                db.execute(update(ReaperState).values(archived=ReaperState.archived + moved))
        total += moved
        if moved < ending.ENDED_AT_ONCE or time.monotonic() > give_up_at:
            break
        exclusive.rest(3 * (time.monotonic() - began_at))
    return total
