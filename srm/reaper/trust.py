"""Trusted time: how far the reaper believes the database's clock, before it drops history for good.

When the clock jumps ahead by years, as on a host whose clock was set wrong, all history looks past its retention. So
dropping needs a second source: the trusted time, in `reaper_state.trusted_at`. It follows the clock while reapers run.
When the clock is more than a day ahead, because it jumped or because no reaper ran, the trusted time catches up by a
day for each hour that a reaper runs.
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
"""Longest lead of the clock over the trusted time at which the clock is trusted at once."""

CATCHES_UP = 24
"""Seconds by which the trusted time catches up in each second that a reaper runs."""

LOG_SECONDS = 3600
"""Seconds between two log lines about a clock that is not trusted."""


class Times(NamedTuple):
    """The database's clock, and the trusted time of the last run; None = no reaper has run."""

    now: datetime
    trusted_at: datetime | None


class Trust:
    """Trusted time, as one reaper process keeps it. The process counts its seconds by a clock that nobody can set."""

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._logged_at = float("-inf")

    def trusted_at(self, exclusive: Exclusive) -> datetime:
        """Return the time by which history may be dropped, no later than the clock, and note it.

        Raises Busy when another reaper is at work.
        """
        looked_at = time.monotonic()
        with exclusive.transaction() as db:
            # The time of the last run counts too, because version 0.1.0 writes no trusted time.
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
    """Return the new trusted time. `ran_seconds`: time that the reaper has run since the last one."""
    if times.trusted_at is None or times.now - times.trusted_at <= BELIEVED_AT_ONCE:
        return times.now
    return min(times.now, times.trusted_at + CATCHES_UP * timedelta(seconds=ran_seconds))
