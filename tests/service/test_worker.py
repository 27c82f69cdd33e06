"""The worker answers every request that arrives, with silent connections around it and at the moment of a stop.

These tests run gunicorn's loop step by step, because the system decides which of two events gunicorn sees first.
"""

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from threading import BoundedSemaphore
from typing import Any
from unittest.mock import Mock

import pytest
from gunicorn.config import Config

from srm.serve import worker as gunicorn_worker
from srm.serve.worker import Worker

AT_ONCE_SECONDS = 4
"""Less than the five seconds that gunicorn gives to a single silent connection, and long for a busy machine."""

REQUEST = b"GET / HTTP/1.1\r\nHost: srm\r\n\r\n"


def application(_: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "0")])
    return []


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker with one thread that listens, in this process and without a master."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = Worker(1, os.getppid(), [listener], None, 30, Config(), Mock())
        worker.wsgi = application
        worker.tpool = worker.get_thread_pool()
        worker.poller = selectors.DefaultSelector()
        worker.method_queue.init()
        worker.poller.register(worker.method_queue.fileno(), selectors.EVENT_READ, worker.method_queue.run_callbacks)
        worker.set_accept_enabled(True)
        yield worker
        for left in (*worker.keepalived_conns, *worker.pending_conns):
            left.close()
        worker.tpool.shutdown()
        worker._closers.shutdown()
        worker.poller.close()
        worker.method_queue.close()
        worker.tmp.close()


def run(worker: Worker, until: Callable[[], bool]) -> None:
    """Run the loop of ThreadWorker.run step by step until the condition holds."""
    for _ in range(200):
        if until():
            return
        worker.wait_for_and_dispatch_events(timeout=1.0)
        worker.murder_keepalived()
        worker.murder_pending()
    pytest.fail("the condition never held")


def has_ended(worker: Worker) -> bool:
    return not worker.alive and worker.nr_conns == 0


def connect(worker: Worker) -> socket.socket:
    return socket.create_connection(worker.sockets[0].getsockname(), timeout=20)


@pytest.fixture
def silent(worker: Worker) -> Iterator[socket.socket]:
    """The first of eight connections without a request. The worker has a single thread."""
    with ExitStack() as clients:
        first, *_ = [clients.enter_context(connect(worker)) for _ in range(8)]
        run(worker, until=lambda: worker.nr_conns == 8)
        yield first


def test_silent_connections_do_not_keep_a_request_waiting(worker: Worker, silent: socket.socket) -> None:
    with connect(worker) as client:
        client.sendall(REQUEST)
        began_at = time.monotonic()
        run(worker, until=lambda: len(worker.keepalived_conns) == 1)

        assert time.monotonic() - began_at < AT_ONCE_SECONDS
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")

    silent.sendall(REQUEST)
    run(worker, until=lambda: len(worker.keepalived_conns) == 1 and len(worker.pending_conns) == 7)
    assert silent.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("silent")
def test_a_silent_connection_does_not_delay_a_stop(worker: Worker) -> None:
    began_at = time.monotonic()

    worker.handle_exit(signal.SIGTERM, None)
    run(worker, until=lambda: has_ended(worker))

    assert time.monotonic() - began_at < AT_ONCE_SECONDS


@pytest.mark.usefixtures("silent")
def test_silent_connections_do_not_keep_a_request_waiting_during_a_stop(worker: Worker) -> None:
    """There are 68 of them, more than the worker could wait for one after the other."""
    with ExitStack() as clients:
        for _ in range(60):
            clients.enter_context(connect(worker))
        run(worker, until=lambda: worker.nr_conns == 68)
        client = clients.enter_context(connect(worker))
        client.sendall(REQUEST)
        began_at = time.monotonic()

        worker.handle_exit(signal.SIGTERM, None)
        worker.murder_keepalived()
        run(worker, until=lambda: has_ended(worker))

        assert time.monotonic() - began_at < AT_ONCE_SECONDS
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_only_a_limited_number_of_connections_waits_for_clients_to_hang_up(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_may_wait", BoundedSemaphore(1))
    with ExitStack() as clients:
        rude = [clients.enter_context(connect(worker)) for _ in range(3)]
        for client in rude:
            client.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        run(worker, until=lambda: worker.nr == 3 and worker.nr_conns == 0)

        assert len(worker._closers._threads) == 1
        for client in rude:
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_request_after_the_stop_on_a_connection_from_before_it_is_answered(
    worker: Worker, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gunicorn_worker, "FIRST_WORD_SECONDS", 1)
    worker.handle_exit(signal.SIGTERM, None)
    worker.murder_keepalived()
    assert not worker.alive

    silent.sendall(REQUEST)
    run(worker, until=lambda: has_ended(worker))

    assert silent.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_request_on_a_connection_that_arrives_with_the_stop_is_answered(worker: Worker) -> None:
    worker.handle_exit(signal.SIGTERM, None)
    with connect(worker) as client:
        client.sendall(REQUEST)

        run(worker, until=lambda: has_ended(worker))

        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_request_that_arrives_with_the_stop_on_an_idle_connection_is_answered(worker: Worker) -> None:
    with connect(worker) as client:
        client.sendall(REQUEST)
        run(worker, until=lambda: len(worker.keepalived_conns) == 1)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")

        worker.handle_exit(signal.SIGTERM, None)
        client.sendall(REQUEST)
        run(worker, until=lambda: has_ended(worker))

        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
