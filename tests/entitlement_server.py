"""An entitlement service on a real socket that behaves as well or as badly as a test asks for."""

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, BinaryIO, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

ENDLESS_SECONDS = 5
"""Longer than SRM may wait. A client without a timeout then fails its test instead of hanging it."""

Behaviour = Callable[["Call"], None]


@dataclass(frozen=True)
class Question:
    """A request to the service: request line, headers in lower case, body."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Call:
    """A question that waits for its answer, with the connection on which it came."""

    server: "EntitlementServer"
    connection: socket.socket
    file: BinaryIO
    question: Question
    number: int
    """Number of the call on its connection, from 1."""

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def answer(self, body: Any, status: str = "200 OK", *headers: str) -> None:
        """Send an HTTP/1.1 answer. A body of bytes is sent unchanged, any other one as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", "Content-Type: application/json", *headers]
        self.send("\r\n".join([*head, "", ""]).encode() + data)

    def hang(self, seconds: float = ENDLESS_SECONDS) -> None:
        """Do nothing for so many seconds, or until the test is over."""
        self.server.over.wait(seconds)

    def again_and_again(self, data: bytes, every_seconds: float = 0) -> None:
        """Send the data repeatedly until the test is over."""
        deadline = time.monotonic() + ENDLESS_SECONDS
        while time.monotonic() < deadline and not self.server.over.wait(every_seconds):
            self.send(data)

    def drip(self, byte: bytes = b"x") -> None:
        """Send a byte every 0.03 s until the test is over."""
        self.again_and_again(byte, 0.03)

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection; with `reset` by a TCP reset."""
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()  # An open file would keep the connection open.
        self.connection.close()


class EntitlementServer:
    """Server that lets `behave` answer each call, on a thread for each connection. `questions` has all questions."""

    def __init__(self, behave: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.behave = behave
        self.questions: list[Question] = []
        self.connections = 0
        self.over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}/may-watch?v=1"
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            self._converse(self._tls.wrap_socket(connection, server_side=True) if self._tls else connection)

    def _converse(self, connection: socket.socket) -> None:
        self._open.append(connection)
        with connection, connection.makefile("rb") as file:
            number = 0
            while not file.closed and (line := file.readline()):
                headers = {}
                while (header := file.readline().decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = file.read(int(headers.get("content-length", 0)))
                number += 1
                question = Question(line.decode().strip(), headers, body)
                self.questions.append(question)
                self.behave(Call(self, connection, cast("BinaryIO", file), question, number))

    def stop(self) -> None:
        """Stop listening, close all connections and wait for their threads."""
        self.over.set()
        for closing in (self._listener, *self._open):
            with suppress(OSError):
                closing.shutdown(socket.SHUT_RDWR)
            closing.close()
        for thread in self._threads:
            thread.join(10)


def grant(call: Call) -> None:
    call.answer({"granted": True})


def deny(call: Call) -> None:
    call.answer({"granted": False, "reason": "not in the package"})


def hang(call: Call) -> None:
    call.hang()


@contextmanager
def entitlement_server(behave: Behaviour = grant, tls: ssl.SSLContext | None = None) -> Iterator[EntitlementServer]:
    server = EntitlementServer(behave, tls)
    try:
        yield server
    finally:
        server.stop()


def certificate(file: Path) -> ssl.SSLContext:
    """Write a self-signed certificate for 127.0.0.1 into the file; return a server's TLS context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "entitlement service of tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    began_at = time.monotonic()
    work()
    return time.monotonic() - began_at
