"""The database is stopped, restarted, frozen or silent: requests get 503 in time, and the API recovers by itself.

A frozen server keeps its connections open and answers nothing, like a network that drops packets.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import psycopg
import pytest

from srm.api.parts import parts_of
from srm.app import create_app
from srm.config import Settings
from srm.db import schema
from srm.db.database import Database
from srm.db.embedded import EmbeddedServer
from tests import support
from tests.concurrency.players import Answer, Player, at_once
from tests.support import ROUTES, SETUP, Factory, wait_until

WORKERS, THREADS = 2, 4
PROMISED_SECONDS = 3
SLACK_SECONDS = 2
"""Allowance for a busy machine."""

RECOVERY_SECONDS = 20
"""Time in which everything works again: a few seconds, and allowance for a busy machine."""

AS_USUAL = {"set up": 200, "keep alive": 404, "tear down": 404, "ready": 200}


@dataclass(frozen=True)
class Service:
    """The API on a database server of its own, which tests stop and freeze."""

    base: str
    server: EmbeddedServer
    data_dir: Path
    log: Path

    def ask(self, route: str) -> Answer:
        """Send one request on a new connection, so that any worker may take it."""
        with Player(self.base, "a", "tv") as player:
            return player.set_up() if route == "set up" else player.request(*ROUTES[route])

    def ask_all(self) -> dict[str, Answer]:
        """Send a request to every route at once. Each worker has as many threads."""
        names = list(ROUTES)
        return dict(zip(names, at_once(len(names), lambda index, _: self.ask(names[index])), strict=True))

    def ask_everywhere(self) -> list[tuple[str, int]]:
        """Send many requests at once, so that every thread has some; return route and HTTP status of each."""
        routes = [route for route in ROUTES for _ in range(6 * WORKERS)]

        def work(index: int, barrier: threading.Barrier) -> tuple[str, int]:
            barrier.wait()
            return routes[index], self.ask(routes[index]).status

        return at_once(len(routes), work)

    def is_well(self) -> bool:
        return all(status == AS_USUAL[route] for route, status in self.ask_everywhere())

    def stop_database(self) -> None:
        support.stop_postgres(self.server, self.data_dir)

    @contextmanager
    def frozen_database(self) -> Iterator[None]:
        """Stop all processes of the server with SIGSTOP during the block."""
        postmaster = support.postmaster(self.data_dir)
        postmaster.suspend()  # first, so that it starts no others
        processes = [postmaster, *postmaster.children()]
        try:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()


@contextmanager
def service_on(
    data_dir: Path, url_of: Callable[[EmbeddedServer], str] = lambda server: server.url
) -> Iterator[Service]:
    """Run the API on a server in this folder, at this URL."""
    with EmbeddedServer(data_dir) as server:
        schema.upgrade(server.url)
        database = Database(server.url, application_name="srm-tests")
        factory = Factory(database)
        factory.content("film")
        factory.product("basic", ("COD", "film"))
        factory.account("a", max_sessions=None)
        database.dispose()
        with TemporaryDirectory(prefix="srm-tests-") as elsewhere, ExitStack() as stack:
            log = Path(elsewhere) / "api.log"  # not on the disk of the database
            base, _ = stack.enter_context(support.api(url_of(server), log, workers=WORKERS))
            service = Service(base, server, data_dir, log)
            wait_until(service.is_well)  # every thread has its connections
            yield service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The API for all tests here. Each test leaves it working."""
    # Not below pytest's own folder: each run of pytest closes that to the user that the server runs as.
    with TemporaryDirectory(prefix="srm-tests-") as folder, service_on(Path(folder)) as service:
        yield service


def assert_unavailable(answers: dict[str, Answer]) -> None:
    """Assert that every route answers 503 SRM-0010 in the time of docs/design.md, "Deadlines"."""
    for route, answer in answers.items():
        assert (answer.status, answer.error_code) == (503, "SRM-0010"), route
        assert int(answer.headers["Retry-After"]) >= 1, route
        assert answer.answered_at - answer.sent_at < PROMISED_SECONDS + SLACK_SECONDS, route


def test_requests_get_503_while_the_database_is_stopped_and_succeed_afterwards(service: Service) -> None:
    service.stop_database()
    for _ in range(5):
        assert_unavailable(service.ask_all())

    service.server.ensure_running()

    assert service.is_well()


def test_a_restart_of_an_idle_database_fails_no_request(service: Service) -> None:
    for _ in range(3):
        service.stop_database()
        service.server.ensure_running()

        assert [(route, status) for route, status in service.ask_everywhere() if status != AS_USUAL[route]] == []


def test_requests_get_503_while_the_database_is_frozen_and_succeed_afterwards(service: Service) -> None:
    with service.frozen_database():
        first = service.ask_all()
        second = service.ask_all()  # some on connections that were given up, some on new ones

    wait_until(service.is_well, timeout=RECOVERY_SECONDS)
    assert_unavailable(first)
    assert_unavailable(second)


def test_many_requests_to_a_frozen_database_get_503_in_time(service: Service) -> None:
    """There are more requests than threads. Requests in the queue must not wait for all before them to time out."""
    with service.frozen_database():
        answers = at_once(4 * WORKERS * THREADS, lambda _, __: service.ask("keep alive"))

    wait_until(service.is_well, timeout=RECOVERY_SECONDS)
    assert {answer.status for answer in answers} == {503}
    assert max(answer.answered_at - answer.sent_at for answer in answers) < PROMISED_SECONDS + SLACK_SECONDS


def test_a_setup_that_waited_for_a_frozen_database_too_long_takes_no_slot(service: Service) -> None:
    """The client got 503. The setup must not be finished afterwards."""
    sessions = "SELECT count(*) FROM srm.sessions"
    before = count(service, sessions)
    with service.frozen_database():
        assert service.ask("set up").status == 503

    wait_until(lambda: service.ask("ready").status == 200)
    wait_until(lambda: count(service, "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'") == 0)
    assert count(service, sessions) == before


def count(service: Service, query: str) -> int:
    with psycopg.connect(service.server.url) as connection:
        (number,) = connection.execute(query).fetchone() or (0,)
    return int(number)


def test_a_database_that_accepts_connections_and_never_answers_gives_503_in_time(tmp_path: Path) -> None:
    """The kernel accepts the connection, and no byte ever comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://srm@127.0.0.1:{silent.getsockname()[1]}/srm"
        app = create_app(Settings(database_url=url, token_secret=support.SECRET, data_dir=tmp_path))
        names = list(ROUTES)
        headers = {"Client-Token": support.issue_token("a", "tv")}

        def work(index: int, _: threading.Barrier) -> tuple[int, float]:
            method, path = ROUTES[names[index]]
            began_at = time.monotonic()
            answer = app.test_client().open(path, method=method, json=SETUP, headers=headers)
            return answer.status_code, time.monotonic() - began_at

        answers = at_once(len(names), work)
    parts_of(app).database.dispose()

    assert [status for status, _ in answers] == [503] * len(names)
    assert max(seconds for _, seconds in answers) < PROMISED_SECONDS + SLACK_SECONDS
