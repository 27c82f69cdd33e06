"""Log lines of requests, read from a real process: logging is set up once a process."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from srm.db.database import Database
from tests.support import SECRET, SETUP, Factory, Process, api, http, issue_token

MADE_UP = "8f14e45f-ceea-467f-9575-1c2f6a7b0c11"

REQUEST = {"event", "level", "timestamp", "correlation_id", "route", "method", "status", "duration_ms"}
"""Members of each line about a request."""

ENDED = {"event", "level", "timestamp", "correlation_id", "account", "device", "session", "end_reason"}
"""Members of each line about an ended session."""

PART_LENGTH = 8
"""Characters of a secret in a row that must not appear. Fewer may appear by chance."""


@pytest.fixture
def url(clone: Callable[[], str]) -> str:
    return clone()


@pytest.fixture
def database(url: str, outside: Callable[[str], str]) -> Iterator[Database]:
    """Database of this test alone; the test may drop its tables."""
    database = Database(outside(url), application_name="srm-tests")
    yield database
    database.dispose()


@pytest.fixture
def factory(database: Database) -> Factory:
    return Factory(database)


def lines_of(process: Process) -> list[dict[str, Any]]:
    """Return all lines. Each is JSON, whoever wrote it."""
    return [json.loads(line) for line in process.text().splitlines()]


class Client:
    """Client that gives each request a correlation id of its own."""

    def __init__(self, base: str) -> None:
        self.base = base

    def __call__(self, name: str, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return http(method, f"{self.base}/srm/v1/{path}", content=content, headers={**named, "X-Correlation-Id": name})


def test_each_denial_and_failure_is_logged_once(factory: Factory, database: Database, url: str, tmp_path: Path) -> None:
    factory.account("a", max_sessions=0)
    factory.account("b")
    token = issue_token("a", "tv")
    with api(url, tmp_path / "log", workers=1, variables={"SRM_LOG_FORMAT": "json"}) as (base, process):
        call = Client(base)
        assert call("refused", "POST", "sessions", SETUP, Client_Token=token).status_code == 200
        assert call("missing", "PUT", f"sessions/{MADE_UP}", Client_Token=token).status_code == 404
        assert call("no-id", "PUT", "sessions/not-an-id", Client_Token=token).status_code == 400
        assert call("nowhere", "GET", "nothing").status_code == 404
        with database.transaction() as db:
            db.exec_driver_sql("DROP TABLE srm.entitlements CASCADE")
        assert call("crashed", "POST", "sessions", SETUP, Client_Token=token).status_code == 500
        lines = lines_of(process)

    def of(correlation_id: str) -> dict[str, Any]:
        (line,) = (line for line in lines if line.get("correlation_id") == correlation_id)
        assert line.keys() >= REQUEST
        assert 0 < line["duration_ms"] < 3000
        return line

    refused = of("refused")
    assert (refused["level"], refused["event"]) == ("info", "request refused")
    assert (refused["account"], refused["device"], refused["error_code"]) == ("a", "tv", "SRM-0006")
    assert (refused["method"], refused["route"], refused["status"]) == ("POST", "/srm/v1/sessions", 200)
    assert (refused["rule"], refused["limit"]) == ("max_sessions", 0)
    missing = of("missing")
    assert (missing["session"], missing["status"], missing["error_code"]) == (MADE_UP, 404, "SRM-0008")
    assert missing["route"] == "/srm/v1/sessions/<session_id>"
    assert "session" not in of("no-id")
    assert (of("nowhere")["route"], of("nowhere")["status"]) == (None, 404)
    crashed = of("crashed")
    assert (crashed["level"], crashed["event"]) == ("error", "request failed")
    assert (crashed["account"], crashed["device"], crashed["error_code"]) == ("a", "tv", "SRM-0001")
    assert "UndefinedTable" in json.dumps(crashed["exception"])


@pytest.mark.parametrize(("sample", "expected"), [("1", 20), ("0", 0)])
def test_a_configured_share_of_the_other_requests_is_logged(
    factory: Factory, database: Database, url: str, tmp_path: Path, sample: str, expected: int
) -> None:
    factory.account("a", max_sessions=None)
    token = issue_token("a", "tv")
    variables = {"SRM_LOG_FORMAT": "json", "SRM_ACCESS_LOG_SAMPLE": sample}
    with api(url, tmp_path / "log", workers=1, variables=variables) as (base, process):
        call = Client(base)
        sessions = [
            call("setup", "POST", "sessions", SETUP, Client_Token=token).json()["successResponse"]["sessionId"]
            for _ in range(10)
        ]
        for session in sessions:
            call("alive", "PUT", f"sessions/{session}", Client_Token=token)
        lines = [line for line in lines_of(process) if line["event"] == "request" and line["route"] != "/readyz"]

    assert len(lines) == expected
    for line in lines:
        assert line.keys() == REQUEST | {"account", "device", "session"}
        assert (line["account"], line["device"], line["status"]) == ("a", "tv", 200)
    assert [line["session"] for line in lines] == (sessions + sessions if lines else [])


def test_each_session_that_a_request_ends_is_logged(
    factory: Factory, database: Database, url: str, tmp_path: Path
) -> None:
    factory.account("a", "tv", "phone", max_sessions=1)
    factory.account("b", "tv", "phone")
    key = factory.operator()
    with api(url, tmp_path / "log", workers=1, variables={"SRM_LOG_FORMAT": "json"}) as (base, process):
        call = Client(base)

        def set_up(account: str, device: str) -> str:
            token = issue_token(account, device)
            answer = call("setup", "POST", "sessions", SETUP, Client_Token=token)
            id_: str = answer.json()["successResponse"]["sessionId"]
            return id_

        lapsed = factory.session(silent_for=60)
        torn = set_up("a", "tv")
        call("down", "DELETE", f"sessions/{torn}", Client_Token=issue_token("a", "tv"))
        call("admin", "PATCH", "profiles/profile of a", {"onLimit": "evict_oldest"}, **key)
        evicted = set_up("a", "tv")
        stopped = set_up("a", "phone")
        call("stop", "DELETE", f"accounts/a/sessions/{stopped}", **key)
        of_device = set_up("b", "tv")
        call("device", "PATCH", "accounts/b/devices/tv", {"enabled": False}, **key)
        of_account = set_up("b", "phone")
        call("account", "PATCH", "accounts/b", {"enabled": False}, **key)
        late = factory.session("b", silent_for=60)
        call("late", "PUT", f"sessions/{late}", Client_Token=issue_token("b", "tv"))
        lines = [line for line in lines_of(process) if line["event"] == "session ended"]

    for line in lines:
        assert line.keys() - {"ended_for"} == ENDED
    assert [
        (line["session"], line["end_reason"], line["account"], line["device"], line.get("ended_for")) for line in lines
    ] == [
        (str(lapsed), "expired", "a", "tv", None),
        (torn, "teardown", "a", "tv", None),
        (evicted, "evicted", "a", "tv", "phone"),
        (stopped, "operator", "a", "phone", None),
        (of_device, "device_disabled", "b", "tv", None),
        (of_account, "account_disabled", "b", "phone", None),
        (str(late), "expired", "b", "tv", None),
    ]


def parts(secret: str) -> set[str]:
    return {secret[start : start + PART_LENGTH].lower() for start in range(len(secret) - PART_LENGTH + 1)}


def send(base: str, request: str) -> None:
    """Send bytes, which need not be HTTP, and wait for the answer."""
    address = urlsplit(base)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request.encode())
        connection.recv(4096)


def test_no_line_has_a_token_or_a_key_or_a_part_of_one(
    factory: Factory, database: Database, url: str, tmp_path: Path
) -> None:
    """Calls of a client and of an operator, and everything that may go wrong with them."""
    factory.account("a", "tv", "phone", max_sessions=2)
    token, other = issue_token("a", "tv"), issue_token("a", "phone")
    expired = issue_token("a", "tv", exp=1)
    key = factory.operator()["Operator-Key"]
    service_password = uuid4().hex
    variables = {
        "SRM_LOG_FORMAT": "json",
        "SRM_ACCESS_LOG_SAMPLE": "1",
        "SRM_ENTITLEMENTS": "http",
        "SRM_ENTITLEMENTS_URL": f"http://srm:{service_password}@127.0.0.1:1/",
        "SRM_ENTITLEMENTS_ON_FAILURE": "allow",
    }
    with api(url, tmp_path / "log", workers=1, variables=variables) as (base, process):
        call = Client(base)
        session = call("1", "POST", "sessions", SETUP, Client_Token=token).json()["successResponse"]["sessionId"]
        for wrong in (expired, token[:-4] + "AAAA", token + token, token.replace(".", "")):
            call("2", "PUT", f"sessions/{session}", Client_Token=wrong)
        call("3", "PUT", f"sessions/{session}", Client_Token=token)
        call("4", "PUT", f"sessions/{session}", Client_Token=other)
        call("5", "PUT", f"sessions/{token}", Client_Token=token)
        call("6", "GET", f"{token}?Client-Token={token}", Client_Token=token)
        call("7", "POST", "sessions", {"content": {"contentID": token, "contentType": token}}, Client_Token=token)
        call(
            "8", "POST", "sessions", {"content": {"contentID": "film", "contentType": "COD"}, "options": {token: token}}
        )
        call("9", "POST", "sessions", token.encode(), Client_Token=token)
        send(base, f"PUT /srm/v1/sessions/{session} HTTP/1.1\r\nHost: srm\r\nClient-Token: {token}\x01\r\n\r\n")
        send(base, f"PUT /srm/v1/sessions/{session} HTTP/1.1\r\nHost: srm\r\nClient-Token {token}\r\n\r\n")
        send(base, f"PUT /srm/v1/sessions/{session} {token}\r\nHost: srm\r\n\r\n")
        send(base, f"{token} / HTTP/1.1\r\nHost: srm\r\n\r\n")
        send(base, f"PUT /srm/v1/sessions/{session} HTTP/1.1\r\nHost: srm\r\nTransfer-Encoding: {token}\r\n\r\n")
        call("10", "DELETE", f"sessions/{session}", Client_Token=token)
        for name in ("11", "12"):
            call(name, "PUT", "accounts/c", {"profileId": "profile of a"}, Operator_Key=key)
        call("13", "GET", "accounts/a/sessions", Operator_Key=key + "x")
        call("14", "GET", "accounts/a/sessions?limit=" + key, Operator_Key=key)
        call("15", "PUT", "accounts/c", {key: key}, Operator_Key=key)
        call("16", "PUT", "profiles/x", {"maxSessions": key}, Operator_Key=key)
        with database.transaction() as db:
            db.exec_driver_sql("DROP TABLE srm.sessions, srm.entitlements CASCADE")
        for method, path in (("POST", "sessions"), ("PUT", f"sessions/{session}"), ("DELETE", f"sessions/{session}")):
            body = SETUP if method == "POST" else None
            assert call("17", method, path, body, Client_Token=token).status_code == 500
        assert call("18", "DELETE", "accounts/a/sessions", Operator_Key=key).status_code == 500
        with database.transaction() as db:
            db.exec_driver_sql("DROP TABLE srm.operators")
        assert call("19", "GET", "accounts/a", Operator_Key=key).status_code == 500
        text = process.text()

    lines = [json.loads(line) for line in text.splitlines()]
    seen = {line.get("correlation_id") for line in lines}
    assert {str(number) for number in range(1, 20)} <= seen
    assert len([line for line in lines if line["event"].startswith("unreadable request")]) >= 2
    for line in lines:
        assert line.keys() >= {"event", "level", "timestamp"}, line
        assert line["event"] not in ("request", "request refused", "request failed") or line.keys() >= REQUEST
    secrets = [token, other, expired, key.rpartition(".")[2], SECRET, service_password]
    found = {part for secret in secrets for part in parts(secret) if part in text.lower()}
    assert found == set()
