"""Since when SRM has been able to take keep-alives: an outage must not cost viewers their sessions.

After an outage longer than the timeout every session would look lapsed at once, though its player never went away. So
the processes of the API tick: each second one of them notes the time in the only row of `srm.availability`. A gap is an
outage, be it of the database, of SRM, or of what lies between; while it lasts nothing lapses, and from its end on every
session has its whole timeout again (`playback.is_lapsed`).

The API ticks, and not the reaper: it is the API that takes keep-alives. With the reaper away sessions lapse as ever;
with the API away they do not, however well the reaper is.
"""

import threading
import time
from typing import NoReturn

import psycopg
import structlog
from sqlalchemy import ColumnElement, Interval, case, func, select, update

from srm.database import Database, compiled, constant
from srm.errors import DependencyUnavailable
from srm.models import Availability

log = structlog.get_logger("srm.availability")

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


def tick(database: Database) -> None:
    """Note that keep-alives can be taken now. DependencyUnavailable when they cannot."""
    for outage_at, available_since, is_over in database.hot.execute(TICK, {}).fetchall():
        if is_over:
            log.warning("outage over", outage_at=outage_at.isoformat(), available_since=available_since.isoformat())


def keep_ticking(database: Database) -> None:
    """Tick as long as this process lives, beside all that it does."""
    threading.Thread(target=_tick_forever, args=(database,), name="tick", daemon=True).start()


def _tick_forever(database: Database) -> NoReturn:
    problem = ""
    while True:
        try:
            tick(database)
            problem = ""
        except DependencyUnavailable:
            pass  # the requests say it
        except psycopg.Error as error:  # the schema is not at head, or a right is missing
            if problem != (problem := str(error).split("\n")[0]):
                log.error("cannot tick: no session will lapse", cause=problem)
        time.sleep(TICK_SECONDS)
