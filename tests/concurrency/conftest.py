"""What tests of concurrency build on: a database of their own, as other connections than the test's commit to it."""

from collections.abc import Callable, Iterator

import pytest

from srm.db.database import Database


@pytest.fixture
def own_url(clone: Callable[[], str]) -> str:
    """A database of this test alone."""
    return clone()


@pytest.fixture
def own_database(own_url: str) -> Iterator[Database]:
    """Connections to it, more patient than those of a request."""
    database = Database(own_url, application_name="srm-tests", statement_timeout_seconds=30)
    yield database
    database.dispose()
