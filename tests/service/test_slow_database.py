"""The database is slow, held up, full, or lets nobody in: answers in time, no queue that grows, and soon well again.

Many more clients than threads ask: nobody may have to wait until all before him have given up.
"""

import asyncio
import math
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psycopg
import pytest
from sqlalchemy.engine import make_url

from srm.db.database import Database
from srm.db.embedded import EmbeddedServer
from tests import support
from tests.concurrency.players import Answer, Player, at_once
from tests.service.test_outage import (
    AS_USUAL,
    PROMISED_SECONDS,
    RECOVERY_SECONDS,
    SLACK_SECONDS,
    THREADS,
    WORKERS,
    Service,
    assert_unavailable,
    service_on,
)
from tests.support import Factory, wait_until
from tests.tools import as_root

pytestmark = pytest.mark.alone

CROWD = 20 * WORKERS * THREADS
DISK_BYTES = 160 * 2**20
"""A cluster and its first WAL, and little more."""


class Network:
    """TCP, on a port of its own, to the Unix socket of a server. What is sent arrives `delay_seconds` later."""

    def __init__(self, socket_path: str) -> None:
        self.delay_seconds = 0.0
        self._socket_path = socket_path
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    @contextmanager
    def late(self, seconds: float) -> Iterator[None]:
        """Meanwhile packets need so long, each way."""
        self.delay_seconds = seconds
        try:
            yield
        finally:
            self.delay_seconds = 0

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(self._socket_path)
        try:
            await asyncio.gather(self._carry(reader, to_server), self._carry(from_server, writer))
        finally:
            to_server.close()
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                sent_at, data = await sent.get()
                while time.monotonic() < sent_at + self.delay_seconds:
                    await asyncio.sleep(0.01)
                if not data:
                    break
                writer.write(data)
            writer.close()

        delivery = asyncio.create_task(deliver())
        with suppress(OSError):
            while data := await reader.read(65536):
                sent.put_nowait((time.monotonic(), data))
        sent.put_nowait((time.monotonic(), b""))
        await delivery


@pytest.fixture(scope="module")
def networks() -> Iterator[list[Network]]:
    networks: list[Network] = []
    yield networks
    for network in networks:
        network.close()


@pytest.fixture(scope="module")
def service(networks: list[Network]) -> Iterator[Service]:
    """One for all tests but those with a disk of their own: each leaves it well."""

    def through_a_network(server: EmbeddedServer) -> str:
        folder = str(make_url(server.url).query["host"])
        networks.append(Network(f"{folder}/.s.PGSQL.5432"))
        return f"postgresql://srm@127.0.0.1:{networks[0].port}/srm"

    # Not below pytest's own folder: each run of pytest closes that to the user that the server runs as.
    with TemporaryDirectory(prefix="srm-tests-") as folder, service_on(Path(folder), through_a_network) as service:
        yield service


@pytest.fixture
def network(service: Service, networks: list[Network]) -> Network:
    """What lies between the service and its database."""
    return networks[0]


@pytest.fixture
def session_id(service: Service) -> str:
    """Of a session that is alive."""
    answer = service.ask("set up")
    assert answer.session_id is not None, answer
    return answer.session_id


def keep_alive(service: Service, session_id: str) -> Answer:
    with Player(service.base, "a", "tv") as player:
        return player.keep_alive(session_id)


def seconds_of(answer: Answer) -> float:
    return answer.answered_at - answer.sent_at


def assert_in_time(answers: list[Answer]) -> None:
    """Each answer is one of the usual ones or 503 SRM-0010; none took longer than docs/design.md, "Deadlines"."""
    for answer in answers:
        if answer.status not in AS_USUAL.values():
            assert (answer.status, answer.error_code) == (503, "SRM-0010"), answer
            assert int(answer.headers["Retry-After"]) >= 1
    assert max(map(seconds_of, answers)) < PROMISED_SECONDS + SLACK_SECONDS


def assert_alive(service: Service) -> None:
    """The process says so, at the latest when the threads are through with what they have begun."""
    answer = httpx.get(f"{service.base}/healthz", timeout=PROMISED_SECONDS + SLACK_SECONDS)
    assert answer.status_code == 200


def assert_well_soon(service: Service) -> None:
    wait_until(service.is_well, timeout=RECOVERY_SECONDS)


class TestPackets:
    def test_it_works_on_when_they_are_a_little_late(self, service: Service, network: Network, session_id: str) -> None:
        with network.late(0.1):
            assert keep_alive(service, session_id).status == 200
            assert {route: answer.status for route, answer in service.ask_all().items()} == AS_USUAL

    def test_it_answers_in_time_when_they_are_late(self, service: Service, network: Network) -> None:
        """Some answers need more than one of them to go there and back, and some a new connection."""
        with network.late(0.5):
            answers = [answer for _ in range(3) for answer in service.ask_all().values()]
            assert_alive(service)

        assert_in_time(answers)
        assert_well_soon(service)

    @pytest.mark.parametrize("seconds", [2, math.inf])
    def test_it_gives_up_when_they_are_too_late(self, service: Service, network: Network, seconds: float) -> None:
        with network.late(seconds):
            answers = [service.ask_all(), service.ask_all()]
            assert_alive(service)

        for answer in answers:
            assert_unavailable(answer)
        assert_well_soon(service)

    def test_a_crowd_is_answered_in_time_when_they_are_late(
        self, service: Service, network: Network, session_id: str
    ) -> None:
        with network.late(0.1):
            answers = at_once(CROWD, lambda *_: keep_alive(service, session_id))

        assert_in_time(answers)
        assert {answer.status for answer in answers} == {200, 503}
        assert_well_soon(service)


