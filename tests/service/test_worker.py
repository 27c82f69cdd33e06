"""srm.gunicorn_worker: what comes at the very moment at which it is told to stop.

Which of two events gunicorn is told of first is up to the system, so its loop is walked through here step by step.
"""

import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from gunicorn.config import Config

from srm.gunicorn_worker import Worker

REQUEST = b"GET / HTTP/1.1\r\nHost: srm\r\n\r\n"


def application(_: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "0")])
    return []


@pytest.fixture
def worker() -> Iterator[Worker]:
    """One that nobody has to be told of, and that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = Worker(1, os.getppid(), [listener], None, 30, Config(), Mock())
        worker.wsgi = application
        worker.tpool = worker.get_thread_pool()
        worker.poller = selectors.DefaultSelector()
        worker.method_queue.init()
        worker.poller.register(worker.method_queue.fileno(), selectors.EVENT_READ, worker.method_queue.run_callbacks)
        worker.set_accept_enabled(True)
        yield worker
        worker.tpool.shutdown()
        worker.poller.close()
        worker.method_queue.close()
        worker.tmp.close()


def run(worker: Worker, until: Callable[[], bool]) -> None:
    """As ThreadWorker.run does, step by step."""
    for _ in range(20):
        if until():
            return
        worker.wait_for_and_dispatch_events(timeout=1.0)
        worker.murder_keepalived()
    pytest.fail("nothing comes of it")


def is_through(worker: Worker) -> bool:
    return not worker.alive and worker.nr_conns == 0


def connect(worker: Worker) -> socket.socket:
    return socket.create_connection(worker.sockets[0].getsockname(), timeout=20)


def test_who_connects_just_then_is_answered(worker: Worker) -> None:
    worker.handle_exit(signal.SIGTERM, None)
    with connect(worker) as client:
        client.sendall(REQUEST)

        run(worker, until=lambda: is_through(worker))

        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_who_asks_just_then_on_an_idle_connection_is_answered(worker: Worker) -> None:
    with connect(worker) as client:
        client.sendall(REQUEST)
        run(worker, until=lambda: len(worker.keepalived_conns) == 1)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")

        worker.handle_exit(signal.SIGTERM, None)
        client.sendall(REQUEST)
        run(worker, until=lambda: is_through(worker))

        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
