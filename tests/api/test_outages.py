"""Outages: while one lasts nothing lapses, and after it every session has its whole timeout again.

Source: docs/design.md, "Outages".
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from srm.db.database import Database
from srm.db.models import sessions
from srm.errors import DependencyUnavailable
from srm.playback import availability
from srm.playback import limit_check as audit
from srm.playback.availability import Outage
from srm.playback.expiry import is_active, lapsed_at
from srm.playback.limit_check import Excess
from srm.reaper.runner import Reaper
from tests.concurrency.players import at_once, connections
from tests.support import SETUP, Admin, Factory, error_of, issue_token, rows, session_row, wait_until

TIMEOUT_SECONDS = 30
LIMIT_REACHED = (200, "DENIED", "SRM-0006")
ENDED = (410, "ERROR", "SRM-0009")


def since(database: Database, available_for: float, seen_ago: float = 0) -> None:
    """Let the last outage have ended, and the last heartbeat have come, so many seconds ago."""
    with database.transaction() as db:
        db.exec_driver_sql(
            "UPDATE srm.availability SET available_since = statement_timestamp() - make_interval(secs => %s), "
            "seen_at = statement_timestamp() - make_interval(secs => %s)",
            (available_for, seen_ago),
        )


def row(database: Database) -> Any:
    return rows(database, "SELECT * FROM srm.availability")[0]


def is_waiting(database: Database) -> bool:
    return bool(rows(database, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


def headers(device: str = "tv") -> dict[str, str]:
    return {"Client-Token": issue_token("a", device)}


def end_lapsed(database: Database) -> int:
    return Reaper(database, ended_retention_seconds=300, history_retention_days=90).expire()


@pytest.fixture
def session(factory: Factory) -> UUID:
    """Session that has been silent for ten minutes, of an account that may have one session."""
    factory.account("a", "tv", "phone", max_sessions=1, timeout_seconds=TIMEOUT_SECONDS)
    return factory.session("a", "tv", silent_for=600, timeout_seconds=TIMEOUT_SECONDS, max_sessions=1)


@pytest.mark.parametrize(
    ("available_for", "seen_ago"),
    [(10, 0), (10, 4), (600, 600), (10_000, 6)],
    ids=["just over", "just over, and the next heartbeat is due", "still on", "only began"],
)
def test_a_session_survives_an_outage_longer_than_its_timeout(
    client: FlaskClient, factory: Factory, database: Database, session: UUID, available_for: float, seen_ago: float
) -> None:
    care = Admin(client, factory.operator("care"))
    since(database, available_for, seen_ago)

    assert end_lapsed(database) == 0
    assert error_of(client.post("/srm/v1/sessions", json=SETUP, headers=headers("phone"))) == LIMIT_REACHED
    assert len(client.get("/srm/v1/sessions", headers=headers()).get_json()["successResponse"]["sessions"]) == 1
    assert len(care.get("accounts/a/sessions")["sessions"]) == 1
    assert care.get("operator/sessions/count")["count"] == 1
    assert len(rows(database, "SELECT 1 FROM srm.active_sessions")) == 1
    assert client.put(f"/srm/v1/sessions/{session}", headers=headers()).status_code == 200
    since(database, 10_000)
    assert client.put(f"/srm/v1/sessions/{session}", headers=headers()).status_code == 200


@pytest.mark.parametrize("seen_ago", [0, 4])
def test_a_session_that_stays_silent_lapses_one_timeout_after_the_outage(
    client: FlaskClient, database: Database, session: UUID, seen_ago: float
) -> None:
    since(database, TIMEOUT_SECONDS + 1, seen_ago)

    assert end_lapsed(database) == 1

    assert session_row(database, session).ended_at == row(database).available_since + timedelta(seconds=TIMEOUT_SECONDS)
    assert error_of(client.put(f"/srm/v1/sessions/{session}", headers=headers())) == ENDED


def test_a_setup_takes_the_slot_of_a_session_that_stayed_silent_after_the_outage(
    client: FlaskClient, database: Database, session: UUID
) -> None:
    since(database, TIMEOUT_SECONDS + 1)

    assert "successResponse" in client.post("/srm/v1/sessions", json=SETUP, headers=headers("phone")).get_json()

    assert session_row(database, session).ended_at == row(database).available_since + timedelta(seconds=TIMEOUT_SECONDS)


def test_a_keep_alive_after_the_outage_restarts_the_timeout(
    client: FlaskClient, factory: Factory, database: Database, session: UUID
) -> None:
    since(database, TIMEOUT_SECONDS + 10)
    factory.age(session, -(600 - 20), "last_keep_alive_at")

    assert end_lapsed(database) == 0
    factory.age(session, 11, "last_keep_alive_at")
    assert end_lapsed(database) == 1
    kept_at = session_row(database, session).last_keep_alive_at
    assert session_row(database, session).ended_at == kept_at + timedelta(seconds=TIMEOUT_SECONDS)


def test_an_outage_does_not_prolong_the_longest_life(factory: Factory, database: Database) -> None:
    old = factory.session(silent_for=600, timeout_seconds=None, max_session_seconds=60)
    since(database, 600, 600)

    assert rows(database, "SELECT 1 FROM srm.active_sessions") == []
    assert end_lapsed(database) == 1
    assert session_row(database, old).ended_at == session_row(database, old).started_at + timedelta(seconds=60)


def test_without_the_row_only_the_last_keep_alive_counts(
    database: Database, url: str, outside: Callable[[str], str], session: UUID
) -> None:
    with psycopg.connect(outside(url)) as somebody:
        somebody.execute("DELETE FROM srm.availability")

    assert rows(database, "SELECT 1 FROM srm.active_sessions") == []
    assert end_lapsed(database) == 1

    availability.beat(database.hot)


@pytest.mark.parametrize("available_for", [5, 29, 31, 100])
@pytest.mark.parametrize("seen_ago", [0, 4, 6, 100])
def test_the_view_and_is_active_agree(
    factory: Factory, database: Database, available_for: float, seen_ago: float
) -> None:
    for silent_for in (1, 29, 31, 99, 101):
        factory.session("a", "tv", silent_for=silent_for, timeout_seconds=TIMEOUT_SECONDS)
        factory.session("b", "tv", silent_for=silent_for, timeout_seconds=None, max_session_seconds=100)
    ended_at = datetime.now(UTC)
    factory.session("a", "tv", silent_for=1, ended_at=ended_at, end_reason="operator")
    factory.session("b", "tv", timeout_seconds=None, ended_at=ended_at, end_reason="teardown")
    since(database, available_for, seen_ago)

    with database.transaction() as db:
        by_rule = db.execute(select(sessions.session_id, lapsed_at()).where(is_active())).all()
        by_view = db.exec_driver_sql("SELECT session_id, lapses_at FROM srm.active_sessions").all()

    # During an outage the instant of the lapse moves on with the time of each statement.
    moves = timedelta(seconds=1 if seen_ago > availability.OUTAGE_SECONDS else 0)
    expected: dict[UUID, datetime] = dict(map(tuple, by_rule))
    shown: dict[UUID, datetime] = dict(map(tuple, by_view))
    assert shown.keys() == expected.keys()
    assert all(timedelta(0) <= shown[session] - at <= moves for session, at in expected.items())


def test_the_limit_check_counts_a_session_until_its_lapse_after_the_outage(
    factory: Factory, database: Database
) -> None:
    factory.session("a", "tv", silent_for=600, timeout_seconds=TIMEOUT_SECONDS, max_sessions=1)
    factory.session("a", "phone", silent_for=35, timeout_seconds=TIMEOUT_SECONDS, max_sessions=1)

    with database.transaction() as db:
        assert audit.excesses(db) == []
    since(database, 40)
    with database.transaction() as db:
        (excess,) = audit.excesses(db)

    assert excess == Excess("a", excess.at, 2, 1)


@pytest.mark.parametrize("mode", ["SHARE", "ACCESS EXCLUSIVE"])
def test_the_heartbeat_stops_while_a_lock_blocks_keep_alives(
    database: Database, url: str, outside: Callable[[str], str], mode: str
) -> None:
    """CREATE INDEX and VACUUM FULL lock like this: the database is up, but no keep-alive can be written."""
    api = Database(url, application_name="srm-tests")  # with the timeouts of a request
    for _ in range(10):
        availability.beat(api.hot)  # So that the server keeps a plan made before the lock.
    since(database, 600, 2)
    before = row(database)

    with psycopg.connect(outside(url)) as somebody:
        somebody.execute(f"LOCK TABLE srm.sessions IN {mode} MODE")
        with pytest.raises(DependencyUnavailable):
            availability.beat(api.hot)
    assert row(database) == before

    availability.beat(api.hot)
    api.dispose()
    assert row(database).seen_at > before.seen_at


class TestHeartbeat:
    def test_a_heartbeat_brings_a_missing_row_back(
        self, database: Database, url: str, outside: Callable[[str], str]
    ) -> None:
        """A restore or a mistake may remove the row; the role of the application may not."""
        with psycopg.connect(outside(url)) as somebody:
            somebody.execute("DELETE FROM srm.availability")

        outage = availability.beat(database.hot)

        assert outage == (None, row(database).available_since)
        assert row(database).seen_at == row(database).available_since

    def test_a_heartbeat_notes_the_time(self, database: Database) -> None:
        since(database, 600, 2)
        before = row(database)

        availability.beat(database.hot)

        assert row(database).seen_at > before.seen_at + timedelta(seconds=1)
        assert (row(database).available_since, row(database).outage_at) == (before.available_since, None)

    def test_a_short_gap_is_no_outage(self, database: Database) -> None:
        since(database, 600, availability.OUTAGE_SECONDS - 1)
        before = row(database)

        assert availability.beat(database.hot) is None

        assert row(database).available_since == before.available_since

    def test_a_long_gap_is_an_outage_that_the_heartbeat_ends(self, database: Database) -> None:
        since(database, 600, availability.OUTAGE_SECONDS + 1)
        before = row(database)

        outage = availability.beat(database.hot)

        after = row(database)
        assert after.available_since == after.seen_at > before.seen_at + timedelta(seconds=availability.OUTAGE_SECONDS)
        assert after.outage_at == before.seen_at
        assert outage == (before.seen_at, after.seen_at)

    def test_the_first_of_many_heartbeats_ends_the_outage(self, database: Database, url: str) -> None:
        since(database, 600, 60)
        before = row(database)

        def work(_: int, barrier: threading.Barrier) -> list[Outage | None]:
            with connections(url) as own:
                barrier.wait()
                return [availability.beat(own.hot) for _ in range(20)]

        seen = [outage for found in at_once(8, work) for outage in found if outage is not None]

        assert [outage.began_at for outage in seen] == [before.seen_at]
        assert row(database).outage_at == before.seen_at

    def test_the_other_heartbeats_write_nothing(self, database: Database) -> None:
        since(database, 600, 2)
        availability.beat(database.hot)
        before = rows(database, "SELECT xmin FROM srm.availability")

        availability.beat(database.hot)

        assert rows(database, "SELECT xmin FROM srm.availability") == before

    def test_a_heartbeat_that_waited_for_another_writes_nothing(self, database: Database, url: str) -> None:
        seen: list[Outage | None] = []

        def beat() -> None:
            with connections(url) as own:
                seen.append(availability.beat(own.hot))

        since(database, 600, 60)
        with psycopg.connect(url) as other:
            other.execute("UPDATE srm.availability SET seen_at = statement_timestamp()")
            thread = threading.Thread(target=beat)
            thread.start()
            wait_until(lambda: is_waiting(database))
            other.commit()
            thread.join(10)

        assert seen == [None]
        assert row(database).available_since < row(database).seen_at - timedelta(seconds=500)
