"""Since when SRM has been able to take keep-alives: an outage must not cost viewers their sessions.

After an outage longer than the timeout every session would look lapsed at once, though its player never went away. So
the processes of the API tick: each second one of them notes the time in the only row of `srm.availability`. A gap is an
outage, be it of the database, of SRM, or of what lies between; while it lasts nothing lapses, and from its end on every
session has its whole timeout again (`playback.is_lapsed`).

The API ticks, and not the reaper: it is the API that takes keep-alives. With the reaper away sessions lapse as ever;
with the API away they do not, however well the reaper is.
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Interval, case, func, select, update

from srm.database import Executor, compiled, constant
from srm.models import Availability

TICK_SECONDS = 1
OUTAGE_SECONDS = 5
"""A longer gap between two ticks is an outage. Shorter ones the timeout has to bear."""

NOW = func.statement_timestamp()


def _ago(seconds: float) -> ColumnElement[object]:
    return NOW - func.cast(constant(f"{seconds} seconds"), Interval)


IS_GAP = Availability.seen_at < _ago(OUTAGE_SECONDS)
# Since when there has been no outage. While there is one: since this moment. Asked once for a statement, not for a row.
AVAILABLE_SINCE = select(case((IS_GAP, NOW), else_=Availability.available_since)).scalar_subquery()
# Of several processes the first one ticks, and the others need not.
TICK = compiled(
    update(Availability)
    .where(Availability.seen_at < _ago(TICK_SECONDS / 2))
    .values(
        seen_at=NOW,
        outage_at=case((IS_GAP, Availability.seen_at), else_=Availability.outage_at),
        available_since=case((IS_GAP, NOW), else_=Availability.available_since),
    )
    .returning(Availability.outage_at, Availability.available_since, Availability.available_since == NOW)
)


class Outage(NamedTuple):
    """When no keep-alive could be taken."""

    began_at: datetime
    over_at: datetime


def tick(db: Executor) -> Outage | None:
    """Note that keep-alives can be taken now; the outage that is over with that, if any.

    DependencyUnavailable when they cannot.
    """
    for began_at, over_at, is_over in db.execute(TICK, {}).fetchall():
        if is_over:
            return Outage(began_at, over_at)
    return None
