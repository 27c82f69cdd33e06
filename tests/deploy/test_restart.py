"""Reloads and restarts under load, behind nginx: no viewer notices.

docs/design.md, Invariant 6: any process may die at any time.
"""

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from srm.db.database import Database
from srm.serve.gunicorn_conf import DRAIN_SECONDS, graceful_timeout, keepalive
from tests import support
from tests.deploy.service import NGINX, Nginx, instance, nginx, tls
from tests.support import SETUP, Factory, Process, free_port, issue_token, rows, wait_until

ANSWER_SECONDS = 3
"""Longest time until SRM answers a request (docs/design.md, "Deadlines")."""

FROM_TESTS = "set_real_ip_from 127.0.0.1;\nreal_ip_header Test-Address;\n"
"""Each viewer has an address of his own, so that no viewer meets the rate of an address."""

VIEWERS = 8
"""Number of viewers. Every other one opens a connection for each request."""

PAUSE_SECONDS = 0.06
"""Pause between two requests of a viewer. Together the viewers send some 100 requests a second."""


@pytest.fixture
def url(clone: Callable[[], str]) -> str:
    url = clone()
    database = Database(url, application_name="srm-tests")
    for number in range(VIEWERS):
        Factory(database).account(f"account-{number}", max_sessions=None)
    database.dispose()
    return url


