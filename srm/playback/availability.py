"""Since when SRM has been able to take keep-alives: an outage must not cost viewers their sessions.

After an outage longer than the timeout every session would look lapsed at once, though its player never went away. So
the processes of the API tick: each second one of them notes the time in the only row of `srm.availability`, once it has
what a keep-alive needs. A gap is an outage, be it of the database, of SRM, of what lies between, or that somebody has
locked the table of sessions; while it lasts nothing lapses, and from its end on every session has its whole timeout
again (`playback.is_lapsed`).

The API ticks, and not the reaper: it is the API that takes keep-alives. With the reaper away sessions lapse as ever;
with the API away they do not, however well the reaper is.
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Interval, case, false, func, select, true, update
from sqlalchemy.dialects.postgresql import insert

from srm.db.connection import Executor
from srm.db.models import Availability, PlaybackSession
from srm.db.sql import compiled, constant

TICK_SECONDS = 1
OUTAGE_SECONDS = 5
"""A longer gap between two ticks is an outage. Shorter ones the timeout has to bear."""

NOW = func.statement_timestamp()


def _ago(seconds: float) -> ColumnElement[object]:
    return NOW - func.cast(constant(f"{seconds} seconds"), Interval)


IS_GAP = Availability.seen_at < _ago(OUTAGE_SECONDS)
# Since when there has been no outage. While there is one: since this moment. Asked once for a statement, not for a row.
AVAILABLE_SINCE = select(case((IS_GAP, NOW), else_=Availability.available_since)).scalar_subquery()
# Takes the lock on the table that a keep-alive takes, and nothing else: while somebody keeps that from all, it waits.
ABLE = update(PlaybackSession).where(false()).values(last_keep_alive_at=NOW).cte("able")
# Of several processes the first one ticks, and the others need not. A row that is gone, by a restore or a mistake, is
# there again.
TICK = compiled(
    insert(Availability)
    .add_cte(ABLE)
    .values(singleton=true(), seen_at=NOW, available_since=NOW)
    .on_conflict_do_update(
        index_elements=[Availability.singleton],
        where=Availability.seen_at < _ago(TICK_SECONDS / 2),
        set_={
            "seen_at": NOW,
            "outage_at": case((IS_GAP, Availability.seen_at), else_=Availability.outage_at),
            "available_since": case((IS_GAP, NOW), else_=Availability.available_since),
        },
    )
    .returning(Availability.outage_at, Availability.available_since, Availability.available_since == NOW)
)


class Outage(NamedTuple):
    """When no keep-alive could be taken; `began_at`: None = not known."""

    began_at: datetime | None
    over_at: datetime


def tick(db: Executor) -> Outage | None:
    """Note that keep-alives can be taken now; the outage that is over with that, if any.

    DependencyUnavailable when they cannot.
    """
    for began_at, over_at, is_over in db.execute(TICK, {}).fetchall():
        if is_over:
            return Outage(began_at, over_at)
    return None
