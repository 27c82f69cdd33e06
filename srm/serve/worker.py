"""What gunicorn itself answers and logs, brought into line with the rest of the service."""

import json
import selectors
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import BoundedSemaphore
from typing import Any
from uuid import uuid4

from gunicorn import glogging, util
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import ThreadWorker

from srm import config, logs
from srm.deadline import DEADLINE, DEADLINE_SECONDS, MAX_QUEUE_SECONDS
from srm.errors import InternalError, MalformedRequest, SrmError, StartupError
from srm.logs import CORRELATION_ID

FIRST_WORD_SECONDS = 0.1
"""How long a worker that stops waits for the requests that are to come on new connections."""

HURRY_SECONDS = 0.0001
"""How long other threads may keep the interpreter from a worker that stops; by default it is fifty times as long."""

MOST_CLOSERS = 50
"""Connections at most that wait at once until their clients hang up."""


class Worker(ThreadWorker):  # type: ignore[misc]
    """A thread worker that answers all that it has read, and answers it in the envelope."""

    drain_seconds: float = 0
    """How long it goes on after SIGTERM, for a proxy that does not know yet; `srm.gunicorn_conf` says."""

    observe_wait: Callable[[float], None] = staticmethod(lambda _: None)
    """Told how long each request has waited for a thread; `srm.gunicorn_conf` says by whom."""

    _drained_at: float | None = None
    _first_word_by: float = 0

    def enqueue_req(self, conn: Any) -> None:
        """Called by gunicorn when a connection is new or has become readable: it waits for a thread.

        A new one on which nothing has been said yet does so later. Gunicorn would give it a thread at once, for five
        seconds: a few clients that connect ahead of their requests, as balancers do, would keep all others waiting.
        """
        if not conn.initialized and self.alive and not conn.wait_for_data(0):
            self._await_first_word(conn)
            return
        if not conn.initialized:
            conn.close = partial(self._close, conn.close)
        conn.enqueued_at = time.monotonic()
        super().enqueue_req(conn)

    def _await_first_word(self, conn: Any) -> None:
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def _close(self, close: Callable[..., None], graceful: bool = False) -> None:
        """Close a connection; graceful: wait for the client to hang up as well, up to two seconds.

        Gunicorn would do so in its only loop. When MOST_CLOSERS wait already, nobody is waited for any more.
        """
        if not graceful or not self._may_wait.acquire(blocking=False):
            close()
            return
        waiting = self._closers.submit(close, graceful=True)
        waiting.add_done_callback(lambda _: self._may_wait.release())

    def handle(self, conn: Any) -> Any:
        """Called by gunicorn in the thread that has got a connection; whether it is to be kept.

        Gunicorn goes back to wait for the socket after one request. But what a client sent right behind it
        may have been read already, with the end of a body that nobody asked for: nothing would ever come
        from the socket, and the client would wait in vain.
        """
        if not conn.initialized and not self.alive and not conn.wait_for_data(self._first_word_by - time.monotonic()):
            conn.sock.shutdown(socket.SHUT_RDWR)  # else gunicorn would wait for the client to hang up, too
            return False
        conn.waited_seconds = time.monotonic() - conn.enqueued_at
        self.observe_wait(conn.waited_seconds)
        is_kept = super().handle(conn)
        while is_kept is True and conn.parser.unreader.buf.tell() > 0:
            conn.waited_seconds = 0
            is_kept = super().handle(conn)
        return is_kept

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Called by gunicorn with a request that has been read; its patience began when it came to wait for a thread.

        One that has waited for MAX_QUEUE_SECONDS has none left. The database is slow then, or there are too many
        requests. All those behind it would wait for the database too, until their clients are gone, and be worked off
        one by one, for nothing and for minutes, when it is well again.
        """
        left = DEADLINE_SECONDS - conn.waited_seconds if conn.waited_seconds < MAX_QUEUE_SECONDS else 0
        DEADLINE.set(time.monotonic() + left)
        return super().handle_request(req, conn)

    alive: bool
    max_requests: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most_requests = self.max_requests
        self._closers = ThreadPoolExecutor(MOST_CLOSERS, thread_name_prefix="closer")
        self._may_wait = BoundedSemaphore(MOST_CLOSERS)
        self.max_requests = sys.maxsize  # gunicorn would take no connection any more, and yet wait for the idle ones

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Called by gunicorn on SIGTERM, of a stop or a reload: from now on each connection is closed by its answer.

        For `drain_seconds` all requests are taken, also on new connections: a proxy may be sending one on a connection
        that it found idle, would not repeat a setup of which it does not know whether it was done, and learns only by
        the next look at /readyz that it is to ask others. Then nothing more is taken, and what is in hand is finished.
        """
        self._drain()
        if (draining := getattr(getattr(self, "wsgi", None), "extensions", {}).get("srm.draining")) is not None:
            draining.set()
        self.method_queue.defer(lambda: None)  # to look round now, but when all that has come so far is taken

    def _drain(self) -> None:
        if self._drained_at is None:
            self._drained_at = time.monotonic() + self.drain_seconds
            self.max_keepalived = 0

    def murder_keepalived(self) -> None:
        """Called by gunicorn every second, and after each event: hang up where it is time to."""
        super().murder_keepalived()
        if self.nr >= self._most_requests and self._drained_at is None:
            self.log.info("enough requests, making room for a new worker")
            self._drain()
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self._hang_up()

    def is_parent_alive(self) -> bool:
        """Called by gunicorn every second; when the master is gone its port is to be free for the next one."""
        if super().is_parent_alive():
            return True
        self._hang_up()
        return False

    def _hang_up(self) -> None:
        """Take only the connections that wait already, and close those on which nothing is asked.

        Those that wait would be reset with their requests, as would new ones with a request on its way; those that are
        idle gunicorn would wait for.
        """
        if self.alive:
            self.alive = False
            self._first_word_by = time.monotonic() + FIRST_WORD_SECONDS
        may_accept = self._accepting
        self.set_accept_enabled(False)
        sys.setswitchinterval(HURRY_SECONDS)
        for listener in self.sockets:
            if may_accept:
                self._accept_all(listener)
            listener.close()  # at once: who has connected between the two is reset
        while self.pending_conns:
            new = self.pending_conns.popleft()
            self.poller.unregister(new.sock)
            self.enqueue_req(new)
        while self.keepalived_conns:
            idle = self.keepalived_conns.popleft()
            with suppress(OSError, KeyError, ValueError):
                self.poller.unregister(idle.sock)
            self.nr_conns -= 1
            idle.close()

    def _accept_all(self, listener: Any) -> None:
        before = -1
        while before < self.nr_conns < self.worker_connections:
            before = self.nr_conns
            self.accept(listener)

    def handle_error(self, req: object, client: Any, addr: Any, exc: BaseException) -> None:
        """Called by gunicorn with a request that never reached the application."""
        from srm.api import (
            envelope,  # not in the master, which must not load srm.metrics
            telemetry,
        )

        correlation_id = str(uuid4())
        CORRELATION_ID.set(correlation_id)
        expected = isinstance(exc, ParseException | LimitRequestLine | LimitRequestHeaders)
        error: SrmError = MalformedRequest() if expected else InternalError()
        telemetry.UNREADABLE.inc()
        if expected:
            self.log.info("unreadable request: %s", exc)
        else:
            self.log.error("request failed", exc_info=exc)
        body = json.dumps(envelope.render(error)).encode()
        head = (
            f"HTTP/1.1 {error.http_status} {'Bad Request' if expected else 'Internal Server Error'}\r\n"
            "Connection: close\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            f"X-Correlation-Id: {correlation_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            util.write_nonblock(client, head.encode() + body)
        except OSError:
            self.log.debug("client is gone")


class Logger(glogging.Logger):  # type: ignore[misc]
    """Gunicorn's own lines, in the format of all others."""

    def setup(self, cfg: Any) -> None:
        """Called by gunicorn in the master and in every worker."""
        super().setup(cfg)
        self.error_log.handlers = []
        self.error_log.propagate = True
        try:
            logs.configure(config.load().log_format)
        except StartupError as error:
            sys.exit(f"srm: {error}")
