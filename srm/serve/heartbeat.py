"""The heartbeat of the API: notes each second that keep-alives can be taken (srm.playback.availability)."""

import threading
import time
from typing import NoReturn

import psycopg
import structlog

from srm.errors import DependencyUnavailable, first_line
from srm.playback.availability import BEAT_SECONDS
from srm.playback.lanes import Lanes

log = structlog.get_logger("srm.heartbeat")


def start(lanes: Lanes) -> None:
    """Start the heartbeat in a thread of its own, which in a worker is a greenlet. It ends with the process."""
    threading.Thread(target=_beat_forever, args=(lanes,), name="heartbeat", daemon=True).start()


def _beat_forever(lanes: Lanes) -> NoReturn:
    problem = ""
    while True:
        try:
            outage = lanes.beat()
            problem = ""
            if outage is not None:
                began_at = outage.began_at and outage.began_at.isoformat()
                log.warning("outage over", began_at=began_at, over_at=outage.over_at.isoformat())
                if stepped_back := outage.clock_stepped_back_seconds:
                    log.warning("clock stepped back", seconds=round(stepped_back, 3))
        except DependencyUnavailable:
            pass  # requests meet the outage too, and log it
        except psycopg.Error as error:  # the schema is too old, or the role lacks a right
            if problem != (problem := first_line(error)):
                log.error("cannot tick: no session will lapse", cause=problem)
        time.sleep(BEAT_SECONDS)
