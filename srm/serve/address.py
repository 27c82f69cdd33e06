"""The address in SRM_BIND: check that it is free, connect to it."""

import errno
import socket

import httpx

from srm.errors import StartupError


def check_is_free(bind: str) -> None:
    """Raise StartupError when nothing can listen on this address. gunicorn would try for five seconds and say less."""
    if bind.startswith("unix:"):
        return  # gunicorn replaces the socket
    host, port = _host_and_port(bind)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        hint = ": another process listens there; set SRM_BIND" if error.errno == errno.EADDRINUSE else ""
        raise StartupError(f"cannot listen on {bind}: {error.strerror}{hint}") from None


def base_url(bind: str) -> str:
    """Return the URL at which this machine reaches the address."""
    if bind.startswith("unix:"):
        return "http://localhost"
    host, port = _host_and_port(bind)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 the client connects, it does not listen
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def client(bind: str, timeout_seconds: float) -> httpx.Client:
    """Make an HTTP client of the service behind the address."""
    socket_path = bind.removeprefix("unix:") if bind.startswith("unix:") else None
    transport = httpx.HTTPTransport(uds=socket_path, verify=False)
    return httpx.Client(transport=transport, base_url=base_url(bind), timeout=timeout_seconds)


def _host_and_port(bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)
