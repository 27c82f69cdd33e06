"""Reapers side by side, killed, stopped at work, and at once with setups.

docs/design.md, Invariants 3 and 6: every lapsed session is ended once, as of its lapse; a live one never is; nothing is
done by halves. A setup that meets a reaper gets the slot.
"""

import signal
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import UUID

import psycopg

from srm.db.database import Database
from srm.playback.ending import ENDED_AT_ONCE
from srm.playback.keep_alive import keep_alive
from srm.playback.model import Principal
from srm.reaper.exclusive import Busy
from srm.reaper.runner import Reaper
from tests import support
from tests.concurrency.players import at_once, connections, set_up
from tests.support import Factory, wait_until

INTERVAL_SECONDS = 0.5
SLACK_SECONDS = 3
"""Time to spare for a busy machine."""

ENDED_RIGHTLY = """
    end_reason = 'expired' AND ended_at = last_keep_alive_at + make_interval(secs => timeout_seconds)
"""


def insert(
    database: Database, count: int, *, silent_for: str = "31 + random()", account: str = "i % 100", timeout: int = 30
) -> None:
    """Insert sessions that have been silent for so many seconds. `silent_for` and `account` are SQL expressions."""
    support.rows(
        database,
        f"""
        INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id,
                                  started_at, last_keep_alive_at, timeout_seconds, max_sessions)
        SELECT {account}, gen_random_uuid(), 'tv', 'COD', 'film',
               statement_timestamp() - interval '1 hour',
               statement_timestamp() - make_interval(secs => {silent_for}), {timeout}, NULL
        FROM generate_series(1, {count}) i RETURNING 1
        """,
    )


def count(database: Database, condition: str) -> int:
    """Return the number of sessions that meet the condition."""
    number: int = support.rows(database, f"SELECT count(*) FROM srm.sessions WHERE {condition}")[0][0]
    return number


def test_concurrent_reapers_end_each_lapsed_session_once(own_url: str, own_database: Database, tmp_path: Path) -> None:
    total = 0
    with ExitStack() as stack:
        for name in ("one.log", "two.log"):
            stack.enter_context(support.reaper(own_url, tmp_path / name, interval=0.1))
        for _ in range(10):
            insert(own_database, 300)
            insert(own_database, 50, silent_for="30 - random()")  # These lapse during the test.
            total += 350
            wait_until(lambda: count(own_database, "ended_at IS NULL") <= 50, every=0.01)
        wait_until(lambda: count(own_database, ENDED_RIGHTLY) == total)

    def updates() -> int:
        stats = support.rows(own_database, "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'sessions'")
        return int(stats[0][0])

    wait_until(lambda: updates() >= total)  # Backends report their updates a moment later.
    assert updates() == total


def test_another_reaper_goes_on_where_one_was_killed(own_url: str, own_database: Database, tmp_path: Path) -> None:
    with ExitStack() as stack:

        def start(name: str) -> support.Process:
            process = stack.enter_context(support.reaper(own_url, tmp_path / name, INTERVAL_SECONDS))
            wait_until(lambda: "reaper starts" in process.text())
            return process

        running = [start("first"), start("second")]
        for name in ("third", "fourth"):  # Whichever of the two is at work gets killed once.
            insert(own_database, 3000)
            wait_until(lambda: count(own_database, "ended_at IS NULL") < 3000, every=0.01)
            running.pop(0).stop(signal.SIGKILL)
            wait_until(lambda: count(own_database, "ended_at IS NULL") == 0)
            insert(own_database, 10)
            wait_until(
                lambda: count(own_database, "ended_at IS NULL") == 0, timeout=2 * INTERVAL_SECONDS + SLACK_SECONDS
            )
            running.append(start(name))

    assert count(own_database, ENDED_RIGHTLY) == 2 * 3010
    assert support.rows(own_database, "SELECT expired FROM srm.reaper_state") == [(2 * 3010,)]


