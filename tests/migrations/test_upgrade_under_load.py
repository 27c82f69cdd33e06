"""Upgrade from the first release and downgrade to it, process by process, on a full database in use.

As docs/migrations.md says. No request fails, whichever release answers it, and nobody waits long for a lock.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPException
from itertools import count, product
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from sqlalchemy.engine import make_url

from srm.db import schema
from tests import support
from tests.concurrency.players import Answer, Player
from tests.migrations import first_release
from tests.migrations.first_release import FirstRelease
from tests.migrations.test_migrations import config, execute, query
from tests.support import ROOT, as_role, http, psql, wait_until

Started = TypeVar("Started")

ACCOUNTS = 5_000
CLIENTS = 6
FORGETFUL_ACCOUNTS = 1000
"""Accounts whose sessions get no keep-alive and no teardown. They lapse after a second, and the reaper ends them."""
PAUSE_SECONDS = 0.03
"""Time between two requests of a client."""
READING_SECONDS = 3
MOST_SECONDS = 2
"""Longest wait for a lock that is allowed: less than READING_SECONDS."""
SOME_SECONDS = 0.5
"""Duration of each stage."""

POPULATE = f"""
    INSERT INTO srm.account_profiles (profile_id, max_sessions, timeout_seconds) VALUES ('p', 3, 3600), ('short', 3, 1);
    INSERT INTO srm.contents (content_id) VALUES ('film');
    INSERT INTO srm.products (product_id, name) VALUES ('basic', 'basic');
    INSERT INTO srm.product_contents VALUES ('basic', 'COD', 'film');
    INSERT INTO srm.accounts (account_id, profile_id) SELECT 'a' || n, 'p' FROM generate_series(1, {ACCOUNTS}) AS n;
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
    INSERT INTO srm.accounts (account_id, profile_id)
    SELECT 'f' || n, 'short' FROM generate_series(1, {FORGETFUL_ACCOUNTS}) AS n;
    INSERT INTO srm.devices (account_id, device_id, device_group, name)
    SELECT account_id, device, 'tv', device FROM srm.accounts, unnest(ARRAY['tv', 'phone']) AS device;
    INSERT INTO srm.entitlements (account_id, product_id) SELECT account_id, 'basic' FROM srm.accounts;
    ANALYZE srm.accounts, srm.devices, srm.entitlements, srm.sessions, srm.session_history
