"""A reaper, and a database whose partitions a test may make and drop."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from srm.db.database import Database
from srm.reaper import partitions as partition_module
from srm.reaper import runner
from srm.reaper import sessions as session_module
from srm.reaper.runner import Reaper
from tests.reaper.data import (
    drop_all_partitions,
    reaper_of,
)


@pytest.fixture
def reaper(database: Database) -> Reaper:
    """A reaper on the shared database, with the partitions that it needs today."""
    reaper = reaper_of(database)
    reaper.make_partitions()
    return reaper


@pytest.fixture(scope="module")
def module_url(clone: Callable[[], str]) -> str:
    return clone()


@pytest.fixture
def own_url(module_url: str, outside: Callable[[str], str]) -> Iterator[str]:
    """A database for tests that make and drop partitions; each test leaves it as it was."""
    yield module_url
    owner = Database(outside(module_url), application_name="srm-tests")
    drop_all_partitions(owner)
    with owner.transaction() as db:
        db.exec_driver_sql("DROP TABLE IF EXISTS srm.session_history_2011_01")
        db.exec_driver_sql("TRUNCATE srm.sessions, srm.session_history, srm.denials")
        db.exec_driver_sql(f'ALTER DATABASE "{make_url(module_url).database}" RESET ALL')
    owner.dispose()
    database = Database(module_url, application_name="srm-tests")
    reaper_of(database).make_partitions()
    database.dispose()


@pytest.fixture
def own(own_url: str) -> Iterator[Database]:
    database = Database(own_url, application_name="srm-tests")
    yield database
    database.dispose()


@pytest.fixture
def owner(own_url: str, outside: Callable[[str], str]) -> Iterator[Database]:
    """The database of `own` as a superuser."""
    database = Database(outside(own_url), application_name="srm-tests", statement_timeout_seconds=60)
    yield database
    database.dispose()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Collect the log lines of the reaper."""
    for module in (runner, session_module, partition_module):
        monkeypatch.setattr(module, "log", structlog.get_logger("srm.reaper"))  # not yet bound by another test
    with capture_logs() as lines:
        yield lines
