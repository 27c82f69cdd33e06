"""Databases that other connections than the test's commit to, and one service for all tests of concurrency."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from srm.db.database import Database
from tests import support

DISCONNECT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
"""Tells all backends of the database to end: a backend reports its deadlocks at its end, if not before."""


@dataclass(frozen=True)
class Service:
    """API in four processes, on a database that has only the catalogue of the template."""

    base: str
    url: str
    database: Database


@pytest.fixture
def own_url(clone: Callable[[], str]) -> str:
    """URL of a database of this test alone."""
    return clone()


@pytest.fixture
def own_database(own_url: str) -> Iterator[Database]:
    """Connections to the database of this test, with a longer timeout than a request has."""
    database = Database(own_url, application_name="srm-tests", statement_timeout_seconds=30)
    yield database
    database.dispose()


@pytest.fixture(scope="session")
def running_service(clone: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Base URL of an API that believes X-Forwarded-For, and the URL of its database."""
    url = clone()
    log = tmp_path_factory.mktemp("concurrency") / "api.log"
    with support.api(url, log, workers=4, variables={"SRM_TRUSTED_PROXIES": "1"}) as (base, _):
        yield base, url


@pytest.fixture
def service(running_service: tuple[str, str], outside: Callable[[str], str]) -> Iterator[Service]:
    """API on an empty database. Fails when the test has led to a deadlock."""
    base, url = running_service
    database = Database(url, application_name="srm-tests", statement_timeout_seconds=30)
    yield Service(base, url, database)
    database.dispose()
    with psycopg.connect(outside(url), autocommit=True) as connection:
        support.wait_until(lambda: connection.execute(DISCONNECT).rowcount == 0)
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        (found,) = connection.execute(deadlocks).fetchone() or (None,)
        connection.execute("SELECT pg_stat_reset()")
        support.empty(connection)
    assert found == 0