"""

LONGEST_WAIT = """
    SELECT coalesce(extract(epoch FROM max(clock_timestamp() - waitstart)), 0)
    FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'
      AND (database = 0 OR database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""

HISTORY = "SELECT end_reason, count(*) FROM srm.session_history GROUP BY 1"

NOT_OF_THE_OWNER = """
    SELECT relname FROM pg_class WHERE relnamespace = 'srm'::regnamespace AND relowner <> 'srm_owner'::regrole
"""

REAPING = {"SRM_ENDED_RETENTION_SECONDS": "1", "SRM_HISTORY_RETENTION_DAYS": "3650"}


class Viewer:
    """A client with one session. Each request goes to any of the services that run at the moment."""

    def __init__(self, load: "Load", account: str) -> None:
        self._load = load
        self._account = account
        self._players: dict[str, Player] = {}
        self.session_id = ""
        self.asked: list[str] = []
        """The service to ask, for each request."""

    def set_up(self) -> bool:
        """True while the client has a session."""
        answer = self._ask("set up", lambda player: player.set_up())
        self.session_id = (answer and answer.session_id) or ""
        return bool(self.session_id)

    def keep_alive(self) -> bool:
        return self._ask("keep alive", lambda player: player.keep_alive(self.session_id)) is not None

    def tear_down(self) -> bool:
        return self._ask("tear down", lambda player: player.tear_down(self.session_id)) is not None

    def _ask(self, what: str, ask: Callable[[Player], Answer]) -> Answer | None:
        """Return a successful answer; note every other one."""
        time.sleep(PAUSE_SECONDS)
        base = random.choice(self._load.bases)
        self.asked.append(base)
        if base not in self._players:
            self._players[base] = Player(base, self._account, "phone")
        try:
            answer = ask(self._players[base])
        except (OSError, HTTPException) as error:
            self._load.failures.append(f"{what}, {base}: {error!r}")
            return None
        if answer.status == 200 and answer.error_code is None:
            return answer
        self._load.failures.append(f"{what}, {base}: {answer.status} {answer.body.decode()}")
        return None

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        for player in self._players.values():
            player.close()


class Load:
    """Clients over HTTP: each sets up, keeps alive and tears down, over and over, beside a session that it keeps.

    One more forgets each session that it has set up.
    """

    def __init__(self, database: str, *bases: str) -> None:
        self._database = database
        self.bases = bases
        self._done = threading.Event()
        self._steps = [0] * (CLIENTS + 1)
        self.failures: list[str] = []
        self.torn_down: list[tuple[str, str]] = []
        """For each session, the services that set it up and tore it down."""
        self.forgotten = 0
        self.longest_wait = 0.0
        """Longest wait for a lock that was seen, in seconds."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the clients; stop them at the end of the block."""
        with ThreadPoolExecutor(CLIENTS + 2) as threads:
            work: list[Future[None]] = [threads.submit(self._play, index) for index in range(CLIENTS)]
            work += [threads.submit(self._forget), threads.submit(self._watch)]
            try:
                self.go_on()
                yield
            finally:
                self._done.set()
        for future in work:
            future.result()

    def go_on(self, seconds: float = 0) -> None:
        """Wait this long, and until each client has sent another request. Assert that no request failed."""
        time.sleep(seconds)
        before = list(self._steps)
        wait_until(lambda: all(now > then for now, then in zip(self._steps, before, strict=True)))
        assert self.failures == []

    def move(self, *bases: str) -> None:
        """Send requests to these services only; return when no client uses another one."""
        self.bases = bases
        self.go_on()

    def share(self, *bases: str) -> None:
        """Send requests to all of these; return when each has torn down sessions of every other one."""
        self.move(*bases)
        wait_until(lambda: set(product(bases, repeat=2)) <= set(self.torn_down))

    def _play(self, index: int) -> None:
        with Viewer(self, f"a{1 + index}") as kept:
            kept.set_up()
            for round_ in count(1):
                with Viewer(self, f"a{1 + (index + CLIENTS * round_) % ACCOUNTS}") as viewer:
                    if viewer.set_up():
                        for _ in range(5):
                            viewer.keep_alive()
                            self._steps[index] += 1
                        self._tear_down(viewer)
                kept.keep_alive()
                self._steps[index] += 1
                if self._done.is_set():
                    break
            self._tear_down(kept)

    def _tear_down(self, viewer: Viewer) -> None:
        if viewer.tear_down():
            self.torn_down.append((viewer.asked[0], viewer.asked[-1]))

    def _forget(self) -> None:
        for number in count():
            if self._done.wait(0.02):
                return
            with Viewer(self, f"f{1 + number % FORGETFUL_ACCOUNTS}") as viewer:
                self.forgotten += viewer.set_up()
            self._steps[CLIENTS] += 1

    def _watch(self) -> None:
        with psycopg.connect(self._database, autocommit=True) as db:
            while not self._done.is_set():
                ((seconds,),) = db.execute(LONGEST_WAIT).fetchall()
                self.longest_wait = max(self.longest_wait, float(seconds))
                time.sleep(0.01)


@pytest.fixture
def old(tmp_path: Path) -> FirstRelease:
    return FirstRelease.unpacked(tmp_path / "first_release")


@pytest.fixture
def url(clone: Callable[[], str]) -> str:
    """An empty database, for a superuser."""
    url = clone()
    execute(url, "DROP SCHEMA srm CASCADE")
    return url


@pytest.fixture
def only_role(url: str) -> Iterator[str]:
    """The one role of the first release, which owned everything and connected everywhere."""
    role = f"first_{uuid4().hex[:8]}"
    execute(url, f"CREATE ROLE {role} LOGIN PASSWORD 'password'")
    execute(url, f'GRANT CREATE ON DATABASE "{make_url(url).database}" TO {role}')
    yield role
    execute(url, f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}")


def populate(url: str, old: FirstRelease) -> None:
    """Fill the database like a first release that was in use for a while."""
    result = old.srm(url, "db", "upgrade")
    assert result.returncode == 0, result.stderr
    execute(url, POPULATE)


def make_roles(url: str) -> None:
    """Run roles.sql; repeat it while something it needs is locked."""
    while (result := psql(url, "--file", str(ROOT / "deploy" / "postgres" / "roles.sql"))).returncode != 0:
        assert "lock timeout" in result.stderr, result.stderr
        time.sleep(0.5)


@contextmanager
def somebody_reading(url: str) -> Iterator[None]:
    """Read for READING_SECONDS. No request must wait for it."""
    reading = threading.Event()

    def read() -> None:
        with psycopg.connect(url) as reader:
            reader.execute("SELECT count(*) FROM srm.sessions")
            reading.set()
            time.sleep(READING_SECONDS)

    with ThreadPoolExecutor(1) as thread:
        reader = thread.submit(read)
        assert reading.wait(10)
        yield
        reader.result()


def ready(base: str) -> tuple[int, object]:
    """Return the answer of /readyz, with the schema that the running code needs."""
    answer = http("GET", f"{base}/readyz")
    return answer.status_code, answer.json().get("schema")


def revision(url: str) -> object:
    ((number,),) = query(url, "SELECT version_num FROM srm.alembic_version")
    return number


def assert_it_adds_up(url: str, load: Load) -> None:
    """Assert that no request failed, and that the history has every session with the right end."""
    assert load.failures == []
    wait_until(lambda: query(url, "SELECT count(*) FROM srm.sessions") == [(ACCOUNTS,)])
    assert dict(query(url, HISTORY)) == {
        "teardown": 3 * ACCOUNTS + len(load.torn_down),
        "expired": load.forgotten,
    }


def assert_nobody_waited_long(load: Load) -> None:
    """Assert that no lock wait was longer than allowed."""
    print(f"{len(load.torn_down)} sessions torn down, {load.forgotten} lapsed; longest wait {load.longest_wait:.2f} s")
    assert load.longest_wait < MOST_SECONDS


def test_an_upgrade_from_the_first_release_under_load_fails_no_request(
    url: str, only_role: str, old: FirstRelease, tmp_path: Path
) -> None:
    """Order: schema, reaper, roles (which the first release did not have), API."""
    old_url, application = as_role(only_role, url), as_role("srm_application", url)
    populate(old_url, old)

    def archived_by_new() -> int:
        return int(query(url, "SELECT archived FROM srm.reaper_state")[0][0])

    with ExitStack() as stack:

        def start(part: AbstractContextManager[Started]) -> Started:
            return stack.enter_context(part)

        old_base, old_api = start(old.api(old_url, tmp_path / "old-api.log"))
        old_reaper = start(old.reaper(old_url, tmp_path / "old-reaper.log", REAPING))
        assert ready(old_base) == (200, first_release.REVISION)
        load = Load(url, old_base)
        with load.running():
            with somebody_reading(url):
                schema.upgrade(old_url)
            assert revision(url) == schema.head_revision()
            assert ready(old_base) == (503, None)
            history = query(url, HISTORY)
            load.go_on(SOME_SECONDS)
            wait_until(lambda: query(url, HISTORY) != history)
            assert archived_by_new() == 0

            assert old_reaper.stop() == 0
            execute(url, f"GRANT srm_owner TO {only_role}")
            with somebody_reading(url):
                make_roles(url)
            load.go_on()

            start(support.reaper(application, tmp_path / "reaper.log", variables=REAPING))
            base, _ = start(support.api(application, tmp_path / "api.log"))
            load.share(old_base, base)
            load.go_on(SOME_SECONDS)
            load.move(base)
            assert old_api.stop() == 0
            execute(url, f"REVOKE srm_owner FROM {only_role}")
            load.go_on(SOME_SECONDS)

        assert_it_adds_up(url, load)

    assert_nobody_waited_long(load)
    assert load.longest_wait > 0  # for the migrations, which waited for who reads
    assert archived_by_new() > 0
    assert query(url, NOT_OF_THE_OWNER) == []
    support.assert_audit_clean(url)


def test_a_downgrade_to_the_first_release_under_load_fails_no_request(
    url: str, old: FirstRelease, tmp_path: Path
) -> None:
    """Order: the processes, as the owner of the newer schema; then the schema."""
    make_roles(url)
    owner, application = as_role("srm_owner", url), as_role("srm_application", url)
    populate(owner, old)
    schema.upgrade(owner)

    with ExitStack() as stack:

        def start(part: AbstractContextManager[Started]) -> Started:
            return stack.enter_context(part)

        base, api = start(support.api(application, tmp_path / "api.log"))
        reaper = start(support.reaper(application, tmp_path / "reaper.log", variables=REAPING))
        load = Load(url, base)
        with load.running():
            load.go_on(SOME_SECONDS)

            old_base, _ = start(old.api(owner, tmp_path / "old-api.log"))
            load.share(base, old_base)
            load.go_on(SOME_SECONDS)
            load.move(old_base)
            assert api.stop() == 0
            assert reaper.stop() == 0
            start(old.reaper(owner, tmp_path / "old-reaper.log", REAPING))
            load.go_on(SOME_SECONDS)

            command.downgrade(config(owner), first_release.REVISION)
            assert ready(old_base) == (200, first_release.REVISION)
            load.go_on(SOME_SECONDS)

        assert_it_adds_up(url, load)

    assert_nobody_waited_long(load)
    assert revision(url) == first_release.REVISION
    audit = old.srm(owner, "audit")
    assert (audit.returncode, "clean" in audit.stdout) == (0, True), audit
