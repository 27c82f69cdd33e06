"""Outages: since when SRM has been able to take keep-alives.

After an outage longer than the timeout every session would look lapsed at once, though no player went away. So each
second one process of the API writes the time into the only row of `srm.availability`, if a keep-alive can be taken
(`srm/serve/heartbeat.py`). A gap is an outage, whether the database, SRM or the network was away, or somebody locked
the table of sessions. While an outage lasts, nothing lapses. From its end on, every session has its whole timeout again
(`srm/playback/expiry.py`).

The API beats, not the reaper, because the API takes the keep-alives. Without a reaper sessions lapse as usual. Without
an API they do not, however well the reaper is.

A heartbeat from the future is a gap too: the database's clock has stepped back. Keep-alives from before the step do not
count after it, because their instants are by the clock before the step.

See docs/design.md, "Outages" and "Clock steps".
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Interval, and_, case, false, func, or_, select, true, update
from sqlalchemy.dialects.postgresql import insert

from srm.db.connection import Executor
from srm.db.models import Availability, PlaybackSession
from srm.db.sql import compiled, constant, reader

BEAT_SECONDS = 1
"""Seconds between two heartbeats."""

OUTAGE_SECONDS = 5
"""Seconds. A longer gap between two heartbeats is an outage; timeouts of sessions must outlast a shorter gap."""

NOW = func.statement_timestamp()

LONGEST_STEP = func.cast(constant("1 day"), Interval)
"""Longest step back of the clock that is made up for in starts and ends of sessions. An instant further ahead is by a
wrong clock, and does not count."""


def _ago(seconds: float) -> ColumnElement[object]:
    return NOW - func.cast(constant(f"{seconds} seconds"), Interval)


def _is_ahead(seconds: float) -> ColumnElement[bool]:
    """Condition that the last heartbeat lies more than `seconds` in the future.

    `infinity` does not count as the future: it stands for a heartbeat that never stops.
    """
    return and_(Availability.seen_at > _ago(-seconds), func.isfinite(Availability.seen_at))


CLOCK_STEPPED_BACK = _is_ahead(OUTAGE_SECONDS)
IS_OUTAGE = or_(Availability.seen_at < _ago(OUTAGE_SECONDS), CLOCK_STEPPED_BACK)
# End of the last outage; during an outage the present instant. A scalar query runs once a statement, not once a row.
AVAILABLE_SINCE = select(case((IS_OUTAGE, NOW), else_=Availability.available_since)).scalar_subquery()
# Latest instant that the clock can have shown before it last stepped back. No two steps have the same one.
CLOCK_STEPPED_FROM = select(Availability.clock_stepped_from).scalar_subquery()
# Keep-alives go on after the last heartbeat, but no longer than it takes to call the gap an outage.
_NEXT_STEPPED_FROM = func.greatest(
    Availability.seen_at - func.cast(constant(f"-{OUTAGE_SECONDS} seconds"), Interval),
    Availability.clock_stepped_from - func.cast(constant("-1 microsecond"), Interval),
)
# Changes no row, but takes the lock on the table that a keep-alive takes: the heartbeat waits when keep-alives would.
LOCK_AS_KEEP_ALIVE = update(PlaybackSession).where(false()).values(last_keep_alive_at=NOW).cte("lock_as_keep_alive")


class Beat(NamedTuple):
    """Row of `srm.availability` after a heartbeat."""

    outage_at: datetime | None
    available_since: datetime
    ended_outage: bool
    """This heartbeat is the first one after an outage."""


# The first process to beat in a second writes; the WHERE spares the others the write. The insert brings back a row that
# a restore or a mistake has removed.
_BEAT = (
    insert(Availability)
    .add_cte(LOCK_AS_KEEP_ALIVE)
    .values(singleton=true(), seen_at=NOW, available_since=NOW)
    .on_conflict_do_update(
        index_elements=[Availability.singleton],
        where=or_(Availability.seen_at < _ago(BEAT_SECONDS / 2), _is_ahead(BEAT_SECONDS)),
        set_={
            "seen_at": NOW,
            "outage_at": case((IS_OUTAGE, Availability.seen_at), else_=Availability.outage_at),
            "available_since": case((IS_OUTAGE, NOW), else_=Availability.available_since),
            "clock_stepped_from": case((CLOCK_STEPPED_BACK, _NEXT_STEPPED_FROM), else_=Availability.clock_stepped_from),
            "clock_stepped_at": case((CLOCK_STEPPED_BACK, NOW), else_=Availability.clock_stepped_at),
        },
    )
    .returning(
        Availability.outage_at,
        Availability.available_since,
        (Availability.available_since == NOW).label("ended_outage"),
    )
)
BEAT = compiled(_BEAT)
read_beat = reader(_BEAT, Beat)


class Outage(NamedTuple):
    """Time in which no keep-alive could be taken; `began_at`: None = not known.

    `began_at` is later than `over_at` when the database's clock stepped back.
    """

    began_at: datetime | None
    over_at: datetime

    @property
    def clock_stepped_back_seconds(self) -> float:
        """Seconds by which the clock stepped back, at least; 0 when it did not."""
        return 0 if self.began_at is None else max(0, (self.began_at - self.over_at).total_seconds())


def beat(db: Executor) -> Outage | None:
    """Record that keep-alives can be taken now. Return the outage that this heartbeat ends, if any.

    Raises DependencyUnavailable when keep-alives cannot be taken.
    """
    row = db.execute(BEAT, {}).fetchone()
    if row is None:  # Another process has just written.
        return None
    beat_ = read_beat(row)
    return Outage(beat_.outage_at, beat_.available_since) if beat_.ended_outage else None