def test_a_reaper_that_is_told_to_stop_finishes_its_piece_of_work(
    own_url: str, own_database: Database, tmp_path: Path
) -> None:
    insert(own_database, 20_000)

    with support.reaper(own_url, tmp_path / "reaper.log") as process:
        wait_until(lambda: count(own_database, "ended_at IS NOT NULL") > 0, every=0.01)
        told_at = time.monotonic()
        exit_code = process.stop(signal.SIGTERM)
        took = time.monotonic() - told_at

    assert exit_code == 0, process.text()
    assert "reaper stopped" in process.text()
    assert took < 1 + SLACK_SECONDS
    ended = count(own_database, ENDED_RIGHTLY)
    assert 0 < ended < 20_000
    assert ended % ENDED_AT_ONCE == 0
    assert count(own_database, "ended_at IS NULL AND end_reason IS NULL") == 20_000 - ended


def test_an_idle_reaper_stops_when_it_is_told_to(own_url: str, tmp_path: Path) -> None:
    with support.reaper(own_url, tmp_path / "reaper.log", interval=15) as process:
        wait_until(lambda: "reaper starts" in process.text())

        assert process.stop(signal.SIGTERM) == 0


def test_reapers_leave_live_sessions_alone(own_url: str, own_database: Database, tmp_path: Path) -> None:
    factory = Factory(own_database)
    kept = factory.session("a", "tv", timeout_seconds=30)
    endless = factory.session("a", "tv", timeout_seconds=None, silent_for=3600 * 24 * 365)
    insert(own_database, 1000, silent_for="200 * random()", account="'b'", timeout=300)

    with ExitStack() as stack:
        for name in ("one.log", "two.log"):
            stack.enter_context(support.reaper(own_url, tmp_path / name, interval=0.1))
        for _ in range(20):
            factory.age(kept, 20, "last_keep_alive_at")
            insert(own_database, 1)  # When this one has ended, a run has seen the aged session.
            wait_until(lambda: count(own_database, "account_id <> 'a' AND account_id <> 'b' AND ended_at IS NULL") == 0)
            with psycopg.connect(own_url) as connection, connection.cursor() as cursor:
                assert keep_alive(cursor, Principal("a", "tv"), kept)

    assert count(own_database, "account_id = 'a' AND ended_at IS NULL") == 2
    assert count(own_database, "account_id = 'b' AND ended_at IS NULL") == 1000
    assert support.session_row(own_database, endless).ended_at is None


LIMIT = 5
SETUPS = 8
REAPERS = 2
ROUNDS = 60


def test_setups_that_meet_reapers_get_the_slots(own_url: str, own_database: Database) -> None:
    factory = Factory(own_database)
    profile = factory.profile(max_sessions=LIMIT, timeout_seconds=30)
    accounts = [factory.account(f"a-{index}", profile=profile) for index in range(ROUNDS)]

    def fill(account: str) -> None:
        insert(own_database, LIMIT, account=f"'{account}'", silent_for="30 + random() / 1000")
        insert(own_database, 200)  # So that the reaper has work for a while.

    def work(index: int, barrier: threading.Barrier) -> list[UUID | None]:
        results: list[UUID | None] = []
        with connections(own_url) as database:
            reaper = Reaper(database, ended_retention_seconds=300, history_retention_days=90)
            for account in accounts:
                if index == 0:
                    fill(account)
                barrier.wait()
                if index < SETUPS:
                    results.append(set_up(database, account, "tv"))
                else:
                    with suppress(Busy):
                        reaper.expire()
                barrier.wait()
        return results

    admitted = at_once(SETUPS + REAPERS, work)[:SETUPS]

    per_round = [sum(session is not None for session in sessions) for sessions in zip(*admitted, strict=True)]
    assert per_round == [LIMIT] * ROUNDS
    own_database.dispose()  # A backend reports everything before it ends.
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert support.rows(own_database, deadlocks)[0][0] == 0
    assert count(own_database, f"ended_at IS NOT NULL AND NOT ({ENDED_RIGHTLY})") == 0
    support.assert_audit_clean(own_url)
