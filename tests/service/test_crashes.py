"""kill -9 of any process under load: acknowledged setups and teardowns hold, and the service recovers by itself.

docs/design.md, Invariants 4 and 6.
"""

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from srm.clients.tokens import issue
from srm.config import load
from srm.db import schema
from srm.db.database import Database
from srm.db.embedded import EmbeddedServer
from srm.errors import StartupError
from srm.operators import demo
from srm.reaper.runner import Reaper
from tests import support
from tests.concurrency.players import LOST, TEST_DEADLINE_SECONDS, Answer, Player
from tests.support import Factory, http, wait_until

ACCOUNTS = [f"account-{index}" for index in range(4)]
DEVICES = ["tv", "phone", "tablet"]
TIMEOUT_SECONDS = 1
PAUSE_SECONDS = 0.05
"""Between two requests of a player."""

GRACE_SECONDS = 3
"""From this time after the return of the database, no request may fail."""

BACK_SECONDS = 20
"""A killed process is back within this time: two seconds, and allowance for a busy machine."""


class Load:
    """More players than slots, and the answers that they got."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._done = threading.Event()
        self.answers: list[Answer] = []
        self.admitted: list[str] = []
        self.torn_down: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the players play during the block."""
        with ThreadPoolExecutor(len(ACCOUNTS) * len(DEVICES)) as threads:
            players = [threads.submit(self._play, account, device) for account in ACCOUNTS for device in DEVICES]
            try:
                yield
            finally:
                self._done.set()
        for player in players:
            player.result()

    def wait_for_more(self, count: int = 10) -> None:
        """Wait until this many more setups and teardowns have been answered."""
        admitted, torn_down = len(self.admitted), len(self.torn_down)
        wait_until(lambda: min(len(self.admitted) - admitted, len(self.torn_down) - torn_down) >= count)

    def _play(self, account: str, device: str) -> None:
        with Player(self._base, account, device) as player:
            while not self._done.is_set():
                answer = self._ask(player.set_up)
                if answer is None or answer.status != 200 or answer.session_id is None:
                    continue
                self.admitted.append(answer.session_id)
                if random.random() < 0.1:
                    continue  # goes away without a word
                for _ in range(random.randint(0, 3)):
                    self._ask(partial(player.keep_alive, answer.session_id))
                self._tear_down(player, answer.session_id)

    def _tear_down(self, player: Player, session_id: str) -> None:
        """Repeat the request until there is an answer, as clients do."""
        deadline = time.monotonic() + TEST_DEADLINE_SECONDS
        while time.monotonic() < deadline:
            answer = self._ask(partial(player.tear_down, session_id))
            if answer is not None and answer.status == 200:
                self.torn_down.append(session_id)
            if answer is not None and answer.status != 503:
                assert answer.status in (200, 410), answer
                return

    def _ask(self, question: Callable[[], Answer]) -> Answer | None:
        """Note and return the answer; return None when the connection was lost."""
        try:
            answer = question()
        except LOST:
            time.sleep(PAUSE_SECONDS)
            return None
        self.answers.append(answer)
        time.sleep(PAUSE_SECONDS)
        return answer

    def failed_between(self, start: float, end: float) -> list[Answer]:
        """List the 5xx answers to requests sent after `start` and answered before `end`."""
        return [
            answer
            for answer in self.answers
            if answer.status >= 500 and start < answer.sent_at and answer.answered_at < end
        ]


def make_accounts(database: Database) -> None:
    factory = Factory(database)
    for account in ACCOUNTS:
        factory.account(account, *DEVICES, max_sessions=2, timeout_seconds=TIMEOUT_SECONDS)


def assert_kept_its_word(load: Load, url: str) -> None:
    """Assert that every acknowledged setup and teardown is in the tables, and that no limit was exceeded."""
    database = Database(url, application_name="srm-tests")
    found = support.rows(
        database,
        "SELECT session_id::text, end_reason FROM srm.sessions UNION ALL "
        "SELECT session_id::text, end_reason FROM srm.session_history",
    )
    database.dispose()
    reasons = dict(found)
    assert len(reasons) == len(found)
    assert set(load.admitted) <= reasons.keys()
    assert {reasons[session_id] for session_id in load.torn_down} == {"teardown"}
    assert {answer.status for answer in load.answers} <= {200, 410, 503}
    support.assert_audit_clean(url)


