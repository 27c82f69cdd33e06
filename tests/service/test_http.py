"""HTTP over a real connection: chunks, pipelines, unread bodies, and bytes that are no HTTP."""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from srm.db.database import Database
from tests import support
from tests.support import SETUP, Factory, issue_token, rows

BODY = json.dumps(SETUP).encode()


@pytest.fixture(scope="module", params=["in C", "in Python"])
def service(
    request: pytest.FixtureRequest, clone: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Database]]:
    """The API with each parser of gunicorn. The one in C is missing where there was no compiler."""
    folder = tmp_path_factory.mktemp("http")
    if request.param == "in Python":
        (folder / "gunicorn_h1c.py").write_text("raise ImportError")
    url = clone()
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", max_sessions=None)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with support.api(url, folder / "api.log", workers=1, variables={"PYTHONPATH": path}) as (base, _):
        yield base, database
    database.dispose()


class Raw:
    """A connection that sends bytes unchanged."""

    def __init__(self, base: str) -> None:
        address = urlsplit(base)
        self._socket = socket.create_connection((address.hostname, address.port), timeout=20)
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read the next answer; return status, headers and body."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self._file.read(int(headers.get("content-length", 0)))

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """Return the bytes of a request on a persistent connection."""
    length = [f"Content-Length: {len(body)}"] if body else []
    lines = [f"{method} {path} HTTP/1.1", "Host: srm", f"Client-Token: {issue_token('a', 'tv')}", *length, *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body: bytes, size: int = 1000) -> bytes:
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def test_a_chunked_body_is_read(service: tuple[str, Database]) -> None:
    with Raw(service[0]) as client:
        client.send(request("POST", "/srm/v1/sessions", "Transfer-Encoding: chunked") + chunked(BODY, 7))
        status, _, body = client.answer()

    assert status == 200
    assert "successResponse" in json.loads(body)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize("size", [16 * 1024 + 1, 1_000_000])
def test_a_body_that_is_too_large_gets_its_answer(
    service: tuple[str, Database], method: str, is_chunked: bool, size: int
) -> None:
    path = "/srm/v1/sessions" + ("" if method == "POST" else "/00000000-0000-0000-0000-000000000000")
    padding = b'{"padding": "' + b"x" * size + b'"}'

    with Raw(service[0]) as client:
        if is_chunked:
            data = request(method, path, "Transfer-Encoding: chunked") + chunked(padding)
        else:
            data = request(method, path, body=padding)
        with suppress(ConnectionError):  # the answer may come, and the connection be closed, before all is sent
            client.send(data)
        status, _, body = client.answer()

    assert status == 413
    assert json.loads(body)["errorResponse"]["errorCode"] == "SRM-0002"
    assert json.loads(body)["errorResponse"]["code"] == "413"


@pytest.mark.parametrize(
    "body",
    [b"zz\r\nabc\r\n0\r\n\r\n", b"-1\r\n\r\n0\r\n\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n"],
)
def test_malformed_chunks_are_refused(service: tuple[str, Database], body: bytes) -> None:
    with Raw(service[0]) as client:
        client.send(request("POST", "/srm/v1/sessions", "Transfer-Encoding: chunked") + body)
        status, _, content = client.answer()

    assert status == 400
    assert json.loads(content)["errorResponse"]["errorCode"] == "SRM-0002"


def test_a_request_with_a_cut_body_writes_nothing(service: tuple[str, Database]) -> None:
    base, database = service
    before = rows(database, "SELECT count(*) FROM srm.sessions")
    with Raw(base) as client:
        client.send(request("POST", "/srm/v1/sessions", body=BODY)[:-5])
    with Raw(base) as client:
        client.send(request("GET", "/healthz"))
        assert client.answer()[0] == 200
    assert rows(database, "SELECT count(*) FROM srm.sessions") == before


