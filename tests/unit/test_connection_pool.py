"""A pool is bounded: a request waits a short time for a connection, and one account cannot take all connections."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from srm.db import connection as connection_module
from srm.db.breaker import CircuitBreaker
from srm.db.connection import MOST_PER_ACCOUNT, BoundedConnection, ConnectionPool
from srm.deadline import DEADLINE
from srm.errors import DependencyUnavailable

SIZE = 3
WAIT_SECONDS = 0.2


@pytest.fixture
def opened() -> list[BoundedConnection]:
    """Connections that the pool has opened."""
    return []


@pytest.fixture
def pool(url: str, opened: list[BoundedConnection], monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectionPool]:
    monkeypatch.setattr(connection_module, "MAX_QUEUE_SECONDS", WAIT_SECONDS)

    def connect() -> BoundedConnection:
        connection = BoundedConnection.connect(url)
        connection.statement_timeout_seconds = 5
        opened.append(connection)
        return connection

    pool = ConnectionPool(connect, CircuitBreaker(), 5, SIZE)
    yield pool
    pool.close()
    assert all(connection.closed for connection in opened)


def one(pool: ConnectionPool, **parameters: object) -> object:
    return pool.execute("SELECT 1", parameters).fetchone()


def test_one_request_after_the_other_uses_one_connection(pool: ConnectionPool, opened: list[BoundedConnection]) -> None:
    for _ in range(3):
        assert one(pool) == (1,)
        with pool.request() as db:
            assert db.execute("SELECT 2").fetchall() == [(2,)]

    assert len(opened) == 1


def test_a_full_pool_refuses_the_next_request_after_a_short_wait(
    pool: ConnectionPool, opened: list[BoundedConnection]
) -> None:
    with ExitStack() as stack:
        for _ in range(SIZE):
            stack.enter_context(pool.request())
        began_at = time.monotonic()
        with pytest.raises(DependencyUnavailable):
            one(pool)
        assert WAIT_SECONDS <= time.monotonic() - began_at < 1
        with pytest.raises(DependencyUnavailable), pool.request():
            pass

    assert one(pool) == (1,)
    assert len(opened) == SIZE


def test_no_request_waits_for_a_connection_longer_than_its_deadline(pool: ConnectionPool) -> None:
    with ExitStack() as stack:
        for _ in range(SIZE):
            stack.enter_context(pool.request())
        began_at = time.monotonic()
        token = DEADLINE.set(began_at + WAIT_SECONDS / 4)
        stack.callback(DEADLINE.reset, token)
        with pytest.raises(DependencyUnavailable):
            one(pool)
        assert time.monotonic() - began_at < WAIT_SECONDS


def test_requests_get_a_connection_in_the_order_in_which_they_came(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MAX_QUEUE_SECONDS", 10)
    order: list[int] = []

    def work(number: int) -> None:
        with pool.request():
            order.append(number)

    with ThreadPoolExecutor(5) as threads:
        with ExitStack() as stack:
            for _ in range(SIZE):
                stack.enter_context(pool.request())
            waiting: list[Future[None]] = []
            for number in range(5):
                waiting.append(threads.submit(work, number))
                time.sleep(0.05)
        for future in waiting:
            future.result()

    assert sorted(order) == list(range(5))
    assert order[0] < SIZE  # SIZE connections became free at once


def test_one_account_takes_no_more_than_its_share(pool: ConnectionPool) -> None:
    with ExitStack() as stack:
        for _ in range(MOST_PER_ACCOUNT):
            stack.enter_context(pool.request(account="locked"))

        with pytest.raises(DependencyUnavailable):
            one(pool, account_id="locked")
        with pytest.raises(DependencyUnavailable), pool.request(account="locked"):
            pass
        assert one(pool, account_id="other") == (1,)
        assert one(pool) == (1,)

    assert one(pool, account_id="locked") == (1,)


def test_an_account_leaves_nothing_behind(pool: ConnectionPool) -> None:
    for number in range(100):
        one(pool, account_id=str(number))
    with pytest.raises(psycopg.errors.SyntaxError):
        pool.execute("nonsense", {"account_id": "a"})

    assert pool._turns._accounts == {}


def break_off(pool: ConnectionPool) -> None:
    with pool.request() as db:
        db.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def fail(pool: ConnectionPool) -> None:
    pool.execute("SELECT 1 / 0", {})


def leave(pool: ConnectionPool) -> None:
    with pool.request() as db:
        db.execute("SELECT 1")
        raise KeyError


def be_late(pool: ConnectionPool) -> None:
    pool.execute("SELECT pg_sleep(5)", {}, timeout_seconds=0.1)


@pytest.mark.parametrize("how", [break_off, fail, leave, be_late])
def test_every_outcome_gives_the_connection_back(pool: ConnectionPool, how: Callable[[ConnectionPool], None]) -> None:
    for _ in range(2 * SIZE):
        with pytest.raises((DependencyUnavailable, psycopg.Error, KeyError)):
            how(pool)

    with ExitStack() as stack:
        for _ in range(SIZE):
            assert stack.enter_context(pool.request()).execute("SELECT 1").fetchone() == (1,)


def test_a_statement_is_repeated_once_on_a_broken_connection(
    pool: ConnectionPool, opened: list[BoundedConnection], url: str
) -> None:
    one(pool)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [opened[0].info.backend_pid])

    assert one(pool) == (1,)
    assert len(opened) == 2


def test_results_of_threads_do_not_mix(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_QUEUE_SECONDS", 20)
    barrier = threading.Barrier(8)

    def work(number: int) -> bool:
        barrier.wait(10)
        return all(pool.execute("SELECT %(n)s::int", {"n": number}).fetchall() == [(number,)] for _ in range(200))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
