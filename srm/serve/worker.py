"""Gunicorn worker on gevent, and gunicorn's logger in the format of SRM.

One greenlet serves a connection, and all greenlets of a worker share one event loop. A connection that waits costs a
few kilobytes, and delays no other connection.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import gevent
from gevent import monkey
from gevent import socket as gevent_socket
from gevent.lock import Semaphore
from gunicorn import glogging, http
from gunicorn.http import wsgi
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, NoMoreData, ParseException
from gunicorn.workers import base

from srm import config, logs
from srm.deadline import DEADLINE, DEADLINE_SECONDS
from srm.errors import InternalError, MalformedRequest, SrmError, StartupError
from srm.logs import CORRELATION_ID
from srm.serve.connection import Connection

LOOK_SECONDS = 0.5
"""Time between two looks at deadlines of clients, at the master, and at the number of requests."""

FIRST_WORD_SECONDS = 0.1
"""Time for the first request of a new connection, in a worker that stops."""

SKIP_BYTES = 8192
"""Most bytes of an unread body that are read at a time."""

NO_ROOM_SECONDS = 0.1
"""Pause when the process has no file for another connection."""


class Worker(base.Worker):  # type: ignore[misc]
    """A worker that answers every request that it has read, also during a stop and after an unreadable one."""

    drain_seconds: float = 0
    """Time for which the worker takes new connections after SIGTERM. srm.serve.gunicorn_conf sets it."""

    observe_wait: Callable[[float], None] = staticmethod(lambda _: None)
    """Called with the seconds that the event loop was late. srm.serve.gunicorn_conf sets it."""

    announce_stop: Callable[[], None] = staticmethod(lambda: None)
    """Called on SIGTERM. srm.serve.gunicorn_conf sets it."""

    alive: bool
    nr: int

    def init_process(self) -> None:
        """Make the standard library cooperative, then import the application. Called by gunicorn after the fork."""
        monkey.patch_all()
        gevent.reinit()
        self._drained_at: float | None = None
        self._connections: set[Connection] = set()
        self._room = Semaphore(self.cfg.worker_connections)
        super().init_process()

    def run(self) -> None:
        """Serve until the worker is told to stop. Called by gunicorn."""
        listeners = [gevent_socket.socket(fileno=os.dup(listener.fileno())) for listener in self.sockets]
        for listener in self.sockets:
            listener.close()
        acceptors = [gevent.spawn(self._accept_forever, listener) for listener in listeners]
        while not self._is_drained():
            self._look()
            asleep_at = time.monotonic()
            woken = self._sleep(LOOK_SECONDS)
            if not woken:
                self.observe_wait(max(0.0, time.monotonic() - asleep_at - LOOK_SECONDS))
        gevent.killall(acceptors)
        for listener in listeners:
            self._accept_waiting(listener)
            listener.close()  # at once: a client that connects between the two is reset
        self._finish()

    def _sleep(self, seconds: float) -> bool:
        """Sleep, at most until a signal comes; return whether one came. gunicorn writes each signal to a pipe."""
        try:
            gevent_socket.wait_read(self.PIPE[0], seconds, TimeoutError)
        except TimeoutError:
            return False
        with suppress(BlockingIOError):
            os.read(self.PIPE[0], 4096)
        return True

    def _look(self) -> None:
        """Tell the master that the loop runs, end waits for late clients, and begin a drain when it is time."""
        self.notify()
        now = time.monotonic()
        for connection in list(self._connections):
            connection.look(now)
        if self.nr >= self.max_requests and self._drained_at is None:
            self.log.info("enough requests, making room for a new worker")
            self._drain()

    def _drain(self) -> None:
        if self._drained_at is None:
            self._drained_at = time.monotonic() + self.drain_seconds

    def _is_drained(self) -> bool:
        """True when the worker must take no new requests: its drain is over, or its master is gone."""
        if self.ppid != os.getppid():
            self.log.info("the master is gone, stopping")
            return True
        return self._drained_at is not None and time.monotonic() >= self._drained_at

    def _finish(self) -> None:
        """Answer the requests that have arrived. Takes at most `graceful_timeout`, after which the master kills."""
        self.alive = False
        give_up_at = time.monotonic() + self.cfg.graceful_timeout
        gevent.sleep(FIRST_WORD_SECONDS)
        while self._connections and time.monotonic() < give_up_at:
            for connection in self._connections:
                if connection.is_idle:
                    connection.end()
            gevent.sleep(FIRST_WORD_SECONDS)
            self._look()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to drain. Called by gunicorn on SIGTERM, for a stop or a reload.

        From now on each answer closes its connection. For `drain_seconds` the worker still takes every request, on new
        connections too: a proxy may be sending a request on an idle connection, and does not repeat a setup whose
        outcome it does not know. A load balancer goes elsewhere after its next look at /readyz. After `drain_seconds`
        the worker takes no new requests and finishes the requests in progress.
        """
        self._drain()
        self.announce_stop()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop at once, in a greenlet: a signal handler must not wait. Called by gunicorn on SIGINT and SIGQUIT."""
        gevent.spawn(super().handle_quit, sig, frame)

    def _accept_forever(self, listener: gevent_socket.socket) -> None:
        while True:
            self._room.acquire()
            try:
                self._welcome(listener)
            except OSError as error:
                self._room.release()
                self.log.warning("cannot accept a connection: %s", error)
                gevent.sleep(NO_ROOM_SECONDS)
            gevent.sleep(0)  # Otherwise one worker would take all of many clients that connect at once.

    def _accept_waiting(self, listener: gevent_socket.socket) -> None:
        """Accept the connections in the backlog. The system would reset them together with their requests."""
        listener.settimeout(0)
        with suppress(OSError):
            while True:
                self._welcome(listener)

    def _welcome(self, listener: gevent_socket.socket) -> None:
        """Accept the next connection, and serve it."""
        client, address = listener.accept()
        connection = Connection(client, address, listener.getsockname(), self.cfg.keepalive)
        self._connections.add(connection)
        connection.serve(self._serve)

    def _serve(self, connection: Connection) -> None:
        """Answer the requests of a connection, then close it. Parked passes through and leaves the connection open."""
        request = None
        try:
            parser = http.get_parser(self.cfg, connection, connection.address)
            for request in parser:
                connection.await_body()
                is_kept = self._answer(request, connection)
                connection.flush()
                if not is_kept or not skip_body(request):
                    break
                connection.await_request(has_begun=bool(parser.unreader.buf.getvalue()))
                gevent.sleep(0)  # Otherwise a client whose next request is always there would keep others out.
        except (OSError, NoMoreData) as error:
            self.log.debug("client is gone: %s", error)
        except Exception as error:
            self.handle_error(request, connection, connection.address, error)
        connection.close()
        self._connections.discard(connection)
        self._room.release()

    def _answer(self, request: Any, connection: Connection) -> bool:
        """Let the application answer a request; return whether to keep the connection open."""
        DEADLINE.set(time.monotonic() + DEADLINE_SECONDS)
        response, environ = wsgi.create(request, connection, connection.address, connection.listener_name, self.cfg)
        environ["wsgi.multithread"] = True
        if "HTTP_TRANSFER_ENCODING" in environ:
            environ["wsgi.input"] = ChunkedBody(request.body)
        self.nr += 1
        parts = self.wsgi(environ, response.start_response)
        try:
            if self._drained_at is not None or not self.alive:
                response.force_close()
            for part in parts:
                response.write(part)
            response.close()
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return not response.should_close()

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
        with suppress(OSError):
            client.sendall(head.encode() + body)
            client.flush()


def skip_body(request: Any) -> bool:
    """Read what the application has left of the body; return False when its chunks are malformed.

    An idle connection gets a new parser, which would take the rest of the body for a request.
    """
    try:
        while request.body.read(SKIP_BYTES):
            pass
    except ParseException:
        return False
    return True


class ChunkedBody:
    """A body in chunks, as WSGI wants it. For malformed chunks each version of gunicorn raises an error of its own."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def read(self, size: int | None = None) -> bytes:
        """Read up to `size` bytes, all when None. Raises OSError when the chunks are malformed, or break off."""
        try:
            data: bytes = self._body.read(size)
        except ParseException as error:
            raise OSError(str(error)) from error
        return data


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
