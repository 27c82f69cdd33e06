"""A stop behind a proxy: the API says that it drains, answers every request that still comes, and then ends.

Without a proxy the API stops at once: tests/service/test_crashes.py, test_serve.py.
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
"""Allowance for a busy machine, and for gunicorn, which looks once a second."""


@pytest.fixture
def url(clone: Callable[[], str]) -> str:
    url = clone()
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", max_sessions=None)
    database.dispose()
    return url


def test_a_draining_worker_answers_every_request_and_says_that_it_drains(url: str, tmp_path: Path) -> None:
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


def test_connections_in_the_backlog_are_answered_at_a_stop(url: str, tmp_path: Path) -> None:
    """The system has accepted them with their requests before SIGTERM, and the worker has not."""
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
