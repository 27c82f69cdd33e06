"""Statements of a batch: which sessions they change, and which requests they answer.

docs/design.md, "Group commit". Red when a batch mixes up its entries, answers for a held or lapsed session, or waits.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func
from werkzeug.test import TestResponse

from srm.db.connection import MOST_PER_ACCOUNT
from srm.db.database import DURABLE_CONNECTIONS, Database
from srm.db.models import PlaybackSession
from srm.playback.keep_alive import keep_all_alive
from srm.playback.statements import OwnSession
from srm.playback.teardown import tear_all_down
from tests.support import NO_SESSION, Factory, error_of, issue_token, rows, session_row, wait_until

BATCHES = [keep_all_alive, tear_all_down]
Batch = Callable[..., list[bool | None]]


@pytest.fixture
def somebody(url: str, outside: Callable[[str], str]) -> Iterator[psycopg.Connection]:
    """Connection of somebody who holds rows until the test rolls back."""
    with psycopg.connect(outside(url)) as connection:
        yield connection


def own(session: UUID | str, account: str = "a", device: str = "tv") -> OwnSession:
    return OwnSession(account, str(session), device)


def is_changed(database: Database, session: UUID) -> bool:
    """True when the session, which the test made silent for 20 s, was kept alive or torn down."""
    sql = (
        "SELECT end_reason = 'teardown' OR (ended_at IS NULL AND statement_timestamp() - last_keep_alive_at "
        "< interval '10 s') FROM srm.sessions WHERE session_id = :id"
    )
    return bool(rows(database, sql, id=session)[0][0])


@pytest.mark.parametrize("batch", BATCHES)
def test_each_entry_of_a_batch_gets_its_own_answer(factory: Factory, database: Database, batch: Batch) -> None:
    factory.account("a", "tv", "phone")
    factory.account("b", "tv")
    live = [factory.session("a", "tv", silent_for=20) for _ in range(3)]
    of_b = factory.session("b", "tv", silent_for=20)
    of_others = [factory.session("a", "phone", silent_for=20), factory.session("b", "tv", silent_for=20)]
    lapsed = factory.session("a", "tv", silent_for=31)
    too_old = factory.session("a", "tv", silent_for=20, max_session_seconds=19)
    ended = factory.session("a", "tv", silent_for=20)
    factory.change(PlaybackSession, {"session_id": ended}, ended_at=func.statement_timestamp(), end_reason="operator")
    entries = {
        own(live[0]): True,
        own(NO_SESSION): None,
        own(of_others[0]): None,  # of another device
        own(lapsed): None,
        own(live[1]): True,
        own(of_others[1]): None,  # of another account
        own(too_old): None,
        own(of_b, "b"): True,
        own(ended): None,
        own(live[2], device="phone"): None,
        own(live[2]): True,
    }

    assert batch(database.hot, list(entries)) == list(entries.values())

    assert [is_changed(database, session) for session in (*live, of_b)] == [True] * 4
    for session in (*of_others, lapsed, too_old):
        row = session_row(database, session)
        assert (is_changed(database, session), row.ended_at) == (False, None)
    assert session_row(database, ended).end_reason == "operator"


def test_a_session_that_is_kept_alive_twice_in_a_batch_is_answered_twice(factory: Factory, database: Database) -> None:
    factory.account("a")
    session = own(factory.session())

    assert keep_all_alive(database.hot, [session, session]) == [True, True]


def test_a_session_that_is_torn_down_twice_in_a_batch_is_torn_down_once(factory: Factory, database: Database) -> None:
    factory.account("a")
    session = own(factory.session())

    assert tear_all_down(database.durable, [session, session]) == [True, None]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_held_session_delays_no_other_request_of_the_batch(
    factory: Factory, database: Database, somebody: psycopg.Connection, batch: Batch
) -> None:
    factory.account("a")
    held, free = factory.session(silent_for=20), factory.session(silent_for=20)
    somebody.execute("SELECT FROM srm.sessions WHERE session_id = %s FOR UPDATE", [held])

    assert batch(database.hot, [own(held), own(free)]) == [None, True]

    assert [is_changed(database, session) for session in (held, free)] == [False, True]


@pytest.mark.parametrize(("method", "reason"), [("PUT", None), ("DELETE", "teardown")])
def test_a_held_session_is_answered_the_ordinary_way(
    client: FlaskClient, factory: Factory, database: Database, somebody: psycopg.Connection, method: str, reason: str
) -> None:
    factory.account("a")
    session, other = factory.session(silent_for=20), factory.session()
    token = {"Client-Token": issue_token("a", "tv")}
    assert client.put(f"/srm/v1/sessions/{other}", headers=token).status_code == 200  # Now the token is known.
    somebody.execute("SELECT FROM srm.sessions WHERE session_id = %s FOR UPDATE", [session])

    held = client.open(f"/srm/v1/sessions/{session}", method=method, headers=token)
    somebody.rollback()
    free = client.open(f"/srm/v1/sessions/{session}", method=method, headers=token)

    assert error_of(held) == (503, "ERROR", "SRM-0010")
    assert free.status_code == 200
    assert session_row(database, session).end_reason == reason


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_held_lapsed_sessions_of_one_account_take_no_more_connections_than_its_share(
    app: Flask, factory: Factory, somebody: psycopg.Connection, method: str
) -> None:
    for account in ("a", "b"):
        factory.account(account)
    lapsed = [factory.session("a", silent_for=31) for _ in range(DURABLE_CONNECTIONS)]
    somebody.execute("SELECT FROM srm.sessions FOR UPDATE")

    def send(account: str, session: UUID | str) -> TestResponse:
        headers = {"Client-Token": issue_token(account, "tv")}
        return app.test_client().open(f"/srm/v1/sessions/{session}", method=method, headers=headers)

    with ThreadPoolExecutor(len(lapsed)) as threads:
        waiting = [threads.submit(send, "a", session) for session in lapsed]
        wait_until(lambda: count_waiting(somebody) >= MOST_PER_ACCOUNT)
        other = send("b", NO_SESSION)
        assert count_waiting(somebody) == MOST_PER_ACCOUNT

        assert error_of(other) == (404, "ERROR", "SRM-0008")
        assert {request.result().status_code for request in waiting} == {503}


def count_waiting(db: psycopg.Connection) -> int:
    """Return how many connections wait for a lock."""
    ((count,),) = db.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchall()
    return int(count)


def test_keep_alives_of_a_batch_are_heap_only_updates(
    factory: Factory, database: Database, somebody: psycopg.Connection
) -> None:
    factory.account("a")
    sessions = [own(factory.session(silent_for=20)) for _ in range(20)]
    counts = (
        "SELECT pg_stat_get_xact_tuples_updated(oid), pg_stat_get_xact_tuples_hot_updated(oid) "
        "FROM (SELECT 'srm.sessions'::regclass AS oid) t"
    )

    keep_all_alive(somebody.cursor(), sessions)

    assert somebody.execute(counts).fetchone() == (20, 20)
