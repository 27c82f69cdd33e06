"""Keep-alives at the instant of expiry, while others set up: the limit holds and no lapsed session comes back.

docs/design.md, Invariants 1, 2 and 3, with and without reapers, over HTTP and on direct connections. Red when a setup
only counts the unexpired sessions under the account's lock (docs/design.md, "Why counting fails").
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from srm.db.database import Database
from srm.playback import keep_alive as rules
from srm.playback.model import Principal
from tests import support
from tests.concurrency.conftest import Service
from tests.concurrency.edge import SEEN_ENOUGH, TIMEOUT_SECONDS, Place, Tally, play_on_the_edge, rows_held_up
from tests.concurrency.players import connections, set_up
from tests.support import Factory, wait_until


def make_players(database: Database, *, accounts: int, devices: int, limit: int) -> list[tuple[str, str]]:
    """Make accounts, each with more devices than it may have sessions; return them as (account, device)."""
    factory = Factory(database)
    names = [f"device-{index}" for index in range(devices)]
    for index in range(accounts):
        factory.account(f"account-{index}", *names, max_sessions=limit, timeout_seconds=TIMEOUT_SECONDS)
    return [(f"account-{index}", name) for name in names for index in range(accounts)]


def test_a_setup_counts_a_session_kept_alive_at_the_last_moment(
    own_url: str, own_database: Database, outside: Callable[[str], str]
) -> None:
    factory = Factory(own_database)
    factory.account("a", max_sessions=1, timeout_seconds=30)
    session_id = factory.session("a", silent_for=29, max_sessions=1)

    def keep_alive() -> bool:
        with_long_timeout = "-c statement_timeout=30s -c lock_timeout=30s"
        with psycopg.connect(own_url, options=with_long_timeout) as connection, connection.cursor() as cursor:
            return rules.keep_alive(cursor, Principal("a", "tv"), session_id)

    def set_up_too() -> UUID | None:
        with connections(own_url) as database:
            return set_up(database, "a", "tv")

    def waits(count: int) -> bool:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(support.rows(own_database, waiting)[0][0] == count)

    def has_lapsed() -> bool:
        return not support.rows(own_database, "SELECT FROM srm.active_sessions")

    with ThreadPoolExecutor(2) as threads:
        with psycopg.connect(outside(own_url)) as holder:
            holder.execute("SELECT FROM srm.sessions FOR UPDATE")
            kept = threads.submit(keep_alive)
            wait_until(lambda: waits(1))  # The keep-alive has begun in time and is held up.
            assert not has_lapsed()
            wait_until(has_lapsed)
            admitted = threads.submit(set_up_too)
            wait_until(lambda: waits(2) or admitted.done())
        assert kept.result()
        assert admitted.result() is None
    support.assert_audit_clean(own_url)


def assert_exact(tally: Tally, url: str, database: Database) -> None:
    """Check that the limit held, no session came back, none ended early, and that each could have happened."""
    support.assert_audit_clean(url)
    assert tally.came_back == []
    assert tally.ended_early == []
    ended = "SELECT session_id FROM srm.sessions WHERE ended_at < last_keep_alive_at"
    assert support.rows(database, ended) == []
    wrong = (
        "SELECT session_id FROM srm.sessions WHERE end_reason = 'expired' "
        "AND ended_at <> last_keep_alive_at + make_interval(secs => timeout_seconds)"
    )
    assert support.rows(database, wrong) == []
    print(tally)
    assert tally.least() >= SEEN_ENOUGH


@pytest.mark.parametrize(
    ("reapers", "seconds"),
    [(2, 4), *(pytest.param(reapers, 60, marks=pytest.mark.long(70)) for reapers in (0, 1, 2))],
)
def test_the_limit_is_exact_at_the_instant_of_expiry(
    service: Service, tmp_path: Path, reapers: int, seconds: float
) -> None:
    players = make_players(service.database, accounts=2, devices=24, limit=20)

    with ExitStack() as stack:
        for index in range(reapers):
            stack.enter_context(support.reaper(service.url, tmp_path / f"reaper-{index}.log", interval=0.1))
        stack.enter_context(rows_held_up(service.url))
        place = Place(service.base, service.url)
        tally = play_on_the_edge(place, players, seconds=seconds, processes=2, jitter_seconds=0.004)

    assert_exact(tally, service.url, service.database)


def test_the_limit_is_exact_at_the_instant_of_expiry_on_direct_connections(
    own_url: str, own_database: Database
) -> None:
    players = make_players(own_database, accounts=2, devices=24, limit=20)

    tally = play_on_the_edge(Place(None, own_url), players, seconds=4, processes=2, jitter_seconds=0.004)

    assert_exact(tally, own_url, own_database)
