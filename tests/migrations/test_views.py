"""The views for people with psql show which sessions are active by the clock, like the service."""

from datetime import timedelta

import pytest

from srm.db.database import Database
from tests.support import Factory, rows


def end(database: Database, session_id: object) -> None:
    with database.transaction() as db:
        db.exec_driver_sql(
            "UPDATE srm.sessions SET ended_at = statement_timestamp(), end_reason = 'teardown' WHERE session_id = %s",
            (session_id,),
        )


def test_an_active_session_is_shown_with_its_device(factory: Factory, database: Database) -> None:
    factory.account("a", "tv")
    session = factory.session("a", "tv", silent_for=10, timeout_seconds=30)

    (shown,) = rows(database, "SELECT * FROM srm.active_sessions")

    assert (shown.account_id, shown.session_id, shown.device_id) == ("a", session, "tv")
    assert (shown.device_name, shown.device_group) == ("tv of a", "tv")
    assert (shown.content_type, shown.content_id) == ("COD", "film")
    assert shown.lapses_at == shown.last_keep_alive_at + timedelta(seconds=30)


def test_a_session_whose_device_is_gone_is_shown(factory: Factory, database: Database) -> None:
    factory.session("a", "sold")

    (shown,) = rows(database, "SELECT * FROM srm.active_sessions")

    assert (shown.device_id, shown.device_name, shown.device_group) == ("sold", None, None)


def test_a_session_that_never_lapses_is_shown(factory: Factory, database: Database) -> None:
    session = factory.session(silent_for=1_000_000, timeout_seconds=None)

    (shown,) = rows(database, "SELECT session_id, lapses_at FROM srm.active_sessions")

    assert shown == (session, None)


@pytest.mark.parametrize(("timeout_seconds", "lapses_in"), [(None, 60), (30, 30), (90, 60)])
def test_lapses_at_is_the_end_of_the_longest_life_if_that_comes_first(
    factory: Factory, database: Database, timeout_seconds: int | None, lapses_in: int
) -> None:
    factory.session(timeout_seconds=timeout_seconds, max_session_seconds=60)

    (shown,) = rows(database, "SELECT * FROM srm.active_sessions")

    assert shown.lapses_at == shown.started_at + timedelta(seconds=lapses_in)


def test_a_session_past_its_longest_life_is_not_shown(factory: Factory, database: Database) -> None:
    session = factory.session(timeout_seconds=None, max_session_seconds=60)
    factory.age(session, 60, "started_at")

    assert rows(database, "SELECT * FROM srm.active_sessions") == []


@pytest.mark.parametrize("silent_for", [30, 31, 100_000])
def test_a_lapsed_session_is_not_shown(factory: Factory, database: Database, silent_for: float) -> None:
    factory.session(silent_for=silent_for, timeout_seconds=30)

    assert rows(database, "SELECT * FROM srm.active_sessions") == []


@pytest.mark.parametrize("timeout_seconds", [30, None])
def test_an_ended_session_is_not_shown(factory: Factory, database: Database, timeout_seconds: int | None) -> None:
    end(database, factory.session(timeout_seconds=timeout_seconds))

    assert rows(database, "SELECT * FROM srm.active_sessions") == []


def test_account_usage_counts_the_active_sessions_of_each_account(factory: Factory, database: Database) -> None:
    factory.account("a", max_sessions=3)
    factory.account("b", max_sessions=None, enabled=False)
    factory.account("c", max_sessions=0)
    factory.session("a")
    factory.session("a", timeout_seconds=None, silent_for=1000)
    factory.session("a", silent_for=31)
    factory.session("a", counts=False)
    end(database, factory.session("a"))
    factory.session("b")
    factory.session("nobody")

    usage = rows(database, "SELECT * FROM srm.account_usage ORDER BY account_id")

    assert [row._asdict() for row in usage] == [
        {
            "account_id": account,
            "enabled": enabled,
            "profile_id": f"profile of {account}",
            "max_sessions": limit,
            "active_sessions": active,
        }
        for account, enabled, limit, active in [("a", True, 3, 2), ("b", False, None, 1), ("c", True, 0, 0)]
    ]
