"""Fixtures for all tests: a PostgreSQL server, databases cloned from a migrated template, and the application.

The service is tested as it runs: with the roles of deploy/postgres/roles.sql, migrated by the owner, used by the
application. With SRM_TEST_DATABASE_URL, the URL of a superuser, the tests use that server instead of an embedded one.
They make the roles there and leave them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import hypothesis
import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.engine import make_url

from srm import logs
from srm.api.parts import install, parts_of
from srm.app import build_parts, create_app
from srm.config import Settings
from srm.db import schema
from srm.db.database import Database
from srm.db.embedded import EmbeddedServer
from srm.reaper.runner import Reaper
from tests import support
from tests.support import Factory

# A busy machine makes no example wrong: Hypothesis' deadline of 200 ms is off.
hypothesis.settings.register_profile("srm", deadline=None)
hypothesis.settings.load_profile("srm")

pytest_plugins = ["tests.reporting"]

for name in [name for name in os.environ if name.startswith("SRM_") and not name.startswith("SRM_TEST_")]:
    del os.environ[name]  # Each test sets the variables that it needs.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process has to wait for another one at the end."""
    items.sort(key=lambda item: "service" not in item.path.parts)


class Applications:
    """Makes applications. Those of earlier tests get new parts: to register the routes anew takes 90 ms."""

    def __init__(self) -> None:
        self._free: list[Flask] = []

    @contextmanager
    def with_settings(self, settings: Settings) -> Iterator[Flask]:
        """Yield an application that no other test uses; close its connections at the end."""
        sample = Settings.model_fields["access_log_sample"].default
        is_reusable = not settings.cors_origins and settings.access_log_sample == sample
        if is_reusable and self._free:
            app = self._free.pop()
            logs.configure(settings.log_format)
            install(app, build_parts(settings))
        else:
            app = create_app(settings)
        try:
            yield app
        finally:
            parts = parts_of(app)
            parts.database.dispose()
            parts.lanes.close()
            if parts.entitlement_service is not None:
                parts.entitlement_service.close()
            if is_reusable:
                self._free.append(app)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """URL of the server of this test run, for a superuser."""
    if given := os.environ.get("SRM_TEST_DATABASE_URL"):
        yield given
        return
    # Not below pytest's own folder: each run of pytest closes that to the user that the server runs as.
    with TemporaryDirectory(prefix="srm-tests-") as folder, EmbeddedServer(Path(folder)) as server:
        # No crash of this server is tested. Without fsync a new database takes 25 ms instead of 250.
        for setting in ("fsync", "full_page_writes"):
            _execute(server.url, f"ALTER SYSTEM SET {setting} = off")
        _execute(server.url, "SELECT pg_reload_conf()")
        yield server.url


def _execute(server_url: str, statement: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(statement)


def _drop(server_url: str, name: str) -> None:
    """Drop a database, unless its server is embedded: that one goes with all that it has."""
    if os.environ.get("SRM_TEST_DATABASE_URL"):
        _execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _in(server_url: str, name: str) -> str:
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def outside(server_url: str) -> Callable[[str], str]:
    """Return a function that turns the URL of a database into its URL for a superuser."""
    return lambda url: _in(server_url, make_url(url).database or "")


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """Name of a database at head, with partitions, and with a catalogue of one film in the product `basic`."""
    name = f"srm_template_{uuid4().hex[:8]}"
    _execute(server_url, f'CREATE DATABASE "{name}"')
    support.make_roles(_in(server_url, name))
    schema.upgrade(support.as_role("srm_owner", _in(server_url, name)))
    _execute(_in(server_url, name), support.ALWAYS_AVAILABLE)
    database = Database(support.as_role("srm_application", _in(server_url, name)), application_name="srm-tests")
    Reaper(database, ended_retention_seconds=300, history_retention_days=90).make_partitions()
    factory = Factory(database)
    factory.content("film")
    factory.product("basic", ("COD", "film"))
    database.dispose()
    yield name
    _drop(server_url, name)


@pytest.fixture(scope="session")
def clone(server_url: str, template: str) -> Iterator[Callable[[], str]]:
    """Return a function that clones the template and returns the URL of the clone for the application's role."""
    with ExitStack() as stack:

        def make() -> str:
            name = f"srm_test_{uuid4().hex[:8]}"
            _execute(server_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
            stack.callback(_drop, server_url, name)
            return support.as_role("srm_application", _in(server_url, name))

        yield make


@pytest.fixture(scope="session")
def shared_url(clone: Callable[[], str]) -> str:
    """URL of the database that quick tests share, one after the other."""
    return clone()


@pytest.fixture
def url(shared_url: str, outside: Callable[[str], str]) -> Iterator[str]:
    """URL of a database with the catalogue of the template and nothing else, for the application's role."""
    yield shared_url
    with psycopg.connect(outside(shared_url), autocommit=True) as connection:
        support.empty(connection)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """Connections to the database of `url`, with a longer timeout than a request has: a busy machine is no fault."""
    database = Database(url, application_name="srm-tests", statement_timeout_seconds=20)
    yield database
    database.dispose()


@pytest.fixture
def factory(database: Database) -> Factory:
    """Factory of rows in the database of `url`."""
    return Factory(database)


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    """Settings of the test application."""
    return Settings(database_url=url, token_secret=support.SECRET, data_dir=tmp_path)


@pytest.fixture(scope="session")
def applications() -> Applications:
    """Applications with any settings."""
    return Applications()


@pytest.fixture
def app(settings: Settings, applications: Applications) -> Iterator[Flask]:
    """The application on the database of `url`."""
    with applications.with_settings(settings) as app:
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """Client that calls the application in this process."""
    return app.test_client()