def test_killed_workers_and_reapers_lose_no_acknowledged_session(clone: Callable[[], str], tmp_path: Path) -> None:
    url = clone()
    database = Database(url, application_name="srm-tests")
    make_accounts(database)

    def start_reaper() -> AbstractContextManager[support.Process]:
        return support.reaper(
            url, tmp_path / "reaper.log", interval=0.1, variables={"SRM_ENDED_RETENTION_SECONDS": "1"}
        )

    with support.api(url, tmp_path / "api.log", workers=3) as (base, gunicorn):
        load = Load(base)
        master = psutil.Process(gunicorn.popen.pid)
        with load.running():
            for _ in range(4):
                with start_reaper() as reaper:
                    load.wait_for_more()
                    worker = random.choice(master.children())
                    worker.kill()
                    load.wait_for_more()
                    reaper.stop(signal.SIGKILL)
            wait_until(lambda: len(master.children()) == 3)
            load.wait_for_more()
        assert gunicorn.popen.poll() is None
    with start_reaper():
        wait_until(lambda: not support.rows(database, "SELECT FROM srm.sessions"))  # all over, all in the history
    database.dispose()

    assert_kept_its_word(load, url)


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """A migrated database server for one test."""
    with EmbeddedServer(data_dir) as server:
        schema.upgrade(server.url)
        database = Database(server.url, application_name="srm-tests")
        Reaper(database, ended_retention_seconds=300, history_retention_days=90).make_partitions()
        factory = Factory(database)
        factory.content("film")
        factory.product("basic", ("COD", "film"))
        make_accounts(database)
        database.dispose()
        yield server


def start_again(server: EmbeddedServer) -> None:
    """Start the server again, as `srm serve` does; the old process may not have ended yet."""

    def has_started() -> bool:
        try:
            server.ensure_running()
        except StartupError:
            return False
        return True

    wait_until(has_started)


