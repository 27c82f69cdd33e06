"""Ticks as long as a process of the API lives, beside all that it does: see `srm.availability`."""

import threading
import time
from typing import NoReturn

import psycopg
import structlog

from srm.db.database import Database
from srm.errors import DependencyUnavailable, first_line
from srm.playback import availability

log = structlog.get_logger("srm.ticker")


def start(database: Database) -> None:
    """Tick from now on."""
    threading.Thread(target=_tick_forever, args=(database,), name="ticker", daemon=True).start()


def _tick_forever(database: Database) -> NoReturn:
    problem = ""
    while True:
        try:
            outage = availability.tick(database.hot)
            problem = ""
            if outage is not None:
                began_at = outage.began_at and outage.began_at.isoformat()
                log.warning("outage over", began_at=began_at, over_at=outage.over_at.isoformat())
        except DependencyUnavailable:
            pass  # the requests say it
        except psycopg.Error as error:  # the schema is behind, or a right is missing
            if problem != (problem := first_line(error)):
                log.error("cannot tick: no session will lapse", cause=problem)
        time.sleep(availability.TICK_SECONDS)
