"""A clock that jumps ahead drops no history: the reaper needs a second source to drop by age."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from srm.db.database import Database
from srm.reaper.partitions import _months_after
from srm.reaper.trust import Times, believed
from tests.reaper.data import RETENTION_DAYS, add_to, count, end_at, partitions, reaper_of, this_month
from tests.support import Factory, rows

NOW = datetime(2026, 11, 26, tzinfo=UTC)
YEARS = timedelta(days=3660)


@pytest.fixture
def jump(own: Database, outside: Callable[[str], str], own_url: str) -> Callable[[timedelta], None]:
    """Return a function that lets the clock jump ahead: it moves the instants of `reaper_state` back."""

    def jump(ahead: timedelta) -> None:
        with psycopg.connect(outside(own_url)) as superuser:
            superuser.execute(
                "UPDATE srm.reaper_state SET ran_at = ran_at - %(by)s, trusted_at = trusted_at - %(by)s", {"by": ahead}
            )

    return jump


@pytest.fixture
def old(own: Database) -> datetime:
    """Month that is older than RETENTION_DAYS and has an ended session and a denial."""
    with own.transaction() as db:
        db.exec_driver_sql("UPDATE srm.reaper_state SET ran_at = NULL, trusted_at = NULL")
    month = _months_after(this_month(own), -6)
    end_at(Factory(own), month)
    add_to(own, "denials", month)
    return month


@pytest.mark.parametrize("runs", [1, 3])
def test_a_clock_that_jumps_ahead_by_years_drops_no_history(
    own: Database, old: datetime, jump: Callable[[timedelta], None], log: list[Any], runs: int
) -> None:
    reaper_of(own, 3660).run()
    before = partitions(own), partitions(own, "denials")
    jump(YEARS)

    for _ in range(runs):
        reaper_of(own, RETENTION_DAYS).run()

    assert (partitions(own), partitions(own, "denials")) == before
    assert (count(own, "session_history"), count(own, "denials")) == (1, 1)
    (line,) = {line["event"] for line in log if line["log_level"] == "warning"}
    assert line == "clock ahead of the reaper: history is kept until it has caught up"
    state = rows(own, "SELECT statement_timestamp() - trusted_at AS behind, failure FROM srm.reaper_state")[0]
    assert (state.behind > YEARS - timedelta(hours=1), state.failure) == (True, None)


def test_history_is_dropped_once_the_clock_is_believed_and_the_log_says_it_first(
    own: Database, old: datetime, jump: Callable[[timedelta], None], log: list[Any]
) -> None:
    reaper_of(own, 3660).run()
    jump(timedelta(hours=20))
    before = partitions(own)

    reaper_of(own, RETENTION_DAYS).run()

    gone = set(before) - set(partitions(own))
    assert gone == {f"session_history_{old:%Y_%m}"}
    events = [(line["event"], line.get("partition") or line.get("dropped")) for line in log]
    said = events.index(("dropping partition", next(iter(gone))))
    assert said < next(at for at, (event, _) in enumerate(events) if event == "reaped" and at > said)


@pytest.mark.parametrize(
    ("behind", "ran_seconds", "expected"),
    [
        (None, 0, timedelta(0)),
        (timedelta(0), 0, timedelta(0)),
        (timedelta(days=1), 0, timedelta(0)),
        (timedelta(days=30), 0, timedelta(days=30)),
        (timedelta(days=30), 3600, timedelta(days=29)),
        (timedelta(days=2), 100 * 3600, timedelta(0)),
        (-YEARS, 0, timedelta(0)),
    ],
    ids=["first run", "at once", "a day", "a month", "a month and an hour", "caught up", "stepped back"],
)
def test_the_trusted_time_follows_the_clock_at_once_or_by_a_day_an_hour(
    behind: timedelta | None, ran_seconds: float, expected: timedelta
) -> None:
    times = Times(NOW, None if behind is None else NOW - behind)

    assert believed(times, ran_seconds) == NOW - expected
