"""Setups of a batch: the batch decides as a setup alone would be decided, and leaves the rest to the ordinary way.

docs/design.md, Invariant 1 and "Group commit". Red when a batch reads before it locks, takes two setups of an account,
leaves a lapsed session out of the count, or mixes up its entries.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient

from srm.api.parts import parts_of
from srm.db.database import Database
from srm.db.models import AccountProfile
from srm.deadline import DEADLINE
from srm.errors import (
    ContentAccessDenied,
    DependencyUnavailable,
    DeviceNotEnabled,
    SessionLimitReached,
    SrmError,
)
from srm.playback.model import Admission, ContentRef, Principal, Result
from srm.playback.setup import SetupRequest, set_up
from srm.playback.setup_batch import is_plain, set_all_up
from srm.playback.statements import INSERT_SESSIONS, INSERTED, LOCK_ACCOUNTS
from tests.support import SETUP, Factory, issue_token, rows, session_count, wait_until

FILM = ContentRef("COD", "film")


def asked(account: str, device: str = "tv", content: ContentRef = FILM, **more: Any) -> SetupRequest:
    return SetupRequest(Principal(account, device), content, **more)


def error_in(result: Result[Admission] | None) -> type[SrmError] | None:
    assert result is not None
    return type(result.outcome) if isinstance(result.outcome, SrmError) else None


class Watched:
    """Pool whose cursors call a function before or after a statement."""

    def __init__(self, database: Database, statement: str, call: Callable[[Any], None], *, after: bool = False) -> None:
        self._database = database
        self._statement = statement
        self._call = call
        self._after = after

    @contextmanager
    def request(self) -> Iterator[Any]:
        with self._database.setup_batches.request() as cursor:
            self._cursor = cursor
            yield self

    def execute(self, statement: str, params: dict[str, object]) -> Any:
        if statement == self._statement and not self._after:
            self._call(self._cursor)
        result = self._cursor.execute(statement, params)
        if statement == self._statement and self._after:
            self._call(self._cursor)
        return result

    @property
    def connection(self) -> Any:
        return self._cursor.connection


def test_each_setup_of_a_batch_gets_its_own_result(factory: Factory, database: Database) -> None:
    for account in ("a", "b", "no device", "no content", "lapsed", "disabled"):
        factory.account(account, enabled=account != "disabled")
    factory.account("full", max_sessions=1)
    factory.session("full")
    factory.account("evicts", max_sessions=1)
    factory.change(AccountProfile, {"profile_id": "profile of evicts"}, on_limit="evict_oldest")
    evicted = factory.session("evicts")
    lapsed = factory.session("lapsed", silent_for=31)
    batch = [
        asked("b"),
        asked("full"),
        asked("no device", "phone"),
        asked("unknown"),
        asked("lapsed"),
        asked("evicts"),
        asked("no content", content=ContentRef("COD", "another")),
        asked("disabled"),
        asked("a", address="192.0.2.1"),
        asked("b"),
    ]

    results = set_all_up(database.setup_batches, batch)

    decided = {0: None, 1: SessionLimitReached, 2: DeviceNotEnabled, 6: ContentAccessDenied, 8: None}
    assert {number for number, result in enumerate(results) if result is not None} == set(decided)
    assert {number: error_in(results[number]) for number in decided} == decided
    admitted = {
        str(result.outcome.session_id)
        for result in results
        if result is not None and isinstance(result.outcome, Admission)
    }
    live = rows(
        database, "SELECT account_id, session_id::text, address FROM srm.sessions WHERE account_id IN ('a', 'b')"
    )
    assert [(row.account_id, row.address) for row in sorted(live)] == [("a", "192.0.2.1"), ("b", None)]
    assert {row.session_id for row in live} == admitted
    for number, account in ((0, "b"), (8, "a")):
        ((session_id,),) = rows(database, "SELECT session_id FROM srm.sessions WHERE account_id = :a", a=account)
        result = results[number]
        assert result is not None
        assert isinstance(result.outcome, Admission)
        assert (result.outcome.session_id, result.outcome.timeout_seconds) == (session_id, 30)
    for session in (evicted, lapsed):
        assert rows(database, "SELECT ended_at FROM srm.sessions WHERE session_id = :id", id=session) == [(None,)]


def test_a_session_of_a_batch_has_the_row_of_a_session_set_up_alone(factory: Factory, database: Database) -> None:
    factory.content("race", groups=("cars", "sports"))
    factory.product("races", ("COD", "race"))
    factory.profile("p", max_sessions=5)
    factory.change(
        AccountProfile,
        {"profile_id": "p"},
        max_sessions_per_content=4,
        max_ip_addresses=3,
        max_sessions_per_ip=4,
        max_session_seconds=500,
    )
    for account in ("alone", "in a batch"):
        factory.account(account, profile="p", products=("races",))
    content = ContentRef("COD", "race")
    with database.setups.request() as db:
        set_up(db, asked("alone", content=content, address="2001:db8::/64"))

    set_all_up(database.setup_batches, [asked("in a batch", content=content, address="2001:db8::/64")])

    columns = ", ".join(name for name in INSERTED if name not in ("account_id", "session_id"))
    one, other = rows(database, f"SELECT {columns}, end_reason, ended_at, ended_by FROM srm.sessions")
    assert one == other
    assert one.content_groups == ["cars", "sports"]


def test_two_setups_of_an_account_in_a_batch_take_one_slot(factory: Factory, database: Database) -> None:
    factory.account("a", max_sessions=1)

    first, second = set_all_up(database.setup_batches, [asked("a"), asked("a")])

    assert error_in(first) is None
    assert second is None
    assert session_count(database) == 1


def test_a_batch_sees_what_was_committed_before_it_had_the_lock(factory: Factory, database: Database) -> None:
    factory.account("a", max_sessions=1)

    def take_the_slot(_: Any) -> None:
        with database.setups.request() as db:
            set_up(db, asked("a"))

    pool: Any = Watched(database, LOCK_ACCOUNTS, take_the_slot)
    (result,) = set_all_up(pool, [asked("a")])

    assert error_in(result) is SessionLimitReached
    assert session_count(database) == 1


def test_a_setup_waits_until_the_batch_of_its_account_is_committed(factory: Factory, database: Database) -> None:
    factory.account("a", max_sessions=1)

    def is_held(_: Any) -> None:
        with database.transaction() as db:
            free = rows(db, "SELECT FROM srm.accounts FOR NO KEY UPDATE SKIP LOCKED")
        assert free == []

    pool: Any = Watched(database, INSERT_SESSIONS, is_held, after=True)
    (result,) = set_all_up(pool, [asked("a")])

    assert error_in(result) is None


def test_a_held_account_delays_no_other_one(
    factory: Factory, database: Database, url: str, outside: Callable[[str], str]
) -> None:
    factory.account("held")
    factory.account("free")
    with psycopg.connect(outside(url)) as somebody:
        somebody.execute("SELECT FROM srm.accounts WHERE account_id = 'held' FOR UPDATE")

        held, free = set_all_up(database.setup_batches, [asked("held"), asked("free")])

    assert held is None
    assert error_in(free) is None


def test_no_outcome_is_made_up_when_the_connection_breaks_at_the_commit(
    factory: Factory, database: Database, url: str, outside: Callable[[str], str]
) -> None:
    factory.account("a")

    def break_connection(cursor: Any) -> None:
        with psycopg.connect(outside(url), autocommit=True) as superuser:
            superuser.execute("SELECT pg_terminate_backend(%s)", [cursor.connection.info.backend_pid])
            while superuser.execute(
                "SELECT FROM pg_stat_activity WHERE pid = %s", [cursor.connection.info.backend_pid]
            ).rowcount:
                pass

    pool: Any = Watched(database, INSERT_SESSIONS, break_connection, after=True)
    (result,) = set_all_up(pool, [asked("a")])

    assert error_in(result) is DependencyUnavailable
    assert session_count(database) == 0


def test_a_batch_that_fails_before_the_commit_goes_the_ordinary_way(
    app: Flask, client: FlaskClient, factory: Factory, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory.account("a")
    monkeypatch.setattr("srm.playback.setup_batch.INSERT_SESSIONS", "SELECT 1 / 0")

    answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": issue_token("a", "tv")})

    assert "successResponse" in answer.get_json()
    assert session_count(database) == 1
    assert parts_of(app).lanes.setups.is_open


@pytest.mark.parametrize("more", [{"idempotency_key": "once"}, {"take_over": ["an id"]}])
def test_a_setup_that_may_concern_other_sessions_is_not_for_a_batch(more: dict[str, Any]) -> None:
    assert is_plain(asked("a"))
    assert not is_plain(asked("a", **more))


def test_a_plain_setup_is_decided_in_a_batch(
    client: FlaskClient, factory: Factory, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory.account("a", max_sessions=1)

    def fail(*_: object) -> None:
        raise AssertionError("went the ordinary way")

    monkeypatch.setattr("srm.playback.lanes.set_up", fail)
    token = {"Client-Token": issue_token("a", "tv")}

    first, second = (client.post("/srm/v1/sessions", json=SETUP, headers=token) for _ in range(2))

    assert "successResponse" in first.get_json()
    assert second.get_json()["errorResponse"]["errorCode"] == "SRM-0006"
    assert session_count(database) == 1
    assert rows(database, "SELECT count(*) FROM srm.denials")[0][0] == 1


def test_a_setup_that_is_committed_after_its_deadline_keeps_no_slot(
    app: Flask, factory: Factory, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client was told to try again, and does not know the session."""
    factory.account("a", max_sessions=1)
    lanes = parts_of(app).lanes
    commit, may_begin = lanes.setups._commit, threading.Event()

    def begin_late(batch: Any) -> Any:
        assert may_begin.wait(10)
        return commit(batch)

    monkeypatch.setattr(lanes.setups, "_commit", begin_late)
    DEADLINE.set(time.monotonic() + 0.6)
    try:
        with pytest.raises(DependencyUnavailable):
            lanes.set_up(asked("a"))
    finally:
        DEADLINE.set(None)
    may_begin.set()

    ended = "SELECT end_reason FROM srm.sessions WHERE ended_at IS NOT NULL"
    wait_until(lambda: rows(database, ended) == [("teardown",)])
    assert error_in(lanes.set_up(asked("a"))) is None
