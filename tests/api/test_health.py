"""/healthz, /readyz and /metrics."""

from collections.abc import Callable

import psycopg
import pytest
from flask.testing import FlaskClient

from srm.db import schema
from tests import support
from tests.support import error_of

UNAVAILABLE = (503, "ERROR", "SRM-0010")


def test_healthz_says_that_the_process_is_alive(client: FlaskClient) -> None:
    answer = client.get("/healthz")

    assert answer.status_code == 200
    assert answer.get_json() == {"status": "alive"}


def test_metrics_come_in_the_text_format_of_prometheus(client: FlaskClient) -> None:
    answer = client.get("/metrics")

    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    assert "# TYPE srm_entitlement_seconds histogram" in answer.text


def test_readyz_is_ready_when_the_schema_is_at_head(client: FlaskClient) -> None:
    answer = client.get("/readyz")

    assert answer.status_code == 200
    assert answer.get_json() == {"status": "ready", "schema": schema.head_revision()}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_head_is_answered_without_a_body(client: FlaskClient, path: str) -> None:
    answer = client.head(path)

    assert (answer.status_code, answer.data) == (200, b"")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE srm.alembic_version SET version_num = '0001'", "0001"),
        ("DELETE FROM srm.alembic_version", "nothing"),
        ("DROP SCHEMA srm CASCADE", "nothing"),
    ],
    ids=["older", "no revision", "empty database"],
)
def test_readyz_is_not_ready_while_the_schema_is_behind(
    make_client: Callable[..., FlaskClient],
    clone: Callable[[], str],
    outside: Callable[[str], str],
    change: str,
    found: str,
) -> None:
    url = clone()
    client = make_client(database_url=url)
    with psycopg.connect(outside(url)) as connection:
        connection.execute(change)

    answer = client.get("/readyz")

    assert error_of(answer) == UNAVAILABLE
    assert int(answer.headers["Retry-After"]) >= 1
    message = answer.get_json()["errorResponse"]["errorMessage"]
    assert f"at {found}," in message
    assert schema.head_revision() in message
    assert "srm db upgrade" in message
    assert client.get("/healthz").status_code == 200


def test_readyz_stays_ready_when_the_schema_is_ahead(
    make_client: Callable[..., FlaskClient], clone: Callable[[], str], outside: Callable[[str], str]
) -> None:
    """The next release has migrated the schema to a revision that this release does not know."""
    url = clone()
    client = make_client(database_url=url)
    with psycopg.connect(outside(url)) as connection:
        connection.execute("UPDATE srm.alembic_version SET version_num = '9999'")

    assert client.get("/readyz").status_code == 200


def test_readyz_becomes_ready_without_a_restart(
    make_client: Callable[..., FlaskClient], clone: Callable[[], str], outside: Callable[[str], str]
) -> None:
    url = clone()
    client = make_client(database_url=url)
    with psycopg.connect(outside(url)) as connection:
        connection.execute("DROP SCHEMA srm CASCADE")
    assert client.get("/readyz").status_code == 503

    support.make_roles(outside(url))
    schema.upgrade(support.as_role("srm_owner", url))

    assert client.get("/readyz").status_code == 200
