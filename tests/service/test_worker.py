"""The worker serves all other clients while some are slow or silent, and answers at a stop what has arrived.

These tests run gunicorn with a small application, so that they say how long each request takes.
"""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from srm.serve.connection import MAX_REQUEST_BYTES
from tests.support import Process, free_port, python_m, running, wait_until

APPLICATION = """
import gc
import time

import gevent

from srm.serve import connection

connection.HEAD_SECONDS = connection.BODY_SECONDS = connection.WRITE_SECONDS = 2
connection.PARK_SECONDS = 0.2


def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = b"" if path == "/unread" else environ["wsgi.input"].read()
    if path == "/sleep":
        time.sleep(1)
    while path == "/stuck":
        pass
    if path == "/greenlets":
        body = b"x" * sum(isinstance(item, gevent.Greenlet) for item in gc.get_objects())
    answer = b"x" * 50_000_000 if path == "/large" else b"%d" % len(body)
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
"""

LATE_SECONDS = 2
"""Deadline of a client in APPLICATION."""

LARGE_BYTES = 50_000_000
"""Size of the answer to /large in APPLICATION."""

PARKED_SECONDS = 1
"""Time after which an idle connection in APPLICATION has no greenlet any more; less than LATE_SECONDS."""

SLACK_SECONDS = 3
"""Allowance for a busy machine."""

SLOW = 60
"""Clients of each kind that are slow at one time."""


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[int, Process]]:
    """Run the application in one worker; yield its port and the gunicorn master."""
    (folder / "application.py").write_text(APPLICATION)
    port = free_port()
    command = python_m("gunicorn", "--worker-class", "srm.serve.worker.Worker", "--bind", f"127.0.0.1:{port}")
    command += ["--keep-alive", "75", "--pythonpath", str(folder), *options, "application:app"]
    with running(command, folder / "log") as process:
        wait_until(lambda: is_up(port))
        yield port, process


