"""A client's connection, bounded in time and bytes, as gunicorn's parser and response see it."""

import socket
import time
from contextlib import suppress

from gevent import monkey

HEAD_SECONDS = 5
"""Time from the first byte of a request to the end of its header."""

BODY_SECONDS = 5
"""Time from the end of the header to the end of the body."""

WRITE_SECONDS = 5
"""Time in which a client takes a part of its answer."""

HANG_UP_SECONDS = 2
"""Time for which a closed connection waits for the client to hang up.

A socket that is closed with unread bytes resets the connection, and the client may lose its answer.
"""

MAX_REQUEST_BYTES = 2 * 1024 * 1024
"""Most bytes of one request on the wire: header, lines of chunks, body and trailer."""

WRITE_AT_ONCE_BYTES = 64 * 1024
"""Size of the buffer in which the header and the body of an answer are sent together."""

NEVER = float("inf")


_plain_socket = monkey.get_original("socket", "socket")


class Connection:
    """The socket of a client. `end_if_late` wakes whoever waits for the client longer than allowed."""

    __slots__ = ("_has_ended", "_idle_seconds", "_late_at", "_left_bytes", "_out", "_read_by", "_sock", "is_idle")

    def __init__(self, sock: socket.socket, idle_seconds: float) -> None:
        self._sock = sock
        self._idle_seconds = idle_seconds
        self._out = bytearray()
        self._has_ended = False
        self._late_at = NEVER
        self.await_request()

    def await_request(self) -> None:
        """Expect the next request. The connection is idle until the first byte."""
        self.is_idle = True
        self._read_by = time.monotonic() + self._idle_seconds
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
            self._late_at = time.monotonic() + WRITE_SECONDS
            self._sock.sendall(self._out)
            self._late_at = NEVER
            self._out.clear()

    def end_if_late(self, now: float) -> bool:
        """End the wait for the client when it is late at `now`, by `time.monotonic()`. Return whether it was."""
        is_late = now >= self._late_at
        if is_late:
            self.end()
        return is_late

    def end(self) -> None:
        """Read nothing more than what has arrived, and send nothing more to a client that takes nothing.

        The system wakes a greenlet that waits for the socket. gevent's own `shutdown` would make its wait fail instead,
        and lose a request that has just arrived.
        """
        with suppress(OSError):
            plain = _plain_socket(fileno=self._sock.fileno())
            try:
                plain.shutdown(socket.SHUT_RDWR if self._out else socket.SHUT_RD)
            finally:
                plain.detach()

    def close(self) -> None:
        """Close the connection; wait a while for the client to hang up first."""
        with suppress(OSError):
            if not self._has_ended:
                self._sock.shutdown(socket.SHUT_WR)
                self._late_at = time.monotonic() + HANG_UP_SECONDS
                while self._sock.recv(WRITE_AT_ONCE_BYTES):
                    pass
        self._sock.close()
