"""Gunicorn's thread worker and logger, changed where SRM needs another behaviour.

The worker overrides methods of gunicorn 26 that are not documented; setup.cfg has the versions that it works with.
"""

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
"""Longest wait of a stopping worker for the first request on a new connection."""

HURRY_SECONDS = 0.0001
"""Switch interval of the interpreter in a stopping worker; Python's default is 0.005."""

MOST_CLOSERS = 50
"""Most connections that may wait for their clients to hang up at one time."""


class Worker(ThreadWorker):  # type: ignore[misc]
    """A thread worker that answers every request that it has read, also during a stop and after an unreadable one."""

    drain_seconds: float = 0
    """Time for which the worker takes new connections after SIGTERM. srm.serve.gunicorn_conf sets it."""

    observe_wait: Callable[[float], None] = staticmethod(lambda _: None)
    """Called with the seconds that each request waited for a thread. srm.serve.gunicorn_conf sets it."""

    announce_stop: Callable[[], None] = staticmethod(lambda: None)
    """Called on SIGTERM. srm.serve.gunicorn_conf sets it."""

    _drained_at: float | None = None
    _first_word_by: float = 0

    def enqueue_req(self, conn: Any) -> None:
        """Queue a connection that is new or readable, so that a thread takes it. Called by gunicorn.

        A new connection without data is not queued yet. Gunicorn would give it a thread at once, for five seconds. Load
        balancers connect ahead of their requests; a few such connections would block all other clients.
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
        """Close a connection. With `graceful`, wait up to two seconds for the client to hang up.

        Gunicorn would wait in its only event loop; this worker waits in other threads. When MOST_CLOSERS connections
        wait already, the next one is closed without a wait.
        """
        if not graceful or not self._may_wait.acquire(blocking=False):
            close()
            return
        waiting = self._closers.submit(close, graceful=True)
        waiting.add_done_callback(lambda _: self._may_wait.release())

    def handle(self, conn: Any) -> Any:
        """Answer the requests of a connection; return whether to keep it open. Called by gunicorn in a thread.

        After one request gunicorn waits for the socket again. The next request may have been read already, together
        with the end of a body that no view read. The socket would stay silent and the client would wait for ever. So
        this method goes on while the buffer has data.
        """
        if not conn.initialized and not self.alive and not conn.wait_for_data(self._first_word_by - time.monotonic()):
            conn.sock.shutdown(socket.SHUT_RDWR)  # otherwise gunicorn waits for the client to hang up
            return False
        conn.waited_seconds = time.monotonic() - conn.enqueued_at
        self.observe_wait(conn.waited_seconds)
        is_kept = super().handle(conn)
        while is_kept is True and conn.parser.unreader.buf.tell() > 0:
            conn.waited_seconds = 0
            is_kept = super().handle(conn)
        return is_kept

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Set the deadline of a request that has been read, then answer it. Called by gunicorn.

        The deadline counts from the moment the request began to wait for a thread. After MAX_QUEUE_SECONDS of waiting
        the deadline is now: the database is slow, or there are too many requests. Otherwise each request in the queue
        would still go to the database after its client has left, for minutes after the trouble is over.
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
        # At its own limit gunicorn would stop accepting, and still wait for idle connections.
        self.max_requests = sys.maxsize

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to drain. Called by gunicorn on SIGTERM, for a stop or a reload.

        From now on each answer closes its connection. For `drain_seconds` the worker still takes every request, on new
        connections too. A proxy may be sending a request on an idle connection, and does not repeat a setup whose
        outcome it does not know. Only its next look at /readyz sends the proxy elsewhere. After `drain_seconds` the
        worker takes no new requests and finishes the requests in progress.
        """
        self._drain()
        self.announce_stop()
        self.method_queue.defer(lambda: None)  # wake the loop after the events that are waiting now

    def _drain(self) -> None:
        if self._drained_at is None:
            self._drained_at = time.monotonic() + self.drain_seconds
            self.max_keepalived = 0

    def murder_keepalived(self) -> None:
        """Close idle connections, and end a drain that is over. Called by gunicorn each second and after each event."""
        super().murder_keepalived()
        if self.nr >= self._most_requests and self._drained_at is None:
            self.log.info("enough requests, making room for a new worker")
            self._drain()
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self._hang_up()

    def is_parent_alive(self) -> bool:
        """Return whether the master lives. Called by gunicorn every second.

        When the master is gone, close the port, so that the next master can have it.
        """
        if super().is_parent_alive():
            return True
        self._hang_up()
        return False

    def _hang_up(self) -> None:
        """Stop listening: take the connections that wait in the backlog, and close the idle ones.

        The system would reset connections in the backlog together with their requests. Gunicorn would wait for idle
        connections.
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
            listener.close()  # at once: a client that connects between the two is reset
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
        """Answer a request that did not reach the application, in the error envelope. Called by gunicorn."""
        # The three modules import srm.metrics, which the master must not do.
        from srm.api import envelope, http_errors, telemetry

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
        code = http_errors.HTTP_ERRORS[type(error)].code
        head = (
            f"HTTP/1.1 {code} {'Bad Request' if expected else 'Internal Server Error'}\r\n"
            "Connection: close\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            f"X-Correlation-Id: {correlation_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            util.write_nonblock(client, head.encode() + body)
        except OSError:
            self.log.debug("client is gone")


class Logger(glogging.Logger):  # type: ignore[misc]
    """Gunicorn's log lines in the format of SRM."""

    def setup(self, cfg: Any) -> None:
        """Send the lines to the root logger. Called by gunicorn in the master and in every worker."""
        super().setup(cfg)
        self.error_log.handlers = []
        self.error_log.propagate = True
        try:
            logs.configure(config.load().log_format)
        except StartupError as error:
            sys.exit(f"srm: {error}")