@pytest.mark.parametrize(
    "data",
    [
        b"not HTTP\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nClient-Token: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % number for number in range(200)) + b"\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: nonsense\r\n\r\n",
    ],
)
def test_an_unreadable_request_is_answered_in_the_envelope(service: tuple[str, Database], data: bytes) -> None:
    with Raw(service[0]) as client:
        client.send(data)
        status, headers, body = client.answer()

    assert status == 400
    assert json.loads(body)["errorResponse"] == {
        "code": "400",
        "status": "ERROR",
        "errorCode": "SRM-0002",
        "errorMessage": "Malformed request or mandatory parameters missing from request",
    }
    assert headers["cache-control"] == "no-store"
    assert re.fullmatch(r"[0-9a-f-]{36}", headers["x-correlation-id"])


def test_every_request_of_a_pipeline_is_answered(service: tuple[str, Database]) -> None:
    with Raw(service[0]) as client:
        client.send(request("GET", "/healthz") * 3 + request("POST", "/srm/v1/sessions", body=BODY))
        statuses = [client.answer()[0] for _ in range(4)]

    assert statuses == [200] * 4


def test_an_unread_body_does_not_swallow_the_next_request(service: tuple[str, Database]) -> None:
    with Raw(service[0]) as client:
        for _ in range(300):
            whole = request("PUT", "/srm/v1/nothing", body=BODY)
            client.send(whole[: -len(BODY)])
            client.send(BODY + request("GET", "/healthz"))
            assert client.answer()[0] == 404
            assert client.answer()[0] == 200


def test_silent_connections_do_not_delay_other_clients(service: tuple[str, Database]) -> None:
    """Load balancers connect ahead of their requests. Plain gunicorn gives each one a thread for five seconds."""
    with ExitStack() as clients:
        silent = [clients.enter_context(Raw(service[0])) for _ in range(20)]
        began_at = time.monotonic()
        answers = []
        for client in (clients.enter_context(Raw(service[0])), *silent):
            client.send(request("GET", "/healthz"))
            answers.append(client.answer())
        took = time.monotonic() - began_at

    assert [status for status, *_ in answers] == [200] * 21
    assert took < 5


def test_clients_that_do_not_hang_up_do_not_delay_others(service: tuple[str, Database]) -> None:
    """Plain gunicorn waits up to two seconds for each of them in its event loop."""
    with ExitStack() as clients:
        for _ in range(12):
            client = clients.enter_context(Raw(service[0]))
            client.send(b"GARBAGE\r\n\r\n")
            assert client.answer()[0] == 400
        began_at = time.monotonic()
        client = clients.enter_context(Raw(service[0]))
        client.send(request("GET", "/healthz"))
        status, *_ = client.answer()
        took = time.monotonic() - began_at

    assert status == 200
    assert took < 5


def test_a_session_goes_through_its_life(service: tuple[str, Database]) -> None:
    with Raw(service[0]) as client:
        client.send(request("POST", "/srm/sessions", "Content-Type: text/plain", body=BODY))
        session_id = json.loads(client.answer()[2])["successResponse"]["sessionId"]
        for method, expected in (("PUT", 200), ("DELETE", 200), ("DELETE", 200), ("PUT", 410)):
            client.send(request(method, f"/srm/v1/sessions/{session_id}"))
            status, headers, body = client.answer()
            assert status == expected
            if expected == 200:
                assert body == b""
                assert "content-type" not in headers


def test_the_log_has_the_correlation_id(
    service: tuple[str, Database], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Raw(service[0]) as client:
        client.send(request("GET", "/nowhere", "X-Correlation-Id: find-me-again"))
        assert client.answer()[1]["x-correlation-id"] == "find-me-again"

    logs = [path.read_text() for path in Path(tmp_path_factory.getbasetemp()).glob("http*/api.log")]
    assert any("find-me-again" in log and "SRM-0011" in log for log in logs)


def test_no_header_changes_the_path(service: tuple[str, Database]) -> None:
    """The server in front decides by the path of the request line which requests may pass."""
    with Raw(service[0]) as client:
        client.send(request("GET", "/srm/v1/sessions/metrics", "SCRIPT_NAME: /srm/v1/sessions", "PATH_INFO: /metrics"))
        status, _, body = client.answer()

    assert status == 405
    assert json.loads(body)["errorResponse"]["errorCode"] == "SRM-0012"
