"""The database is slow, locked, full, or out of connections: answers come in time, and the API recovers soon.

There are many more clients than threads. No client may have to wait until all before it have timed out.
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

from srm.db.database import CONNECTIONS, Database
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
from tests.support import Factory, http, wait_until
from tests.tools import as_root

CROWD = 20 * WORKERS * THREADS
DISK_BYTES = 160 * 2**20
"""Room for a cluster and its first WAL files, and little more."""


class Network:
    """A TCP port that forwards to the Unix socket of a server. Bytes arrive `delay_seconds` later."""

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
        """Delay packets by this time in each direction, during the block."""
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
    """The API for all tests without a disk of their own. Each test leaves it working."""

    def through_a_network(server: EmbeddedServer) -> str:
        folder = str(make_url(server.url).query["host"])
        networks.append(Network(f"{folder}/.s.PGSQL.5432"))
        return f"postgresql://srm@127.0.0.1:{networks[0].port}/srm"

    # Not below pytest's own folder: each run of pytest closes that to the user that the server runs as.
    with TemporaryDirectory(prefix="srm-tests-") as folder, service_on(Path(folder), through_a_network) as service:
        yield service


@pytest.fixture
def network(service: Service, networks: list[Network]) -> Network:
    """The network between the API and its database."""
    return networks[0]


@pytest.fixture
def session_id(service: Service) -> str:
    """Id of an active session."""
    answer = service.ask("set up")
    assert answer.session_id is not None, answer
    return answer.session_id


def keep_alive(service: Service, session_id: str) -> Answer:
    with Player(service.base, "a", "tv") as player:
        return player.keep_alive(session_id)


def seconds_of(answer: Answer) -> float:
    return answer.answered_at - answer.sent_at


def assert_in_time(answers: list[Answer]) -> None:
    """Assert that each answer is usual or 503 SRM-0010, and came in the time of docs/design.md, "Deadlines"."""
    for answer in answers:
        if answer.status not in AS_USUAL.values():
            assert (answer.status, answer.error_code) == (503, "SRM-0010"), answer
            assert int(answer.headers["Retry-After"]) >= 1
    assert max(map(seconds_of, answers)) < PROMISED_SECONDS + SLACK_SECONDS


def assert_alive(service: Service) -> None:
    """Wait until the API is ready again; it is, at the latest, when its requests in progress have ended."""
    answer = http("GET", f"{service.base}/healthz", timeout=PROMISED_SECONDS + SLACK_SECONDS)
    assert answer.status_code == 200


def assert_well_soon(service: Service) -> None:
    wait_until(service.is_well, timeout=RECOVERY_SECONDS)


class TestPackets:
    def test_requests_succeed_when_packets_are_a_little_late(
        self, service: Service, network: Network, session_id: str
    ) -> None:
        for _ in range(10):  # Opens the connections of all workers, which takes several round trips each.
            service.ask_all()
        with network.late(0.1):
            assert keep_alive(service, session_id).status == 200
            assert {route: answer.status for route, answer in service.ask_all().items()} == AS_USUAL

    def test_requests_are_answered_in_time_when_packets_are_late(self, service: Service, network: Network) -> None:
        """Some answers need several round trips, and some a new connection."""
        with network.late(0.5):
            answers = [answer for _ in range(3) for answer in service.ask_all().values()]
            assert_alive(service)

        assert_in_time(answers)
        assert_well_soon(service)

    @pytest.mark.parametrize("seconds", [2, math.inf])
    def test_requests_get_503_in_time_when_packets_are_too_late(
        self, service: Service, network: Network, seconds: float
    ) -> None:
        with network.late(seconds):
            answers = [service.ask_all(), service.ask_all()]
            assert_alive(service)

        for answer in answers:
            assert_unavailable(answer)
        assert_well_soon(service)

    def test_a_crowd_is_answered_in_time_when_packets_are_late(
        self, service: Service, network: Network, session_id: str
    ) -> None:
        with network.late(0.1):
            answers = at_once(CROWD, lambda *_: keep_alive(service, session_id))

        assert_in_time(answers)
        assert {200} <= {answer.status for answer in answers} <= {200, 503}
        assert_well_soon(service)


class TestLocks:
    """Somebody with psql holds locks."""

    def test_requests_get_503_while_the_table_is_locked(self, service: Service) -> None:
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
        """Each client asks again as soon as it has an answer. Some hang up before that, again and again."""
        unlock_at = time.monotonic() + 6

        def ask_again_and_again(number: int, _: threading.Barrier) -> list[Answer]:
            answers = []
            while time.monotonic() < unlock_at:
                if number % 2 == 0:
                    answers.append(keep_alive(service, session_id))
                else:
                    with suppress(httpx.TimeoutException):
                        http("PUT", f"{service.base}/srm/v1/sessions/{session_id}", headers=HEADERS, timeout=0.5)
            return answers

        with psycopg.connect(service.server.url) as somebody:
            somebody.execute("LOCK TABLE srm.sessions IN ACCESS EXCLUSIVE MODE")
            answers = at_once(CROWD, ask_again_and_again)
            backends = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'srm-api'"
            (connections,) = somebody.execute(backends).fetchone() or (0,)

        assert_in_time([answer for of_one in answers for answer in of_one])
        assert connections <= 2 * CONNECTIONS * WORKERS  # some may be given up, and still wait for the lock
        assert_well_soon(service)

    def test_a_locked_account_delays_no_other_account(self, service: Service) -> None:
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
    def test_requests_get_503_while_others_hold_all_connections(self, service: Service) -> None:
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
    """A small disk for this test."""
    with TemporaryDirectory(prefix="srm-tests-") as folder:
        subprocess.run([*as_root(), "mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "srm-test", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run([*as_root(), "umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Fill the rest of the disk."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    return ballast


class TestDisk:
    """The disk of the database is full."""

    def test_keep_alives_go_on_and_setups_get_503_on_a_full_disk(self, disk: Path) -> None:
        """The write-ahead log still has room: its files have their full size from the beginning."""
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

    def test_requests_get_503_while_the_database_cannot_write_its_wal(self, disk: Path) -> None:
        """PostgreSQL stops itself then. What it acknowledged is there after its restart."""
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
