"""Database away: calls that need it get 503 with Retry-After at once; other calls work."""

import time
from collections.abc import Callable

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg import sql
from werkzeug.test import TestResponse

from srm.api.parts import parts_of
from srm.errors import DependencyUnavailable
from tests.support import ROUTES, SESSION, SETUP, Factory, error_of, free_port, issue_token

UNAVAILABLE = (503, "ERROR", "SRM-0010")


@pytest.fixture
def refused(make_client: Callable[..., FlaskClient]) -> FlaskClient:
    """Client of a service whose database refuses connections."""
    return make_client(database_url=f"postgresql://srm:database-password@127.0.0.1:{free_port()}/srm")


def call(client: FlaskClient, method: str, path: str) -> TestResponse:
    return client.open(
        path,
        method=method,
        json=SETUP if method == "POST" else None,
        headers={"Client-Token": issue_token("a", "tv")},
    )


@pytest.mark.parametrize(("method", "path"), ROUTES.values(), ids=ROUTES.keys())
def test_calls_that_need_the_database_get_503(refused: FlaskClient, method: str, path: str) -> None:
    for _ in range(2):
        answer = call(refused, method, path)

        assert error_of(answer) == UNAVAILABLE
        assert int(answer.headers["Retry-After"]) >= 1
        for word in ("127.0.0.1", "database-password", "psycopg", "refused"):
            assert word not in answer.text


def test_healthz_is_alive_without_the_database(refused: FlaskClient) -> None:
    assert refused.get("/healthz").status_code == 200


def test_wrong_requests_are_rejected_without_the_database(refused: FlaskClient) -> None:
    assert error_of(refused.post("/srm/v1/sessions", data=b"{}")) == (400, "ERROR", "SRM-0002")
    assert error_of(refused.put(SESSION, headers={"Client-Token": "garbage"})) == (401, "ERROR", "SRM-0003")
    assert error_of(refused.get("/nothing")) == (404, "ERROR", "SRM-0011")


@pytest.mark.parametrize(("method", "path"), ROUTES.values(), ids=ROUTES.keys())
def test_a_call_succeeds_after_connections_were_cut(
    client: FlaskClient, factory: Factory, server_url: str, method: str, path: str
) -> None:
    factory.account("a")
    before = call(client, method, path).status_code
    assert before < 500
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'srm-api'"
        )

    assert call(client, method, path).status_code == before


@pytest.mark.parametrize(("method", "path"), [ROUTES["set up"], ROUTES["keep alive"], ROUTES["tear down"]])
def test_a_standby_counts_as_away(
    make_client: Callable[..., FlaskClient],
    clone: Callable[[], str],
    outside: Callable[[str], str],
    method: str,
    path: str,
) -> None:
    url = clone()
    with psycopg.connect(outside(url), autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))

    assert error_of(call(make_client(database_url=url), method, path)) == UNAVAILABLE


def test_a_setup_gives_up_on_an_account_that_somebody_locks(
    client: FlaskClient, factory: Factory, url: str, outside: Callable[[str], str]
) -> None:
    factory.account("a")
    with psycopg.connect(outside(url)) as holder:
        holder.execute("SELECT FROM srm.accounts FOR UPDATE")

        answer = call(client, *ROUTES["set up"])

    assert error_of(answer) == UNAVAILABLE
    assert "successResponse" in call(client, *ROUTES["set up"]).get_json()


def test_time_spent_before_the_transaction_counts_towards_the_deadline(app: Flask) -> None:
    """A request that waited for the entitlement service still has its answer in time."""
    database = parts_of(app).database
    with database.request():
        pass  # Connect, so that the time below is the statement's.
    began_at = time.monotonic()

    with pytest.raises(DependencyUnavailable), database.request(spent_seconds=2.3) as db:
        db.execute("SELECT pg_sleep(1)")

    assert time.monotonic() - began_at < 0.9


OF_OPERATORS = [
    ("GET", "/srm/v1/accounts/a"),
    ("PATCH", "/srm/v1/accounts/a"),
    ("DELETE", "/srm/v1/accounts/a/sessions"),
]


@pytest.mark.parametrize(("method", "path"), OF_OPERATORS)
def test_operators_get_503_too(refused: FlaskClient, method: str, path: str) -> None:
    answer = refused.open(path, method=method, json={"enabled": False}, headers={"Operator-Key": "joe.secret"})

    assert error_of(answer) == UNAVAILABLE
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(("method", "path"), OF_OPERATORS)
def test_calls_of_operators_succeed_after_connections_were_cut(
    client: FlaskClient, factory: Factory, server_url: str, method: str, path: str
) -> None:
    factory.account("a")
    key = factory.operator("admin")
    assert client.open(path, method=method, json={"maxSessions": 1}, headers=key).status_code == 200
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'srm-api'"
        )

    assert client.open(path, method=method, json={"maxSessions": 2}, headers=key).status_code == 200


def test_a_change_that_waits_too_long_for_a_lock_is_not_made(
    client: FlaskClient, factory: Factory, url: str, outside: Callable[[str], str]
) -> None:
    factory.account("a")
    key = factory.operator("admin")
    with psycopg.connect(outside(url)) as holder:
        holder.execute("SELECT FROM srm.accounts FOR UPDATE")

        answer = client.patch("/srm/v1/accounts/a/devices/tv", json={"enabled": False}, headers=key)

    assert error_of(answer) == UNAVAILABLE
    assert client.get("/srm/v1/accounts/a/devices/tv", headers=key).get_json()["enabled"] is True
