"""A process behind a proxy that is told to stop: it says so, answers all that still comes, and then ends.

Without a proxy nobody has to be told, and it stops at once: tests/service/test_crashes.py, test_serve.py.
"""

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from srm.db.database import Database
from srm.serve.gunicorn_conf import DRAIN_SECONDS, graceful_timeout
from tests.concurrency.players import Player
from tests.support import Factory, api

SLACK_SECONDS = 3
"""A busy machine, and the second in which gunicorn looks round."""


@pytest.fixture
def url(clone: Callable[[], str]) -> str:
    url = clone()
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", max_sessions=None)
    database.dispose()
    return url


def test_it_answers_all_that_comes_while_it_drains(url: str, tmp_path: Path) -> None:
    with (
        api(url, tmp_path / "log", workers=1, variables={"SRM_TRUSTED_PROXIES": "1"}) as (base, gunicorn),
        Player(base, "a", "tv") as first,
        Player(base, "a", "tv") as second,
        Player(base, "a", "tv") as third,
    ):
        for player in (first, second):  # idle connections, as those of nginx
            assert player.request("GET", "/readyz").status == 200
        told_at = time.monotonic()
        gunicorn.popen.send_signal(signal.SIGTERM)
        time.sleep(DRAIN_SECONDS / 2)

        setups = [first.set_up(), third.set_up()]  # the other one connects only now
        ready = second.request("GET", "/readyz")

        assert [answer.session_id is not None for answer in setups] == [True, True]
        assert [answer.headers["Connection"] for answer in (*setups, ready)] == ["close"] * 3
        assert (ready.status, ready.error_code) == (503, "SRM-0010")
        assert "draining" in ready.json["errorResponse"]["errorMessage"]
        assert gunicorn.popen.wait(graceful_timeout) == 0
        assert DRAIN_SECONDS <= time.monotonic() - told_at < DRAIN_SECONDS + SLACK_SECONDS


def test_what_waits_for_a_worker_is_not_reset(url: str, tmp_path: Path) -> None:
    """Connections that the system has taken already, with their requests, when the process is told to stop."""
    with api(url, tmp_path / "log", workers=1) as (base, gunicorn):
        (worker,) = psutil.Process(gunicorn.popen.pid).children()
        worker.suspend()
        waiting = [ask_readiness(base) for _ in range(20)]
        gunicorn.popen.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        worker.resume()

        assert [answer_on(connection)[:9] for connection in waiting] == [b"HTTP/1.1 "] * 20
        assert gunicorn.popen.wait(graceful_timeout) == 0


def ask_readiness(base: str) -> socket.socket:
    address = urlsplit(base)
    connection = socket.create_connection((address.hostname, address.port), timeout=20)
    connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: srm\r\n\r\n")
    return connection


def answer_on(connection: socket.socket) -> bytes:
    with connection:
        return connection.recv(4096)
