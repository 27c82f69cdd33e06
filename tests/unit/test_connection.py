"""The parts of psycopg that a bounded connection relies on; psycopg documents some of them only in its code."""

import time

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import make_url

from srm.db.breaker import ServerSilent
from srm.db.connection import BoundedConnection, conninfo
from srm.db.database import Database


@pytest.fixture
def connection(url: str) -> BoundedConnection:
    """A connection that SQLAlchemy's pool does not know."""
    connection = BoundedConnection.connect(url, autocommit=True)
    connection.statement_timeout_seconds = 5
    return connection


def test_commands_without_a_cursor_begin_and_end_a_transaction(connection: BoundedConnection) -> None:
    """Fails when psycopg.generators.execute is gone."""
    with connection:
        connection.command(b"BEGIN")
        begun = connection.info.transaction_status
        connection.command(b"ROLLBACK")

        assert begun == psycopg.pq.TransactionStatus.INTRANS
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_failing_command_raises_the_error_of_the_server(connection: BoundedConnection) -> None:
    with connection, pytest.raises(psycopg.errors.SyntaxError):
        connection.command(b"BEGIN NOTHING OF THE KIND")


def test_a_server_that_outlasts_its_own_timeout_is_silent(connection: BoundedConnection) -> None:
    """Fails when psycopg waits in another way than by Connection.wait."""
    connection.statement_timeout_seconds = -0.9  # the grace of one second leaves a tenth

    with pytest.raises(ServerSilent):
        connection.execute("SELECT pg_sleep(5)")

    assert connection.closed


def test_a_request_past_its_deadline_does_not_call_the_server_silent(connection: BoundedConnection) -> None:
    connection.deadline = time.monotonic() + 0.1

    with pytest.raises(psycopg.OperationalError) as caught:
        connection.execute("SELECT pg_sleep(5)")

    assert not isinstance(caught.value, ServerSilent)
    assert connection.closed


def test_an_error_of_the_server_leaves_the_connection_open(connection: BoundedConnection) -> None:
    with connection:
        connection.execute("SET statement_timeout = 50")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(5)")

        assert not connection.closed


def test_a_connection_that_the_server_cuts_is_not_silent(connection: BoundedConnection) -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    assert not isinstance(caught.value, ServerSilent)


def test_the_database_opens_bounded_connections(database: Database) -> None:
    with database.transaction() as db:
        assert isinstance(db.connection.dbapi_connection, BoundedConnection)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u%40er:ge%2Fhe%25@h/my%20db", {"user": "u@er", "password": "ge/he%", "dbname": "my db"}),
        ("postgresql:///a%2Bb?options=-c%20x%3D1", {"dbname": "a+b", "options": "-c x=1"}),
        ("postgresql://h", {"host": "h"}),
    ],
)
def test_libpq_reads_the_url_as_it_was_written(url: str, expected: dict[str, str]) -> None:
    parsed = conninfo_to_dict(conninfo(make_url(url)))
    assert {name: parsed.get(name) for name in expected} == expected