def wait_until_connectable(url: str) -> float:
    """Wait until the database accepts connections; return the time."""
    deadline = time.monotonic() + TEST_DEADLINE_SECONDS
    while True:
        try:
            with psycopg.connect(url, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
            return time.time()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_a_crash_of_the_database_loses_no_acknowledged_session(
    server: EmbeddedServer, data_dir: Path, tmp_path: Path
) -> None:
    failures: dict[str, list[Answer]] = {}
    with support.api(server.url, tmp_path / "api.log", workers=3) as (base, _):
        load = Load(base)
        with load.running(), support.reaper(server.url, tmp_path / "reaper.log", interval=0.1):
            for victim in ("backend", "postmaster"):
                load.wait_for_more()
                if victim == "postmaster":
                    kill_postmaster(data_dir)
                    start_again(server)
                else:
                    kill_backend(server.url)
                back_at = wait_until_connectable(server.url)
                wait_until(lambda at=back_at: time.time() > at + 2 * GRACE_SECONDS)
                load.wait_for_more()
                failures[victim] = load.failed_between(back_at + GRACE_SECONDS, time.time())

    assert_kept_its_word(load, server.url)
    assert failures == {"backend": [], "postmaster": []}


def kill_postmaster(data_dir: Path) -> None:
    postmaster = support.postmaster(data_dir)
    postmaster.kill()
    wait_until(lambda: not postmaster.is_running() or postmaster.status() == psutil.STATUS_ZOMBIE)


def kill_backend(url: str) -> None:
    """The postmaster then ends all other backends and recovers."""
    database = Database(url, application_name="srm-tests")
    backends = "SELECT pid FROM pg_stat_activity WHERE application_name = 'srm-api'"
    backend = psutil.Process(support.rows(database, backends)[0].pid)
    database.dispose()
    backend.kill()
    wait_until(lambda: not backend.is_running())


def of_data_dir(data_dir: Path) -> list[psutil.Process]:
    """List the processes of a data directory, by their environment or working directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and (
                process.environ().get("SRM_DATA_DIR") == str(data_dir) or Path(process.cwd()).is_relative_to(data_dir)
            ):
                found.append(process)
    return found


@pytest.fixture
def served(data_dir: Path, tmp_path: Path) -> Iterator[tuple[str, support.Process, Path]]:
    """Run `srm serve` with an embedded database; yield base URL, supervisor and data directory."""
    bind = f"127.0.0.1:{support.free_port()}"
    command = support.python_m("srm.cli", "serve", "--demo", "--bind", bind, "--workers", "2")
    try:
        with support.running(
            command,
            tmp_path / "serve.log",
            variables={"SRM_DATA_DIR": str(data_dir), "SRM_REAPER_INTERVAL_SECONDS": "0.2"},
        ) as process:
            wait_until(lambda: "SRM is ready" in process.text() or process.popen.poll() is not None, timeout=60)
            assert process.popen.poll() is None, process.text()
            yield f"http://{bind}", process, data_dir
    finally:
        for left in of_data_dir(data_dir):
            with suppress(psutil.Error):
                left.kill()


def test_the_supervisor_restarts_every_process_that_dies_and_stops_all(
    served: tuple[str, support.Process, Path],
) -> None:
    base, supervisor, data_dir = served
    headers = {"Client-Token": issue(load(data_dir=data_dir), demo.ACCOUNT, demo.DEVICE, 3600)}
    body = {"content": {"contentID": demo.CONTENT_ID, "contentType": demo.CONTENT_TYPE}}

    def child(word: str) -> psutil.Process | None:
        for process in psutil.Process(supervisor.popen.pid).children():
            with suppress(psutil.Error):
                if word in process.cmdline():
                    return process
        return None

    def plays() -> bool:
        """Send several requests on new connections, so that more than one worker answers."""
        try:
            for _ in range(6):
                answer = http("POST", f"{base}/srm/v1/sessions", json=body, headers=headers, timeout=3)
                session_id = answer.json()["successResponse"]["sessionId"]
                assert http("DELETE", f"{base}/srm/v1/sessions/{session_id}", headers=headers).status_code == 200
        except (httpx.HTTPError, KeyError, AssertionError):
            return False
        return True

    wait_until(plays, timeout=BACK_SECONDS)
    before = {"postmaster": support.postmaster(data_dir), "reaper": child("reaper"), "gunicorn": child("gunicorn")}
    for name, victim in before.items():
        assert victim is not None
        with idle_connections(base):
            victim.kill()
            if name == "postmaster":
                wait_until(lambda: is_other(before["postmaster"], data_dir))
            else:
                wait_until(lambda name=name, victim=victim: child(name) not in (None, victim))
            wait_until(plays, timeout=BACK_SECONDS)
    assert supervisor.stop(signal.SIGTERM) == 0, supervisor.text()
    assert of_data_dir(data_dir) == []


def test_the_api_stops_soon_while_clients_keep_idle_connections(clone: Callable[[], str], tmp_path: Path) -> None:
    url = clone()
    with support.api(url, tmp_path / "api.log", workers=2) as (base, gunicorn), idle_connections(base):
        told_at = time.monotonic()

        assert gunicorn.stop(signal.SIGTERM) == 0
        assert time.monotonic() - told_at < BACK_SECONDS


@contextmanager
def idle_connections(base: str) -> Iterator[None]:
    """Keep idle connections open to every worker, as nginx does, during the block."""
    with ExitStack() as stack:
        for _ in range(8):
            player = stack.enter_context(Player(base, "a", "tv"))
            assert player.request("GET", "/healthz").status == 200
        yield


def is_other(victim: psutil.Process | None, data_dir: Path) -> bool:
    """True when a new database server runs in place of the old one."""
    try:
        return bool(support.postmaster(data_dir) != victim)
    except (psutil.Error, OSError, ValueError):
        return False
