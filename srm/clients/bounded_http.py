"""An httpcore backend that ends a whole HTTP exchange by one deadline.

The timeouts of httpcore and httpx start anew with each read and write. A server that sends a byte now and then never
meets them. httpcore, on which httpx is built, lets a backend give every operation the time that is left.
"""

import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore


class ExchangeDeadline(threading.local):
    """Deadline of this thread's exchange, by `time.monotonic()`."""

    at = 0.0

    def seconds_left(self) -> float:
        """Return the time left, more than 0. Raises `httpcore.TimeoutException` past the deadline."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore.TimeoutException
        return left


class BoundedStream(httpcore.NetworkStream):
    """A connection on which every operation has the time that is left."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: ExchangeDeadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """See NetworkStream."""
        return self._stream.read(max_bytes, self._deadline.seconds_left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """See NetworkStream."""
        self._stream.write(buffer, self._deadline.seconds_left())

    def start_tls(
        self,
        ssl_context: Any,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """See NetworkStream."""
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.seconds_left())
        return BoundedStream(stream, self._deadline)

    def close(self) -> None:
        """See NetworkStream."""
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        """See NetworkStream."""
        return self._stream.get_extra_info(info)


class BoundedBackend(httpcore.NetworkBackend):
    """Opens connections that keep to the deadline. The lookup of a host name has only the resolver's own timeout."""

    def __init__(self, deadline: ExchangeDeadline) -> None:
        self._sockets = httpcore.SyncBackend()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """See NetworkBackend. The addresses of the host share the time that is left."""
        error: Exception = httpcore.ConnectError("the host has no address")
        addresses = _look_up(host, port)
        for number, address in enumerate(addresses):
            share = self._deadline.seconds_left() / (len(addresses) - number)
            try:
                stream = self._sockets.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as cause:
                error = cause
            else:
                return BoundedStream(stream, self._deadline)
        raise error


def _look_up(host: str, port: int) -> list[str]:
    """Return the addresses of the host. Raises `httpcore.ConnectError` when it has none."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:  # UnicodeError: the host is no valid name
        raise httpcore.ConnectError(str(error)) from error
