"""Outages: since when SRM has been able to take keep-alives.

After an outage longer than the timeout every session would look lapsed at once, though no player went away. So each
second one process of the API writes the time into the only row of `srm.availability`, if a keep-alive can be taken
(`srm/serve/heartbeat.py`). A gap is an outage, whether the database, SRM or the network was away, or somebody locked
the table of sessions. While an outage lasts, nothing lapses. From its end on, every session has its whole timeout again
(`srm/playback/expiry.py`).

The API beats, not the reaper, because the API takes the keep-alives. Without a reaper sessions lapse as usual. Without
an API they do not, however well the reaper is.

See docs/design.md, "Outages".
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Interval, case, false, func, select, true, update
from sqlalchemy.dialects.postgresql import insert

from srm.db.connection import Executor
from srm.db.models import Availability, PlaybackSession
from srm.db.sql import compiled, constant, reader

BEAT_SECONDS = 1
"""Seconds between two heartbeats."""

OUTAGE_SECONDS = 5
"""Seconds. A longer gap between two heartbeats is an outage; timeouts of sessions must outlast a shorter gap."""

NOW = func.statement_timestamp()


def _ago(seconds: float) -> ColumnElement[object]:
    return NOW - func.cast(constant(f"{seconds} seconds"), Interval)


IS_OUTAGE = Availability.seen_at < _ago(OUTAGE_SECONDS)
# End of the last outage; during an outage the present instant. A scalar query runs once a statement, not once a row.
AVAILABLE_SINCE = select(case((IS_OUTAGE, NOW), else_=Availability.available_since)).scalar_subquery()
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
        where=Availability.seen_at < _ago(BEAT_SECONDS / 2),
        set_={
            "seen_at": NOW,
            "outage_at": case((IS_OUTAGE, Availability.seen_at), else_=Availability.outage_at),
            "available_since": case((IS_OUTAGE, NOW), else_=Availability.available_since),
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
    """Time in which no keep-alive could be taken; `began_at`: None = not known."""

    began_at: datetime | None
    over_at: datetime


def beat(db: Executor) -> Outage | None:
    """Record that keep-alives can be taken now. Return the outage that this heartbeat ends, if any.

    Raises DependencyUnavailable when keep-alives cannot be taken.
    """
    row = db.execute(BEAT, {}).fetchone()
    if row is None:  # Another process has just written.
        return None
    beat_ = read_beat(row)
    return Outage(beat_.outage_at, beat_.available_since) if beat_.ended_outage else None
