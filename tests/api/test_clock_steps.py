"""The database's clock steps back or ahead: the invariants hold, and no live session is lost.

Source: docs/design.md, "Clock steps", and docs/design.md, Invariant 5. Tests move all instants in the tables instead of
the clock.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from srm.db.database import Database
from srm.db.models import AccountProfile, sessions
from srm.playback import availability, limit_check
from srm.playback.expiry import is_active, lapsed_at
from srm.reaper.runner import Reaper
from tests.support import SETUP, Admin, Factory, error_of, issue_token, rows, session_row, step_clock

TIMEOUT_SECONDS = 30
BEATS_APART = 4
"""Seconds between heartbeats of these tests; less than an outage."""

HOUR = 3600
YEAR = 366 * 24 * HOUR
ENDED = (410, "ERROR", "SRM-0009")
LIMIT_REACHED = (200, "DENIED", "SRM-0006")

Step = Callable[[float], None]


def headers(device: str = "tv") -> dict[str, str]:
    return {"Client-Token": issue_token("a", device)}


def set_up(client: FlaskClient, device: str = "tv") -> str:
    """Set up a session, which has to be admitted; return its id."""
    answer = client.post("/srm/v1/sessions", json=SETUP, headers=headers(device))
    session_id: str = answer.get_json()["successResponse"]["sessionId"]
    return session_id


def keep_alive(client: FlaskClient, session: object) -> Any:
    return client.put(f"/srm/v1/sessions/{session}", headers=headers())


def end_lapsed(database: Database) -> int:
    return Reaper(database, ended_retention_seconds=300, history_retention_days=90).expire()


def heartbeat_row(database: Database) -> Any:
    return rows(database, "SELECT * FROM srm.availability")[0]


def excesses(database: Database) -> list[Any]:
    with database.transaction() as db:
        return list(limit_check.excesses(db))


@pytest.fixture
def step(url: str, outside: Callable[[str], str]) -> Iterator[Step]:
    """Return a function that lets the clock step. The service has been available for a day before the first step."""
    with psycopg.connect(outside(url), autocommit=True) as superuser:
        superuser.execute(
            "UPDATE srm.availability SET seen_at = statement_timestamp(),"
            " available_since = statement_timestamp() - interval '1 day'"
        )
        yield lambda seconds: step_clock(superuser, seconds)


@pytest.fixture
def wait(step: Step, database: Database) -> Step:
    """Return a function that lets time pass with heartbeats."""

    def wait(seconds: float) -> None:
        for _ in range(int(seconds) // BEATS_APART):
            step(BEATS_APART)
            availability.beat(database.hot)

    return wait


@pytest.fixture
def account(factory: Factory) -> str:
    """Account that may have one session, and has been entitled for years."""
    return add_account(factory, max_sessions=1)


def add_account(factory: Factory, **limits: Any) -> str:
    account = factory.account("a", "tv", "phone", products=(), timeout_seconds=TIMEOUT_SECONDS, **limits)
    factory.entitlement(account, "basic", valid_from=datetime(1970, 1, 1, tzinfo=UTC))
    return account


@pytest.fixture
def session(client: FlaskClient, account: str) -> str:
    """Session that was just set up."""
    return set_up(client)


BACK = [-10, -60, -HOUR, -YEAR]
AHEAD = [10, 60, HOUR, 10 * YEAR]


@pytest.mark.parametrize("seconds", BACK + AHEAD)
class TestAnyStep:
    def test_nothing_lapses_before_the_step_is_noticed(
        self, client: FlaskClient, database: Database, session: str, step: Step, seconds: float
    ) -> None:
        step(25)
        step(seconds)
        if seconds < 0:
            step(6)  # No heartbeat comes, as when all processes start again.

        assert end_lapsed(database) == 0
        assert error_of(client.post("/srm/v1/sessions", json=SETUP, headers=headers("phone"))) == LIMIT_REACHED
        assert keep_alive(client, session).status_code == 200

    def test_a_session_that_is_kept_alive_lives_on(
        self, client: FlaskClient, database: Database, session: str, step: Step, wait: Step, seconds: float
    ) -> None:
        wait(24)
        step(seconds)
        availability.beat(database.hot)

        for _ in range(4):
            wait(24)
            assert end_lapsed(database) == 0
            assert keep_alive(client, session).status_code == 200
        assert rows(database, "SELECT count(*) FROM srm.active_sessions")[0][0] == 1

    def test_a_silent_session_lapses_one_timeout_after_the_step_and_never_comes_back(
        self, client: FlaskClient, database: Database, session: str, step: Step, wait: Step, seconds: float
    ) -> None:
        step(seconds)
        availability.beat(database.hot)

        wait(28)
        assert error_of(client.post("/srm/v1/sessions", json=SETUP, headers=headers("phone"))) == LIMIT_REACHED
        wait(4)
        assert rows(database, "SELECT count(*) FROM srm.active_sessions")[0][0] == 0
        wait(48)  # The clock passes the instants from before a step of a minute.
        assert rows(database, "SELECT count(*) FROM srm.active_sessions")[0][0] == 0
        assert error_of(keep_alive(client, session)) == ENDED
        assert set_up(client, "phone")
        assert excesses(database) == []

    def test_a_session_that_was_kept_alive_once_after_the_step_lapses_one_timeout_later(
        self, client: FlaskClient, database: Database, session: str, step: Step, wait: Step, seconds: float
    ) -> None:
        step(seconds)
        availability.beat(database.hot)
        wait(20)
        assert keep_alive(client, session).status_code == 200

        wait(28)
        assert end_lapsed(database) == 0
        wait(4)
        assert end_lapsed(database) == 1

    def test_a_stop_of_the_service_after_the_step_is_an_outage(
        self, client: FlaskClient, database: Database, session: str, step: Step, wait: Step, seconds: float
    ) -> None:
        step(seconds)
        availability.beat(database.hot)
        assert keep_alive(client, session).status_code == 200
        wait(16)

        step(20)
        assert end_lapsed(database) == 0
        availability.beat(database.hot)

        assert end_lapsed(database) == 0
        assert keep_alive(client, session).status_code == 200

    def test_the_limit_check_finds_nothing(
        self, client: FlaskClient, database: Database, session: str, step: Step, wait: Step, seconds: float
    ) -> None:
        wait(8)
        assert client.delete(f"/srm/v1/sessions/{session}", headers=headers()).status_code == 200
        step(seconds)

        for _ in range(3):
            session = set_up(client)
            assert client.delete(f"/srm/v1/sessions/{session}", headers=headers()).status_code == 200
            availability.beat(database.hot)
        set_up(client, "phone")

        assert excesses(database) == []

    @pytest.mark.parametrize("steps", [1, 2])
    def test_the_view_and_is_active_agree(
        self, database: Database, factory: Factory, step: Step, wait: Step, seconds: float, steps: int
    ) -> None:
        for number in range(steps):
            factory.session("a", f"{number}", timeout_seconds=TIMEOUT_SECONDS)
            factory.session("a", f"{number}", silent_for=20, timeout_seconds=TIMEOUT_SECONDS)
            step(seconds)
            availability.beat(database.hot)
            wait(8)
        factory.session("b", "tv", timeout_seconds=None, max_session_seconds=100)

        for _ in range(6):
            with database.transaction() as db:
                by_rule = db.execute(select(sessions.session_id, lapsed_at()).where(is_active())).all()
                by_view = db.exec_driver_sql("SELECT session_id, lapses_at FROM srm.active_sessions").all()
            assert set(map(tuple, by_view)) == set(map(tuple, by_rule))
            wait(12)


@pytest.mark.parametrize("how", ["teardown", "evicted", "replaced", "operator", "expired"])
def test_a_session_that_ends_after_a_step_back_ends_no_earlier_than_it_started(
    client: FlaskClient, factory: Factory, database: Database, account: str, step: Step, wait: Step, how: str
) -> None:
    care = Admin(client, factory.operator("care"))
    rules = {"evicted": {"on_limit": "evict_oldest"}, "replaced": {"same_device": "replace"}}.get(how, {})
    if rules:
        factory.change(AccountProfile, {"profile_id": "profile of a"}, **rules)
    session = set_up(client)
    step(-HOUR)
    availability.beat(database.hot)

    if how == "teardown":
        assert client.delete(f"/srm/v1/sessions/{session}", headers=headers()).status_code == 200
    elif how == "operator":
        assert care("DELETE", f"accounts/a/sessions/{session}").status_code == 200
    elif how == "expired":
        wait(32)
        assert end_lapsed(database) == 1
    successor = set_up(client)

    ended, started = session_row(database, session), session_row(database, successor)
    assert ended.end_reason == how
    assert ended.started_at <= ended.ended_at < started.started_at
    assert excesses(database) == []


def test_after_a_step_back_the_oldest_session_is_still_the_oldest(
    client: FlaskClient, factory: Factory, database: Database, step: Step
) -> None:
    add_account(factory, max_sessions=3)
    factory.change(AccountProfile, {"profile_id": "profile of a"}, on_limit="evict_oldest")
    first = set_up(client)
    step(-HOUR)
    later = [set_up(client) for _ in range(4)]

    ended = rows(database, "SELECT session_id FROM srm.sessions WHERE end_reason = 'evicted' ORDER BY started_at")
    assert [str(row.session_id) for row in ended] == [first, later[0]]


def test_a_clock_that_was_years_ahead_dates_no_session_that_starts_after_it(
    client: FlaskClient, database: Database, session: str, step: Step, wait: Step
) -> None:
    step(10 * YEAR)
    availability.beat(database.hot)
    client.delete(f"/srm/v1/sessions/{session}", headers=headers())
    set_up(client)
    step(-10 * YEAR)
    availability.beat(database.hot)
    wait(40)

    successor = set_up(client, "phone")

    ahead = "SELECT started_at - statement_timestamp() AS by FROM srm.sessions WHERE session_id = :id"
    assert rows(database, ahead, id=successor)[0].by < timedelta(0)
    assert excesses(database) == []


class TestHeartbeat:
    def test_a_heartbeat_from_the_future_is_an_outage_and_tells_the_step(self, database: Database, step: Step) -> None:
        step(-60)
        before = heartbeat_row(database)

        outage = availability.beat(database.hot)

        after = heartbeat_row(database)
        assert outage is not None
        assert 59 < outage.clock_stepped_back_seconds <= 60
        assert outage == (before.seen_at, after.seen_at)
        assert after.available_since == after.seen_at == after.clock_stepped_at < before.seen_at
        assert after.clock_stepped_from == before.seen_at + timedelta(seconds=availability.OUTAGE_SECONDS)

    def test_a_second_step_gets_a_name_of_its_own(self, database: Database, step: Step, wait: Step) -> None:
        step(-HOUR)
        availability.beat(database.hot)
        first = heartbeat_row(database).clock_stepped_from
        wait(8)
        step(-60)
        availability.beat(database.hot)

        moved = timedelta(seconds=60 - 8)
        assert heartbeat_row(database).clock_stepped_from == first + moved + timedelta(microseconds=1)

    @pytest.mark.parametrize("seconds", [-4, -2])
    def test_a_small_step_back_is_no_outage_and_the_heartbeat_goes_on(
        self, database: Database, step: Step, seconds: float
    ) -> None:
        step(seconds)
        before = heartbeat_row(database)

        assert availability.beat(database.hot) is None

        after = heartbeat_row(database)
        assert after.seen_at < before.seen_at
        assert (after.available_since, after.clock_stepped_from) == (before.available_since, None)


def test_an_account_keeps_its_limit_over_many_steps(
    client: FlaskClient, factory: Factory, database: Database, step: Step, wait: Step
) -> None:
    add_account(factory, max_sessions=2)
    factory.change(AccountProfile, {"profile_id": "profile of a"}, on_limit="evict_oldest")
    live: list[UUID | str] = []
    for seconds in (-60, 90, -7, -HOUR, HOUR, -3, 6, -400):
        live = [*live, set_up(client)][-2:]
        step(seconds)
        live = [*live, set_up(client)][-2:]
        availability.beat(database.hot)
        wait(8)
        assert [keep_alive(client, session).status_code for session in live] == [200] * len(live)

    assert excesses(database) == []
