"""A client's connection, bounded in time and bytes, as gunicorn's parser and response use it."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gevent import monkey

HEAD_SECONDS = 5
"""Time from the first byte of a request to the end of its header."""

BODY_SECONDS = 5
"""Time from the end of the header to the end of the body."""

WRITE_SECONDS = 5
"""Time in which a client has to take a part of its answer."""

PARK_SECONDS = 1
"""Time after which an idle connection gives up its greenlet."""

HANG_UP_SECONDS = 2
"""Time for which a closed connection waits for the client to hang up.

A socket that is closed with unread bytes resets the connection, and the client may lose its answer.
"""

MAX_REQUEST_BYTES = 2 * 1024 * 1024
"""Most bytes of one request on the wire: header, lines of chunks, body and trailer."""

WRITE_AT_ONCE_BYTES = 64 * 1024
"""Size of the buffer in which the header and the body of an answer are sent together."""

NEVER = float("inf")
READABLE = 1
"""Event of the event loop."""


_plain_socket = monkey.get_original("socket", "socket")


class Parked(BaseException):
    """Raised in the greenlet of an idle connection, to end it. A watcher then waits for the next request."""


class Connection:
    """The socket of a client. `look` ends a wait for the client that has lasted longer than allowed."""

    __slots__ = (
        "_greenlet", "_has_ended", "_idle_seconds", "_late_at", "_left_bytes", "_out", "_read_by", "_sock", "_watcher",
        "address", "is_idle", "listener_name",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, address: Any, listener_name: Any, idle_seconds: float) -> None:
        self.address = address
        self.listener_name = listener_name
        self._sock = sock
        self._idle_seconds = idle_seconds
        self._out = bytearray()
        self._has_ended = False
        self._late_at = NEVER
        self.await_request()

    def serve(self, function: "Callable[[Connection], None]") -> None:
        """Run the function in a greenlet of its own, and once more for each request after a pause.

        An idle connection without a greenlet takes 3 KB instead of 15.
        """
        self._greenlet: gevent.Greenlet[..., None] | None = gevent.spawn(self._run, function)

    def _run(self, function: "Callable[[Connection], None]") -> None:
        try:
            function(self)
        except Parked:
            self._watcher = gevent.get_hub().loop.io(self._sock.fileno(), READABLE)
            self._watcher.start(self._unpark, function)
        finally:
            self._greenlet = None  # connection and greenlet would keep each other in memory

    def _unpark(self, function: "Callable[[Connection], None]") -> None:
        self._watcher.stop()
        self._watcher.close()
        self.serve(function)

    def _park(self) -> None:
        """End the greenlet of a connection that still waits for a request. Called by the event loop."""
        if self.is_idle and self._late_at != NEVER and self._greenlet is not None:
            self._greenlet.throw(Parked)

    def await_request(self, *, has_begun: bool = False) -> None:
        """Expect the next request. The connection is idle until the first byte.

        `has_begun`: the first bytes of the next request came together with the request before.
        """
        self.is_idle = not has_begun
        self._read_by = time.monotonic() + (HEAD_SECONDS if has_begun else self._idle_seconds)
        self._left_bytes = MAX_REQUEST_BYTES

    def await_body(self) -> None:
        """Expect the body of the request whose header has been read."""
        self.is_idle = False  # the request may have arrived together with the one before it
        self._read_by = time.monotonic() + BODY_SECONDS

    def recv(self, size: int) -> bytes:
        """Read up to `size` bytes; none at the end of the stream, past the deadline, and past MAX_REQUEST_BYTES."""
        if self._has_ended:
            return b""
        self._late_at = self._read_by
        data = self._sock.recv(size)
        self._late_at = NEVER
        if self.is_idle and data:
            self.is_idle = False
            self._read_by = time.monotonic() + HEAD_SECONDS
        self._left_bytes -= len(data)
        if not data or self._left_bytes < 0:
            self._has_ended = True
            return b""
        return data

    def send(self, data: bytes) -> None:
        """Send bytes at once. gunicorn sends `100 Continue` so."""
        self.sendall(data)
        self.flush()

    def sendall(self, data: bytes) -> None:
        """Add bytes to the answer."""
        self._out += data
        if len(self._out) > WRITE_AT_ONCE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what the answer has so far. Raises OSError when the client does not take it in time."""
        if self._out:
            for start in range(0, len(self._out), WRITE_AT_ONCE_BYTES):
                self._late_at = time.monotonic() + WRITE_SECONDS
                self._sock.sendall(self._out[start : start + WRITE_AT_ONCE_BYTES])
            self._late_at = NEVER
            self._out.clear()

    def look(self, now: float) -> None:
        """End the wait for a client that is late, and park an idle connection. `now` is by `time.monotonic()`."""
        if now >= self._late_at:
            self.end()
        elif self.is_idle and now > self._read_by - self._idle_seconds + PARK_SECONDS and self._greenlet is not None:
            gevent.get_hub().loop.run_callback(self._park)

    def end(self) -> None:
        """Read nothing more than what has arrived, and send nothing more to a client that takes nothing.

        The system wakes a greenlet that waits for the socket. gevent's own `shutdown` would make the greenlet's wait
        fail instead, and lose a request that has just arrived.
        """
        with suppress(OSError):
            plain = _plain_socket(fileno=self._sock.fileno())
            try:
                plain.shutdown(socket.SHUT_RDWR if self._out else socket.SHUT_RD)
            finally:
                plain.detach()

    def close(self) -> None:
        """Close the connection; wait a while for the client to hang up first."""
        self.is_idle = False
        with suppress(OSError):
            if not self._has_ended:
                self._sock.shutdown(socket.SHUT_WR)
                self._late_at = time.monotonic() + HANG_UP_SECONDS
                while self._sock.recv(WRITE_AT_ONCE_BYTES):
                    pass
        self._sock.close()
