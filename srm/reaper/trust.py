"""Trusted time: how far the reaper believes the database's clock, before it drops history for good.

A clock that jumps ahead by years, as on a host whose clock was set wrong, makes all history look past its retention. So
dropping needs a second source: the time up to which reapers were running, in `reaper_state.trusted_at`. It follows the
clock. After a gap of more than a day, whether the clock jumped or no reaper ran, it catches up by a day for each hour
that a reaper runs.
"""

import time
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import func, select, update

from srm.db.models import ReaperState
from srm.reaper.exclusive import Exclusive

log = structlog.get_logger("srm.reaper")

BELIEVED_AT_ONCE = timedelta(days=1)
"""Longest gap after which the clock is believed at once."""

CATCHES_UP = 24
"""Seconds by which the trusted time catches up in a second."""

LOG_SECONDS = 3600
"""Seconds between two log lines that the clock is not trusted."""


class Times(NamedTuple):
    """The database's clock, and the trusted time of the last run; None = no reaper has run."""

    now: datetime
    trusted_at: datetime | None


class Trust:
    """Trusted time of one reaper process. The seconds that the process runs are its own, by no clock that is set."""

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._logged_at = float("-inf")

    def trusted_at(self, exclusive: Exclusive) -> datetime:
        """Return the time by which history may be dropped, no later than the clock, and note it.

        Raises Busy when another reaper is at work.
        """
        looked_at = time.monotonic()
        with exclusive.transaction() as db:
            # The last run is a source too: the release before does not write the trusted time.
            before = func.least(ReaperState.trusted_at, ReaperState.ran_at)
            query = select(func.statement_timestamp().label("now"), before.label("trusted_at"))
            times = Times(*db.execute(query).one())
            trusted_at = believed(times, looked_at - self._looked_at)
            db.execute(update(ReaperState).values(trusted_at=trusted_at))
        self._looked_at = looked_at
        if trusted_at < times.now and looked_at >= self._logged_at + LOG_SECONDS:
            self._logged_at = looked_at
            log.warning(
                "clock ahead of the reaper: history is kept until it has caught up",
                clock_at=times.now.isoformat(),
                trusted_at=trusted_at.isoformat(),
            )
        return trusted_at


def believed(times: Times, ran_seconds: float) -> datetime:
    """Return the trusted time, of a reaper that has run for so many seconds since the last one."""
    if times.trusted_at is None or times.now - times.trusted_at <= BELIEVED_AT_ONCE:
        return times.now
    return min(times.now, times.trusted_at + CATCHES_UP * timedelta(seconds=ran_seconds))
