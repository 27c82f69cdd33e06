"""The heartbeat goes the way of the keep-alives: it stops for each cause that stops keep-alives, and for no other.

docs/design.md, "Outages". Causes that take whole processes: tests/service/test_viewers_survive.py.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

from srm.db.database import HOT_CONNECTIONS, SETUP_CONNECTIONS, Database
from srm.errors import DependencyUnavailable
from srm.playback import group_commit, lanes
from srm.playback.lanes import Lanes
from srm.playback.statements import OwnSession
from tests.support import NO_SESSION, Factory, error_of, free_port, issue_token, rows

LONG_AGO = "UPDATE srm.availability SET seen_at = statement_timestamp() - interval '3 s', available_since = '-infinity'"


@pytest.fixture
def own_lanes(database: Database, superuser: psycopg.Connection) -> Iterator[Lanes]:
    superuser.execute(LONG_AGO)
    own = Lanes(database, unclaimed_teardown=lambda *_: None)
    yield own
    own.close()


@pytest.fixture
def superuser(url: str, outside: Callable[[str], str]) -> Iterator[psycopg.Connection]:
    with psycopg.connect(outside(url), autocommit=True) as connection:
        yield connection


@contextmanager
def locked(superuser: psycopg.Connection, _: Lanes, __: Database) -> Iterator[None]:
    with superuser.transaction():
        superuser.execute("LOCK TABLE srm.sessions IN SHARE MODE")
        yield


@contextmanager
def stuck(_: psycopg.Connection, own: Lanes, __: Database) -> Iterator[None]:
    """Let the flusher wait for something that does not come."""
    is_stuck, may_go_on = threading.Event(), threading.Event()
    commit = own.keep_alives._commit

    def wait(batch: Any) -> Any:
        is_stuck.set()
        may_go_on.wait(30)
        return commit(batch)

    own.keep_alives._commit = wait
    thread = threading.Thread(target=own.keep_alives.submit, args=(OwnSession("a", NO_SESSION, "tv"),))
    thread.start()
    assert is_stuck.wait(10)
    yield
    own.keep_alives._commit = commit
    may_go_on.set()
    thread.join()


@contextmanager
def full(_: psycopg.Connection, __: Lanes, ___: Database) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_commit, "MOST_WAITING", 0)
        yield


@contextmanager
def taken(_: psycopg.Connection, __: Lanes, database: Database) -> Iterator[None]:
    """Take the connection of the lane."""
    with database.keep_alives.request():
        yield


Cause = Callable[[psycopg.Connection, Lanes, Database], AbstractContextManager[None]]


@pytest.mark.parametrize("cause", [locked, stuck, full, taken])
def test_no_heartbeat_while_keep_alives_cannot_be_taken(
    own_lanes: Lanes, database: Database, superuser: psycopg.Connection, cause: Cause
) -> None:
    with cause(superuser, own_lanes, database):
        before = rows(database, "SELECT * FROM srm.availability")
        with pytest.raises(DependencyUnavailable):
            own_lanes.beat()
        assert rows(database, "SELECT * FROM srm.availability") == before

    own_lanes.beat()
    assert rows(database, "SELECT * FROM srm.availability") != before


def test_no_heartbeat_without_the_database() -> None:
    database = Database(f"postgresql://srm@127.0.0.1:{free_port()}/srm", application_name="srm-tests")
    own = Lanes(database, unclaimed_teardown=lambda *_: None)

    with pytest.raises(DependencyUnavailable):
        own.beat()

    own.close()
    database.dispose()


def test_the_heartbeat_goes_on_while_only_other_requests_have_to_wait(
    own_lanes: Lanes, database: Database, superuser: psycopg.Connection, factory: Factory
) -> None:
    """Locks on all accounts, and all connections of other requests taken, stop no keep-alive."""
    factory.account("a")
    before = rows(database, "SELECT seen_at FROM srm.availability")
    with ExitStack() as stack:
        stack.enter_context(superuser.transaction())
        superuser.execute("LOCK TABLE srm.accounts IN ACCESS EXCLUSIVE MODE")
        for pool, size in ((database.hot, HOT_CONNECTIONS), (database.setups, SETUP_CONNECTIONS)):
            for _ in range(size):
                stack.enter_context(pool.request())

        own_lanes.beat()

    assert rows(database, "SELECT seen_at FROM srm.availability") > before


def test_a_heartbeat_says_which_right_is_missing(own_lanes: Lanes, superuser: psycopg.Connection) -> None:
    superuser.execute("REVOKE UPDATE ON srm.availability FROM srm_application")
    try:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            own_lanes.beat()
    finally:
        superuser.execute("GRANT UPDATE ON srm.availability TO srm_application")


def test_a_process_that_cannot_take_keep_alives_is_not_ready(
    app: Any, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, superuser: psycopg.Connection
) -> None:
    own = app.extensions["srm.parts"].lanes
    assert client.get("/readyz").status_code == 200
    own.beat()

    with monkeypatch.context() as patch:
        patch.setattr(lanes, "OUTAGE_SECONDS", 0.01)
        time.sleep(0.02)
        assert error_of(client.get("/readyz")) == (503, "ERROR", "SRM-0010")

    own.beat()
    assert client.get("/readyz").status_code == 200


def test_distributed_tables_take_keep_alives_and_heartbeats_one_by_one(
    app: Any, client: FlaskClient, factory: Factory, superuser: psycopg.Connection, database: Database
) -> None:
    factory.account("a")
    session = factory.session()
    own = app.extensions["srm.parts"].lanes
    superuser.execute("CREATE TABLE public.pg_dist_partition (logicalrelid regclass)")
    try:
        superuser.execute(LONG_AGO)
        for _ in range(2):
            answer = client.put(f"/srm/v1/sessions/{session}", headers={"Client-Token": issue_token("a", "tv")})
            assert answer.status_code == 200
        own.beat()
    finally:
        superuser.execute("DROP TABLE public.pg_dist_partition")

    assert not own.keep_alives.is_open
    assert rows(database, "SELECT FROM srm.availability WHERE seen_at > statement_timestamp() - interval '2 s'")
