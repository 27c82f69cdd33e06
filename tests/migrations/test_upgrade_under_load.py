"""A database of the first release, full and in use, is brought to head: nobody fails, nobody waits long.

The load is what the first release asks: in a rolling upgrade it goes on, with the schema ahead of it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from alembic import command

from srm import schema
from srm.database import Database
from srm.reaper import Reaper
from tests import support
from tests.migrations import first_release as old
from tests.migrations.test_migrations import config, execute, query

ACCOUNTS = 20_000
CLIENTS = 6
MOST_SECONDS = 1
"""That anybody may wait for a lock."""

POPULATE = f"""
    INSERT INTO srm.account_profiles (profile_id, max_sessions, timeout_seconds) VALUES ('p', 3, 3600);
    INSERT INTO srm.contents (content_id) VALUES ('film');
    INSERT INTO srm.products (product_id, name) VALUES ('basic', 'basic');
    INSERT INTO srm.product_contents VALUES ('basic', 'COD', 'film');
    INSERT INTO srm.accounts (account_id, profile_id) SELECT 'a' || n, 'p' FROM generate_series(1, {ACCOUNTS}) AS n;
    INSERT INTO srm.devices (account_id, device_id, device_group, name)
    SELECT account_id, device, 'tv', device FROM srm.accounts, unnest(ARRAY['tv', 'phone']) AS device;
    INSERT INTO srm.entitlements (account_id, product_id) SELECT account_id, 'basic' FROM srm.accounts;
    INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds,
                              max_sessions)
    SELECT account_id, gen_random_uuid(), 'tv', 'COD', 'film', 3600, 3 FROM srm.accounts;
    CREATE TABLE srm.session_history_2026_01 PARTITION OF srm.session_history
    FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2026-02-01 00:00+00');
    INSERT INTO srm.session_history (account_id, session_id, device_id, content_type, content_id, started_at,
                                     timeout_seconds, max_sessions, ended_at, end_reason)
    SELECT account_id, gen_random_uuid(), 'tv', 'COD', 'film', '2026-01-10 20:00+00', 3600, 3,
           '2026-01-10 21:00+00', 'teardown'
    FROM srm.accounts, generate_series(1, 3);
    ANALYZE
"""

LONGEST_WAIT = """
    SELECT coalesce(extract(epoch FROM max(clock_timestamp() - waitstart)), 0)
    FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'
      AND (database = 0 OR database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


class Load:
    """Clients of the first release: each sets up, keeps alive and tears down, over and over."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._done = threading.Event()
        self.rounds = [0] * CLIENTS
        self.longest_wait = 0.0
        """Seconds that anybody was seen to wait for a lock."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Meanwhile; raises what any of them met."""
        with ThreadPoolExecutor(CLIENTS + 1) as threads:
            work: list[Future[None]] = [threads.submit(self._ask, index) for index in range(CLIENTS)]
            work.append(threads.submit(self._watch))
            try:
                yield
            finally:
                self._done.set()
        for future in work:
            future.result()

    def _ask(self, index: int) -> None:
        with psycopg.connect(self._url, autocommit=True, options=old.OPTIONS) as db:
            while not self._done.is_set():
                self.rounds[index] += 1
                names = {
                    "account": f"a{1 + (index + CLIENTS * self.rounds[index]) % ACCOUNTS}",
                    "device": "phone",
                    "content_type": "COD",
                    "content": "film",
                    "session": uuid4(),
                }
                with db.transaction():
                    assert db.execute(old.LOCK_ACCOUNT, names).fetchone() == (True,)
                    terms, *_ = db.execute(old.GET_TERMS_AND_LIST, names).fetchall()
                    assert terms[:2] == (True, True)
                    db.execute(old.ADMIT, {**names, "max_sessions": terms[2], "timeout_seconds": terms[3]})
                for _ in range(5):
                    assert db.execute(old.KEEP_ALIVE, names).rowcount == 1
                assert db.execute(old.TEAR_DOWN, names).rowcount == 1

    def _watch(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as db:
            while not self._done.is_set():
                ((seconds,),) = db.execute(LONGEST_WAIT).fetchall()
                self.longest_wait = max(self.longest_wait, float(seconds))
                time.sleep(0.01)


@pytest.fixture
def url(clone: Callable[[], str]) -> str:
    """A database of the first release, in use for a while."""
    url = clone()
    execute(url, "DROP SCHEMA srm CASCADE")
    command.upgrade(config(url), old.REVISION)
    execute(url, POPULATE)
    return url


def test_nobody_fails_or_waits_long(url: str) -> None:
    """Beside the clients somebody reads for seconds, which no migration waits for."""
    load = Load(url)
    history = query(url, "SELECT count(*) FROM srm.session_history")

    with load.running(), ThreadPoolExecutor(1) as thread:
        reading = threading.Event()

        def read() -> None:
            with psycopg.connect(url) as reader:
                reader.execute("SELECT count(*) FROM srm.sessions")
                reading.set()
                time.sleep(1.5)

        reader = thread.submit(read)
        reading.wait(10)
        before = sum(load.rounds)
        schema.upgrade(url)
        reader.result()
        time.sleep(0.5)

    assert query(url, "SELECT version_num FROM srm.alembic_version") == [(schema.head_revision(),)]
    assert sum(load.rounds) > before
    assert 0 < load.longest_wait < MOST_SECONDS
    assert query(url, "SELECT count(*) FROM srm.session_history") == history
    database = Database(url, application_name="srm-tests", statement_timeout_seconds=30)
    Reaper(database, ended_retention_seconds=0, history_retention_days=3650).run()
    database.dispose()
    assert query(url, "SELECT count(*) FROM srm.session_history") == [(history[0][0] + sum(load.rounds),)]
    assert query(url, "SELECT count(*) FROM srm.sessions") == [(ACCOUNTS,)]
    support.assert_audit_clean(url)


def test_nobody_fails_or_waits_long_on_the_way_back(url: str) -> None:
    schema.upgrade(url)
    load = Load(url)

    with load.running():
        command.downgrade(config(url), old.REVISION)

    assert query(url, "SELECT version_num FROM srm.alembic_version") == [(old.REVISION,)]
    assert load.longest_wait < MOST_SECONDS