class TestLocks:
    """Held by somebody with psql."""

    def test_it_is_unavailable_while_the_table_is_locked(self, service: Service) -> None:
        with psycopg.connect(service.server.url) as somebody:
            somebody.execute("LOCK TABLE srm.sessions IN ACCESS EXCLUSIVE MODE")
            answers = service.ask_all()
            assert_alive(service)

        assert answers.pop("ready").status == 200
        assert_unavailable(answers)
        assert_well_soon(service)

    def test_a_crowd_is_answered_in_time_however_long_the_table_is_locked(
        self, service: Service, session_id: str
    ) -> None:
        """Each asks again as soon as it is answered; and some are gone before that, again and again."""
        unlock_at = time.monotonic() + 6

        def ask_again_and_again(number: int, _: threading.Barrier) -> list[Answer]:
            answers = []
            while time.monotonic() < unlock_at:
                if number % 2 == 0:
                    answers.append(keep_alive(service, session_id))
                else:
                    with suppress(httpx.TimeoutException):
                        httpx.put(f"{service.base}/srm/v1/sessions/{session_id}", headers=HEADERS, timeout=0.5)
            return answers

        with psycopg.connect(service.server.url) as somebody:
            somebody.execute("LOCK TABLE srm.sessions IN ACCESS EXCLUSIVE MODE")
            answers = at_once(CROWD, ask_again_and_again)
            backends = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'srm-api'"
            (connections,) = somebody.execute(backends).fetchone() or (0,)

        assert_in_time([answer for of_one in answers for answer in of_one])
        assert connections <= 2 * 3 * WORKERS * THREADS  # some may be given up, and still wait for the lock
        assert_well_soon(service)

    def test_only_the_account_waits_whose_row_is_locked(self, service: Service) -> None:
        database = Database(service.server.url, application_name="srm-tests")
        Factory(database).account("held")
        Factory(database).account("free", max_sessions=None)
        database.dispose()

        def set_up(account: str) -> Answer:
            with Player(service.base, account, "tv") as player:
                return player.set_up()

        with psycopg.connect(service.server.url) as somebody:
            somebody.execute("SELECT FROM srm.accounts WHERE account_id = 'held' FOR UPDATE")
            held, *free = at_once(8, lambda index, _: set_up("held" if index == 0 else "free"))

        assert_unavailable({"set up": held})
        assert {answer.status for answer in free} == {200}
        assert all(answer.session_id for answer in free)
        assert set_up("held").session_id


class TestConnections:
    def test_it_is_unavailable_while_others_have_them_all(self, service: Service) -> None:
        with ExitStack() as stack:

            def take_all() -> None:
                with suppress(psycopg.OperationalError):
                    while True:
                        stack.enter_context(psycopg.connect(service.server.url, application_name="greedy"))

            somebody = stack.enter_context(psycopg.connect(service.server.url, autocommit=True))
            take_all()
            cut = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'srm-api'"
            assert len(somebody.execute(cut).fetchall()) > 0
            take_all()
            answers = [service.ask_all() for _ in range(3)]
            assert_alive(service)

        for answer in answers:
            assert_unavailable(answer)
        assert_well_soon(service)


HEADERS = {"Client-Token": support.issue_token("a", "tv")}


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small one of its own."""
    with TemporaryDirectory(prefix="srm-tests-") as folder:
        subprocess.run([*as_root(), "mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "srm-test", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run([*as_root(), "umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Take what is left of it."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    return ballast


class TestDisk:
    """Full."""

    def test_who_watches_goes_on_and_new_ones_are_told_to_wait(self, disk: Path) -> None:
        """There is still room in the write-ahead log, whose files have their size from the beginning."""
        with service_on(disk) as service:
            session_id = str(service.ask("set up").session_id)
            ballast = fill(disk)

            def is_refused() -> bool:
                answer = service.ask("set up")
                if answer.status != 503:
                    return False
                assert_unavailable({"set up": answer})
                return True

            wait_until(is_refused)
            kept = keep_alive(service, session_id)
            ballast.unlink()

            assert kept.status == 200
            assert "No space left on device" in service.log.read_text()
            assert_well_soon(service)

    def test_it_is_unavailable_while_the_database_cannot_write_its_log(self, disk: Path) -> None:
        """PostgreSQL stops itself then. What it has acknowledged is there when it is back."""
        with service_on(disk) as service:
            session_id = str(service.ask("set up").session_id)
            ballast = fill(disk)
            with suppress(psycopg.OperationalError), psycopg.connect(service.server.url, autocommit=True) as connection:
                while True:
                    connection.execute("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000))")
            answers = [service.ask_all() for _ in range(3)]
            assert_alive(service)
            ballast.unlink()
            service.server.ensure_running()

            for answer in answers:
                assert_unavailable(answer)
            assert_well_soon(service)
            assert keep_alive(service, session_id).status == 200