def is_up(port: int) -> bool:
    with suppress(OSError):
        return ask(port).startswith(b"HTTP/1.1 200 ")
    return False


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The application, for tests that leave it as it was."""
    with serving(tmp_path_factory.mktemp("worker")) as (port, _):
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def request(path: str = "/", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: srm", *headers, "", ""]).encode()


def ask(port: int, path: str = "/") -> bytes:
    """Return the answer to a request on a connection of its own."""
    with connect(port) as client:
        client.sendall(request(path))
        return client.recv(4096)


def is_ended(client: socket.socket) -> bool:
    """True when the server ends the connection. Reads what it has sent before."""
    try:
        while client.recv(1_000_000):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def slow_clients(stack: ExitStack, port: int) -> dict[str, list[socket.socket]]:
    """Connect clients with half a header, with half a body, and others that do not read their answer."""
    sent = {
        "half a header": b"GET / HTTP/1.1\r\nHost:",
        "half a body": request("/", "Content-Length: 100") + b"x" * 50,
        "half a chunk": request("/", "Transfer-Encoding: chunked") + b"64\r\nxxx",
        "no reading": request("/large"),
    }
    clients: dict[str, list[socket.socket]] = {kind: [] for kind in sent}
    for kind, data in sent.items():
        for _ in range(1 if kind == "no reading" else SLOW):
            client = stack.enter_context(connect(port))
            client.sendall(data)
            clients[kind].append(client)
    return clients


def test_requests_wait_at_once(port: int) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(50)]
        began_at = time.monotonic()
        for client in clients:
            client.sendall(request("/sleep"))
        answers = [client.recv(4096) for client in clients]
        took = time.monotonic() - began_at

    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert took < 1 + SLACK_SECONDS


def test_slow_clients_delay_nobody_and_are_dropped(port: int) -> None:
    with ExitStack() as stack:
        began_at = time.monotonic()
        clients = slow_clients(stack, port)
        answers = [ask(port) for _ in range(20)]
        answered_at = time.monotonic()

        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        assert answered_at - began_at < SLACK_SECONDS
        assert all(is_ended(client) for of_kind in clients.values() for client in of_kind)
        assert time.monotonic() - began_at < LATE_SECONDS + 2 * SLACK_SECONDS


def test_a_client_that_takes_a_large_answer_slowly_gets_all_of_it(port: int) -> None:
    taken = 0
    with connect(port) as client:
        client.sendall(request("/large"))
        began_at = time.monotonic()
        while taken < LARGE_BYTES:
            data = client.recv(1_000_000, socket.MSG_WAITALL)
            assert data, f"cut after {taken} bytes"
            taken += len(data)
            if time.monotonic() - began_at < LATE_SECONDS + 1:
                time.sleep(0.1)


@pytest.mark.parametrize(
    "start",
    [
        request("/", "Transfer-Encoding: chunked") + b"1;",  # a line of a chunk without an end
        request("/", "Transfer-Encoding: chunked") + b"0\r\nTrailer: ",
        request("/", f"Content-Length: {2 * MAX_REQUEST_BYTES}"),
    ],
)
def test_a_request_without_end_is_cut(port: int, start: bytes) -> None:
    with connect(port) as client:
        client.sendall(start)
        with suppress(ConnectionError):
            client.sendall(b"x" * 2 * MAX_REQUEST_BYTES)

        assert is_ended(client)


def test_a_client_that_sends_a_byte_now_and_then_is_dropped(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: ")
        began_at = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began_at < LATE_SECONDS + SLACK_SECONDS + 2:
                client.sendall(b"x")
                time.sleep(0.2)
        took = time.monotonic() - began_at

    assert took < LATE_SECONDS + SLACK_SECONDS


def test_an_idle_connection_stays_open_longer_than_a_request_may_take(port: int) -> None:
    with connect(port) as client:
        for _ in range(2):
            client.sendall(request())
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
            time.sleep(LATE_SECONDS + 1)


def test_an_idle_connection_has_no_greenlet(port: int) -> None:
    def count() -> int:
        return int(ask(port, "/greenlets").rpartition(b"\r\n")[2])

    with ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(100)]
        for client in clients[:50]:
            client.sendall(request())
            assert client.recv(4096)

        wait_until(lambda: count() < 20)
        for client in clients:
            client.sendall(request())
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_the_application_has_not_read_is_no_request(port: int) -> None:
    hidden = request("/hidden")
    with connect(port) as client:
        client.sendall(request("/unread", f"Content-Length: {len(hidden)}"))
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        time.sleep(PARKED_SECONDS)
        client.settimeout(1)
        with suppress(OSError):
            client.sendall(hidden)
            assert client.recv(4096) == b""


def test_a_request_that_begins_with_the_one_before_it_is_answered(port: int) -> None:
    second = request()
    with connect(port) as client:
        client.sendall(request() + second[:20])
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        time.sleep(PARKED_SECONDS)
        client.sendall(second[20:])
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_half_a_header_that_comes_with_another_request_has_its_deadline(port: int) -> None:
    with connect(port) as client:
        client.sendall(request() + b"GET / HTTP/1.1\r\nHost:")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        client.settimeout(LATE_SECONDS + SLACK_SECONDS)

        assert is_ended(client)


def test_a_worker_whose_loop_is_stuck_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, "--timeout", "2") as (port, gunicorn):
        (stuck,) = psutil.Process(gunicorn.popen.pid).children()
        with connect(port) as client:
            client.sendall(request("/stuck"))
            wait_until(lambda: not stuck.is_running() or stuck.status() == psutil.STATUS_ZOMBIE)
            wait_until(lambda: is_up(port))


def test_a_full_worker_serves_again_when_connections_end(tmp_path: Path) -> None:
    with serving(tmp_path, "--worker-connections", "5") as (port, _), ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(connect(port))
            client.sendall(request()[:-2])
        with connect(port) as waiting:
            waiting.sendall(request())

            assert waiting.recv(4096).startswith(b"HTTP/1.1 200 ")


class TestStop:
    def test_requests_in_progress_are_answered(self, tmp_path: Path) -> None:
        with serving(tmp_path) as (port, gunicorn), ExitStack() as stack:
            clients = [stack.enter_context(connect(port)) for _ in range(20)]
            for client in clients:
                client.sendall(request("/sleep"))
            assert ask(port)  # the worker has read the requests before this one

            os.kill(gunicorn.popen.pid, signal.SIGTERM)

            assert {client.recv(4096)[:13] for client in clients} == {b"HTTP/1.1 200 "}
            assert gunicorn.popen.wait(10) == 0

    def test_idle_and_silent_connections_do_not_delay_it(self, tmp_path: Path) -> None:
        with serving(tmp_path) as (port, gunicorn), ExitStack() as stack:
            for _ in range(68):
                stack.enter_context(connect(port))
            idle = stack.enter_context(connect(port))
            idle.sendall(request())
            assert idle.recv(4096)

            os.kill(gunicorn.popen.pid, signal.SIGTERM)

            assert gunicorn.popen.wait(15) == 0  # gunicorn itself would wait for 30 s
            assert is_ended(idle)

    def test_requests_that_arrive_with_it_are_answered(self, tmp_path: Path) -> None:
        """The worker sees the signal and the requests at one time, some of them on connections from before it."""
        with serving(tmp_path) as (port, gunicorn), ExitStack() as stack:
            idle = [stack.enter_context(connect(port)) for _ in range(10)]
            for client in idle:
                client.sendall(request())
                assert client.recv(4096)
            (worker,) = psutil.Process(gunicorn.popen.pid).children()
            worker.suspend()
            new = [stack.enter_context(connect(port)) for _ in range(10)]
            for client in (*idle, *new):
                client.sendall(request())
            os.kill(gunicorn.popen.pid, signal.SIGTERM)
            time.sleep(0.3)
            worker.resume()

            assert {client.recv(4096)[:13] for client in (*idle, *new)} == {b"HTTP/1.1 200 "}
            assert gunicorn.popen.wait(10) == 0

    def test_a_slow_client_delays_it_no_longer_than_its_deadline(self, tmp_path: Path) -> None:
        with serving(tmp_path) as (port, gunicorn), connect(port) as client:
            client.sendall(request()[:-2])
            assert ask(port)

            os.kill(gunicorn.popen.pid, signal.SIGTERM)

            assert gunicorn.popen.wait(LATE_SECONDS + 2 * SLACK_SECONDS) == 0


def test_a_client_whose_next_request_is_always_there_keeps_nobody_out(port: int) -> None:
    total = 20_000
    answers = bytearray()

    def read() -> None:
        while answers.count(b"HTTP/1.1 200 ") < total and (data := greedy.recv(1_000_000)):
            answers.extend(data)

    with connect(port) as greedy, ThreadPoolExecutor(2) as threads:
        reading = threads.submit(read)
        sending = threads.submit(greedy.sendall, request() * total)
        wait_until(lambda: answers, every=0.001)
        others = [ask(port) for _ in range(3)]
        is_over = reading.done()
        sending.result()
        reading.result()

    assert [answer[:13] for answer in others] == [b"HTTP/1.1 200 "] * 3
    assert not is_over