class Viewers:
    """Viewers who play one session after the other until the end of the block, and note failures."""

    def __init__(self, front: Nginx) -> None:
        self._front = front
        self._done = threading.Event()
        self.failures: list[str] = []
        self.answered = 0
        self.slowest = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let the viewers play during the block."""
        with ThreadPoolExecutor(VIEWERS) as threads:
            viewers = [threads.submit(self._watch, number) for number in range(VIEWERS)]
            try:
                yield
            finally:
                self._done.set()
        for viewer in viewers:
            viewer.result()

    def _watch(self, number: int) -> None:
        address = urlsplit(self._front.world)
        connection = HTTPSConnection(
            str(address.hostname), address.port, timeout=20, context=tls(self._front.certificate)
        )
        session = 0
        while not self._done.is_set():
            session += 1
            headers = {  # A new token for each session, so that no viewer meets the rate of a token.
                "Client-Token": issue_token(f"account-{number}", "tv", nonce=session),
                "Test-Address": f"192.0.2.{number}",
            }
            body = self._ask(connection, number, headers, "POST", "/srm/v1/sessions", json.dumps(SETUP))
            if body is not None:
                path = f"/srm/v1/sessions/{json.loads(body)['successResponse']['sessionId']}"
                for method in ("PUT", "PUT", "DELETE"):
                    self._ask(connection, number, headers, method, path)
        connection.close()

    def _ask(
        self, connection: HTTPSConnection, number: int, headers: dict[str, str], method: str, path: str, body: str = ""
    ) -> bytes | None:
        """Return the body of a success; note anything else as a failure and return None."""
        time.sleep(PAUSE_SECONDS)
        started_at = time.monotonic()
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            self.failures.append(f"{method}: {error!r}")
            connection.close()
            return None
        if number % 2:
            connection.close()
        self.answered += 1
        self.slowest = max(self.slowest, time.monotonic() - started_at)
        if response.status != 200 or b"errorResponse" in content:
            took = time.monotonic() - started_at
            self.failures.append(f"{method} after {took:.1f} s: {response.status} {content.decode()}")
            return None
        return content


def assert_nobody_noticed(viewers: Viewers, url: str, at_least: int) -> None:
    """Assert that no request failed, that each session was torn down, and that no limit was exceeded."""
    assert viewers.failures == []
    assert viewers.answered > at_least
    database = Database(url, application_name="srm-tests")
    ends = rows(database, "SELECT end_reason, count(*) FROM srm.sessions GROUP BY 1")
    database.dispose()
    assert [reason for reason, _ in ends] == ["teardown"]
    support.assert_audit_clean(url)


def reload(gunicorn: Process) -> None:
    """Send HUP; wait until all workers are new."""
    master = psutil.Process(gunicorn.popen.pid)
    old = set(master.children())
    gunicorn.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: len(master.children()) == len(old) and not old & set(master.children()))


def test_nginx_closes_idle_connections_before_srm_does() -> None:
    """nginx is first in normal operation and while SRM drains. SRM then has time to finish its requests."""
    (seconds,) = re.findall(
        r"^upstream srm {.*?^ +keepalive_timeout (\d+)s;", text("srm.conf"), re.MULTILINE | re.DOTALL
    )
    (answer,) = re.findall(r"^proxy_read_timeout (\d+)s;", text("srm/common.conf"), re.MULTILINE)

    assert int(seconds) + 1 < DRAIN_SECONDS < keepalive
    assert graceful_timeout > DRAIN_SECONDS + 1 + ANSWER_SECONDS
    assert int(answer) > ANSWER_SECONDS


def text(name: str) -> str:
    return (NGINX / name).read_text()


def test_no_request_fails_in_reloads_stops_and_rolling_restarts(url: str, tmp_path: Path) -> None:
    binds = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    with ExitStack() as stack:

        def start(bind: str) -> Process:
            return stack.enter_context(instance(url, tmp_path / f"{bind}.log", bind))

        instances = {bind: start(bind) for bind in binds}
        front = stack.enter_context(nginx(tmp_path / "nginx", *binds, listen=FROM_TESTS))
        viewers = Viewers(front)
        started_at = time.monotonic()
        with viewers.watching():
            for bind in binds:
                reload(instances[bind])
            assert instances[binds[0]].stop() == 0  # the other one works alone for a second
            time.sleep(1)
            instances[binds[0]] = start(binds[0])
            for bind in reversed(binds):  # rolling: each is back before the next one goes
                assert instances[bind].stop() == 0
                instances[bind] = start(bind)

    print(f"{viewers.answered} requests in {time.monotonic() - started_at:.0f} s, slowest {viewers.slowest:.2f} s")
    assert_nobody_noticed(viewers, url, at_least=500)


def test_no_request_fails_when_workers_are_replaced(url: str, tmp_path: Path) -> None:
    """Workers are replaced after some hundred requests (max_requests). The others work until the new one is up."""
    bind = f"unix:{tmp_path}/api.sock"
    few = ["--workers", "3", "--max-requests", "100", "--max-requests-jitter", "400"]
    with (
        instance(url, tmp_path / "api.log", bind, *few),
        nginx(tmp_path / "nginx", bind, listen=FROM_TESTS) as front,
    ):
        viewers = Viewers(front)
        with viewers.watching():
            wait_until(lambda: replaced(tmp_path) >= 3, timeout=60)

    assert_nobody_noticed(viewers, url, at_least=400)


def replaced(folder: Path) -> int:
    """Number of workers that were started after the first three."""
    return (folder / "api.log").read_text().count("Booting worker") - 3


def test_no_request_fails_in_a_restart_under_systemd(url: str, tmp_path: Path) -> None:
    """srm-api.socket stays open while one SRM stops and the next one starts: requests wait instead of failing."""
    bind = f"unix:{tmp_path}/api.sock"
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(bind.removeprefix("unix:"))
        listener.listen(2048)

        def start(name: str) -> Process:
            return stack.enter_context(instance(url, tmp_path / name, bind, listener=listener))

        first = start("first.log")
        front = stack.enter_context(nginx(tmp_path / "nginx", bind, listen=FROM_TESTS))
        viewers = Viewers(front)
        with viewers.watching():
            time.sleep(1)
            assert first.stop() == 0
            start("second.log")
            time.sleep(1)

    assert "Listening at" in (tmp_path / "second.log").read_text()
    assert_nobody_noticed(viewers, url, at_least=50)
