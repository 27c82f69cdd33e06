"""SRM_ENTITLEMENTS=http: the operator's service decides content access. Setups are decided without its answer too.

docs/design.md, Invariant 7: the service is asked while no lock is held.
"""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from flask.testing import FlaskClient
from structlog.testing import LogCapture

from srm.api import envelope
from srm.api.parts import parts_of
from srm.clients import breaker, entitlement_service
from srm.clients.entitlement_service import EntitlementService
from srm.db.database import Database
from srm.db.models import Account, Device
from srm.deadline import DEADLINE
from srm.errors import DependencyUnavailable
from srm.playback.entitlements import Access
from srm.playback.model import ContentRef, Principal
from tests.entitlement_server import (
    ENDLESS_SECONDS,
    Call,
    EntitlementServer,
    certificate,
    deny,
    entitlement_server,
    grant,
    hang,
    seconds_of,
)
from tests.support import Factory, error_of, free_port, issue_token, rows, wait_until

TIMEOUT_SECONDS = 1
SLACK_SECONDS = 1
"""Allowance for a busy machine."""

ANSWERED = {"deny": "SRM-0007", "allow": "admitted", "unavailable": "SRM-0010"}
"""Result of a setup without an answer of the service, by SRM_ENTITLEMENTS_ON_FAILURE."""


@pytest.fixture
def server() -> Iterator[EntitlementServer]:
    with entitlement_server() as server:
        yield server


@pytest.fixture(autouse=True)
def account(factory: Factory) -> None:
    factory.account("a", "tv", "phone", max_sessions=None, products=())  # the tables would grant nothing


@pytest.fixture
def serving(make_client: Callable[..., FlaskClient], url: str, server: EntitlementServer) -> Callable[..., FlaskClient]:
    """Return a function that makes a client of an application which asks the server."""

    def make(**settings: Any) -> FlaskClient:
        of_service = {"url": server.url, "timeout_seconds": TIMEOUT_SECONDS, **settings}
        prefixed = {f"entitlements_{name}": value for name, value in of_service.items()}
        return make_client(database_url=url, entitlements="http", **prefixed)

    return make


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the log lines of the entitlement client and of the answers."""
    captured = LogCapture()
    for module in (entitlement_service, breaker, envelope):
        monkeypatch.setattr(module, "log", structlog.wrap_logger(None, processors=[captured]))
    return captured.entries


@pytest.fixture
def client(serving: Callable[..., FlaskClient]) -> FlaskClient:
    return serving()


def post(client: FlaskClient, content: str = "film", device: str = "tv", account: str = "a", **headers: str) -> Any:
    body = {"content": {"contentID": content, "contentType": "COD"}}
    return client.post("/srm/v1/sessions", json=body, headers={"Client-Token": issue_token(account, device), **headers})


def test_a_setup_past_its_deadline_does_not_ask_the_service(client: FlaskClient, server: EntitlementServer) -> None:
    waited = DEADLINE.set(time.monotonic())
    try:
        assert error_of(post(client)) == (503, "ERROR", "SRM-0010")
    finally:
        DEADLINE.reset(waited)

    assert server.questions == []


def set_up(client: FlaskClient, content: str = "film", device: str = "tv", account: str = "a", **headers: str) -> str:
    """Set up a session; return `admitted` or the errorCode."""
    answer = post(client, content, device, account, **headers)
    return "admitted" if "successResponse" in answer.get_json() else error_of(answer)[2]


def service_of(client: FlaskClient) -> EntitlementService:
    service = parts_of(client.application).entitlement_service
    assert service is not None
    return service


def ask(client: FlaskClient, content: str = "film") -> Access:
    """Ask for content access as a setup does, without the setup."""
    return service_of(client).access_to(Principal("a", "tv"), ContentRef("COD", content))


def reasons(database: Database) -> list[tuple[str, str | None]]:
    """List errorCode and reason of the recorded denials."""
    found = rows(database, "SELECT error_code, reason FROM srm.denials ORDER BY denied_at")
    return [(code, reason) for code, reason in found]


# Questions and answers


def test_the_question_has_account_device_and_content_of_the_setup(
    client: FlaskClient, server: EntitlementServer
) -> None:
    assert set_up(client, "Fußball", **{"X-Correlation-Id": "from-the-box"}) == "admitted"

    (question,) = server.questions
    assert question.line == "POST /may-watch?v=1 HTTP/1.1"
    assert question.headers["content-type"] == "application/json"
    assert question.headers["x-correlation-id"] == "from-the-box"
    assert "authorization" not in question.headers
    assert question.json == {
        "accountId": "a",
        "deviceId": "tv",
        "contentID": "Fußball",
        "contentType": "COD",
        "correlationId": "from-the-box",
    }


def test_credentials_in_the_url_are_sent_as_basic_authentication(
    serving: Callable[..., FlaskClient], server: EntitlementServer, lines: list[Any]
) -> None:
    client = serving(url=server.url.replace("http://", "http://srm:p%40ss@"))

    assert set_up(client) == "admitted"
    server.behave = lambda call: call.answer({}, "500 Oops")
    set_up(client)

    expected = base64.b64encode(b"srm:p@ss").decode()
    assert server.questions[0].headers["authorization"] == f"Basic {expected}"
    assert lines
    assert not any(secret in str(lines) for secret in ("p@ss", "p%40ss", expected))


def test_a_denied_setup_gets_srm_0007_and_the_reason_is_recorded(
    client: FlaskClient, server: EntitlementServer, database: Database, lines: list[Any]
) -> None:
    server.behave = deny

    answer = post(client)

    assert error_of(answer) == (200, "DENIED", "SRM-0007")
    assert "package" not in answer.text
    assert reasons(database) == [("SRM-0007", "not in the package")]
    (line,) = [line for line in lines if line["event"] == "request refused"]
    assert (line["reason"], line["account"]) == ("not in the package", "a")


def test_a_denial_without_a_reason_is_recorded(
    client: FlaskClient, server: EntitlementServer, database: Database
) -> None:
    server.behave = lambda call: call.answer({"granted": False, "more": [1]})

    assert set_up(client) == "SRM-0007"
    assert reasons(database) == [("SRM-0007", None)]


def test_questions_share_one_connection(client: FlaskClient, server: EntitlementServer) -> None:
    for _ in range(5):
        assert set_up(client) == "admitted"

    assert (len(server.questions), server.connections) == (5, 1)


# The order of the checks


@pytest.mark.parametrize("behave", [deny, hang, lambda call: call.hang_up()], ids=["denies", "hangs", "hangs up"])
def test_account_and_device_are_checked_before_content_access(
    client: FlaskClient, server: EntitlementServer, factory: Factory, behave: Callable[[Call], None]
) -> None:
    server.behave = behave

    assert set_up(client, device="unknown") == "SRM-0005"
    factory.change(Device, {"account_id": "a", "device_id": "tv"}, enabled=False)
    assert set_up(client) == "SRM-0005"
    factory.change(Account, {"account_id": "a"}, enabled=False)
    assert set_up(client) == "SRM-0004"
    assert set_up(client, account="unknown") == "SRM-0004"


def test_content_access_is_checked_before_the_limits(
    client: FlaskClient, server: EntitlementServer, factory: Factory
) -> None:
    factory.change(Account, {"account_id": "a"}, max_sessions=0)

    assert set_up(client) == "SRM-0006"
    server.behave = deny
    assert set_up(client) == "SRM-0007"


def test_the_service_is_not_asked_without_a_valid_token(client: FlaskClient, server: EntitlementServer) -> None:
    assert set_up(client, **{"Client-Token": "x"}) == "SRM-0003"
    assert server.questions == []


def test_nothing_is_locked_while_the_service_is_asked(client: FlaskClient, server: EntitlementServer, url: str) -> None:
    """Another connection can lock the account, and no transaction is open."""
    assert set_up(client, "before") == "admitted"  # the connection is there
    looked: list[int] = []

    def look(call: Call) -> None:
        with psycopg.connect(url, autocommit=True) as somebody:
            somebody.execute("SELECT FROM srm.accounts WHERE account_id = 'a' FOR UPDATE NOWAIT")
            looked.append(
                somebody.execute(
                    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
                ).rowcount
            )
        grant(call)

    server.behave = look

    assert set_up(client) == "admitted"
    assert looked == [0]


# Without an answer


def not_http(call: Call) -> None:
    call.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    call.hang_up()


def too_late(call: Call) -> None:
    call.hang(TIMEOUT_SECONDS + 0.2)
    grant(call)


def drip_head(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    call.drip()


def drip_body(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
    call.drip(b" ")


def early_hints_without_end(call: Call) -> None:
    call.again_and_again(b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.02)


def endless_chunks(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    call.again_and_again(b"400\r\n" + b" " * 0x400 + b"\r\n")


def endless_head(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\n")
    call.again_and_again(b"X-Filler: " + b"x" * 1000 + b"\r\n")


def cut_body(call: Call) -> None:
    call.send(b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"granted": true}')
    call.hang_up()


def redirect(call: Call) -> None:
    if "elsewhere" in call.question.line:
        grant(call)
    else:
        call.answer({"granted": True}, "307 Temporary Redirect", "Location: /elsewhere")


def raw(body: bytes) -> Callable[[Call], None]:
    return lambda call: call.answer(body)


FAILURES: dict[str, tuple[str, Callable[[Call], None]]] = {
    "hanging": ("timeout", hang),
    "slow": ("timeout", too_late),
    "dripping head": ("timeout", drip_head),
    "dripping body": ("timeout", drip_body),
    "early hints": ("timeout", early_hints_without_end),
    "hanging up": ("connection", lambda call: call.hang_up()),
    "reset": ("connection", lambda call: call.hang_up(reset=True)),
    "not HTTP": ("connection", not_http),
    "cut body": ("connection", cut_body),
    "endless head": ("connection", endless_head),
    "500": ("answer", lambda call: call.answer({"granted": True}, "500 Internal Server Error")),
    "204": ("answer", lambda call: call.answer(b"", "204 No Content")),
    "201": ("answer", lambda call: call.answer({"granted": True}, "201 Created")),
    "404": ("answer", lambda call: call.answer({"granted": False}, "404 Not Found")),
    "redirect": ("answer", redirect),
    "huge": ("answer", raw(b'{"granted": true}' + b" " * 70_000)),
    "endless chunks": ("answer", endless_chunks),
    "garbage": ("answer", raw(b"<html>")),
    "empty": ("answer", raw(b"")),
    "not UTF-8": ("answer", raw(b'{"granted": true, "reason": "\xff"}')),
    "nested": ("answer", raw(b"[" * 60_000)),
}


def assert_told(lines: list[Any], kind: str, answered_as: str) -> None:
    """Assert that exactly one log line tells of the failure."""
    (line,) = [line for line in lines if line["event"] == "no answer of the entitlement service"]
    assert (line["kind"], line["answered_as"], line["account"]) == (kind, answered_as, "a")
    assert line["cause"]


@pytest.mark.parametrize(("kind", "behave"), FAILURES.values(), ids=FAILURES.keys())
def test_a_setup_is_answered_in_time_whatever_the_service_does(
    client: FlaskClient, server: EntitlementServer, kind: str, behave: Callable[[Call], None], lines: list[Any]
) -> None:
    server.behave = behave

    began_at = time.monotonic()
    answer = post(client)
    took = time.monotonic() - began_at

    assert took < TIMEOUT_SECONDS + SLACK_SECONDS
    assert error_of(answer) == (503, "ERROR", "SRM-0010")
    assert int(answer.headers["Retry-After"]) >= 1
    assert_told(lines, kind, "unavailable")


@pytest.mark.parametrize("on_failure", ANSWERED)
@pytest.mark.parametrize("how", ["hanging", "reset", "500", "refused"])
def test_a_setup_without_an_answer_is_decided_as_configured(
    serving: Callable[..., FlaskClient],
    server: EntitlementServer,
    database: Database,
    on_failure: str,
    how: str,
    lines: list[Any],
) -> None:
    kind, server.behave = FAILURES.get(how, ("connection", grant))
    address = {"url": f"http://127.0.0.1:{free_port()}/"} if how == "refused" else {}

    answered = set_up(serving(on_failure=on_failure, **address))

    assert answered == ANSWERED[on_failure]
    assert_told(lines, kind, on_failure)
    recorded = [("SRM-0007", "entitlement service unavailable")] if on_failure == "deny" else []
    assert reasons(database) == recorded


@pytest.mark.parametrize("address", ["http://nowhere.invalid/", f"http://{'x' * 64}.example/", "https://127.0.0.1:1/"])
def test_an_unreachable_address_is_a_failure(serving: Callable[..., FlaskClient], address: str) -> None:
    assert set_up(serving(url=address)) == "SRM-0010"


@pytest.mark.parametrize(("on_failure", "answered"), [("allow", "admitted"), ("deny", "SRM-0007")])
def test_a_slow_resolver_does_not_take_the_time_of_the_database(
    serving: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch, on_failure: str, answered: str
) -> None:
    """Only the resolver has a timeout of its own. The setup is still decided as configured."""

    def slowly(*_: object, **__: object) -> list[object]:
        time.sleep(3)
        raise OSError("no answer of the resolver")

    client = serving(url="http://entitlements.example/", on_failure=on_failure)
    monkeypatch.setattr(socket, "getaddrinfo", slowly)

    assert set_up(client) == answered


def test_a_tls_handshake_that_never_begins_is_given_up_in_time(serving: Callable[..., FlaskClient]) -> None:
    """The kernel accepts the connection, and no byte ever comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = serving(url=f"https://127.0.0.1:{silent.getsockname()[1]}/")
        hang_up = threading.Timer(ENDLESS_SECONDS, silent.shutdown, [socket.SHUT_RDWR])
        hang_up.start()

        took = seconds_of(lambda: set_up(client))

        hang_up.cancel()
        hang_up.join()
    assert took < TIMEOUT_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize(("is_trusted", "answered"), [(True, "admitted"), (False, "SRM-0010")])
def test_tls_requires_a_trusted_certificate(
    serving: Callable[..., FlaskClient],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_trusted: bool,
    answered: str,
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "service.pem"))
    with entitlement_server(grant, tls=certificate(tmp_path / "service.pem")) as server:
        client = serving(url=server.url)

        assert [set_up(client), set_up(client)] == [answered] * 2
        server.behave = drip_head
        assert seconds_of(lambda: set_up(client)) < TIMEOUT_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize("reset", [False, True])
def test_an_idle_connection_closed_by_the_service_is_no_failure(
    client: FlaskClient, server: EntitlementServer, reset: bool
) -> None:
    """The service closes the connection at the moment of the next question."""
    server.behave = lambda call: grant(call) if call.number == 1 else call.hang_up(reset=reset)

    for _ in range(4):
        assert set_up(client) == "admitted"

    assert server.connections == 4


def test_a_broken_connection_is_tried_once_more_and_not_twice(client: FlaskClient, server: EntitlementServer) -> None:
    server.behave = lambda call: call.hang_up(reset=True)

    set_up(client)

    assert len(server.questions) == 2


def test_both_tries_share_one_timeout(serving: Callable[..., FlaskClient], server: EntitlementServer) -> None:
    client = serving(timeout_seconds=2)

    def late(call: Call) -> None:
        call.hang(1.4)
        if len(server.questions) == 1:
            call.hang_up()
        call.hang()

    server.behave = late

    assert seconds_of(lambda: set_up(client)) < 3
    assert len(server.questions) == 2


def test_a_timeout_is_not_tried_again(client: FlaskClient, server: EntitlementServer) -> None:
    server.behave = hang

    set_up(client)

    assert len(server.questions) == 1


def test_a_redirect_is_not_followed(client: FlaskClient, server: EntitlementServer) -> None:
    server.behave = redirect

    set_up(client)

    assert len(server.questions) == 1


# Cached answers


def keep_for(seconds: float, **more: Any) -> Callable[[Call], None]:
    return lambda call: call.answer({"granted": True, "keepForSeconds": seconds, **more})


def test_an_answer_is_cached_as_long_as_it_allows(client: FlaskClient, server: EntitlementServer) -> None:
    server.behave = keep_for(1)
    began_at = time.monotonic()
    for _ in range(3):
        assert set_up(client) == "admitted"
    if time.monotonic() - began_at < 0.9:
        assert len(server.questions) == 1

    wait_until(lambda: time.monotonic() - began_at > 1.5)
    assert set_up(client) == "admitted"
    assert len(server.questions) >= 2


def test_a_cached_denial_keeps_its_reason(client: FlaskClient, server: EntitlementServer, database: Database) -> None:
    server.behave = lambda call: call.answer({"granted": False, "reason": "expired", "keepForSeconds": 60})

    assert [set_up(client), set_up(client)] == ["SRM-0007", "SRM-0007"]
    assert len(server.questions) == 1
    assert reasons(database) == [("SRM-0007", "expired")] * 2


def test_a_cached_answer_holds_for_its_account_device_and_content_only(
    client: FlaskClient, server: EntitlementServer, factory: Factory
) -> None:
    server.behave = keep_for(60)
    factory.account("b", products=())

    set_up(client)
    set_up(client, content="other")
    set_up(client, device="phone")
    set_up(client, account="b")
    headers = {"Client-Token": issue_token("a", "tv")}
    client.post("/srm/v1/sessions", json={"content": {"contentID": "film", "contentType": "CU"}}, headers=headers)

    assert len({question.body for question in server.questions}) == 5


@pytest.mark.parametrize("body", [{"granted": True}, {"granted": True, "keepForSeconds": 0}])
def test_an_answer_without_keep_for_seconds_is_not_cached(
    client: FlaskClient, server: EntitlementServer, body: Any
) -> None:
    server.behave = lambda call: call.answer(body)

    set_up(client)
    set_up(client)

    assert len(server.questions) == 2


def test_a_failure_is_not_cached(client: FlaskClient, server: EntitlementServer) -> None:
    server.behave = lambda call: call.answer({"granted": False, "keepForSeconds": 60}, "500 Internal Server Error")
    assert set_up(client) == "SRM-0010"

    server.behave = grant
    assert set_up(client) == "admitted"


def test_the_cache_has_a_limited_size(
    serving: Callable[..., FlaskClient], server: EntitlementServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entitlement_service, "CACHED_ANSWERS", 2)
    client = serving()
    server.behave = keep_for(60)

    for content in ("1", "2", "3", "1"):
        assert set_up(client, content) == "admitted"

    assert len(server.questions) == 4
    set_up(client, "3")
    assert len(server.questions) == 4


def test_the_cache_keeps_no_answer_longer_than_its_maximum(
    client: FlaskClient, server: EntitlementServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entitlement_service, "MAX_KEEP_SECONDS", 0.1)
    server.behave = keep_for(10**30)

    set_up(client)
    time.sleep(0.2)
    set_up(client)

    assert len(server.questions) == 2


# The breaker


def trip(client: FlaskClient, server: EntitlementServer) -> None:
    server.behave = lambda call: call.answer({}, "500 Internal Server Error")
    for _ in range(breaker.FAILURES_IN_A_ROW):
        assert set_up(client) == "SRM-0010"


def test_failures_in_a_row_open_the_breaker_and_later_an_answer_closes_it(
    client: FlaskClient, server: EntitlementServer, monkeypatch: pytest.MonkeyPatch, lines: list[Any]
) -> None:
    monkeypatch.setattr(breaker, "OPEN_SECONDS", 0.3)
    trip(client, server)
    asked = len(server.questions)
    server.behave = grant

    assert set_up(client) == "SRM-0010"
    assert len(server.questions) == asked
    time.sleep(0.35)
    assert set_up(client) == "admitted"
    assert set_up(client) == "admitted"

    assert len(server.questions) == asked + 2
    kinds = [line["kind"] for line in lines if "kind" in line]
    assert kinds == ["answer"] * breaker.FAILURES_IN_A_ROW + ["left alone"]
    assert [line["event"] for line in lines if line["event"].startswith("entitlement service")] == [
        "entitlement service is left alone",
        "entitlement service is back",
    ]


def test_an_answer_resets_the_count_of_failures(client: FlaskClient, server: EntitlementServer) -> None:
    for _ in range(3):
        server.behave = lambda call: call.answer({}, "500 Internal Server Error")
        for _ in range(breaker.FAILURES_IN_A_ROW - 1):
            set_up(client)
        server.behave = deny
        assert set_up(client) == "SRM-0007"


def test_a_failed_trial_opens_the_breaker_again(
    client: FlaskClient, server: EntitlementServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "OPEN_SECONDS", 0.3)
    trip(client, server)
    time.sleep(0.35)
    asked = len(server.questions)

    for _ in range(3):
        assert set_up(client) == "SRM-0010"

    assert len(server.questions) == asked + 1


def test_one_setup_tries_the_service_while_the_others_do_not_wait(
    client: FlaskClient, server: EntitlementServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "OPEN_SECONDS", 0.1)
    trip(client, server)
    time.sleep(0.15)
    asked = len(server.questions)
    answered = threading.Event()

    def answer_later(call: Call) -> None:
        answered.wait(TIMEOUT_SECONDS * 0.8)
        grant(call)

    server.behave = answer_later
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, client)
        wait_until(lambda: len(server.questions) == asked + 1, timeout=TIMEOUT_SECONDS)
        others = [set_up(client) for _ in range(3)]
        answered.set()
        assert first.result().denial is None

    assert others == ["SRM-0010"] * 3
    assert len(server.questions) == asked + 1


def test_the_number_of_concurrent_calls_is_limited(
    client: FlaskClient, server: EntitlementServer, lines: list[Any]
) -> None:
    server.behave = hang
    calls = entitlement_service.CALLS_AT_ONCE
    with ThreadPoolExecutor(calls) as threads:
        hanging = [threads.submit(ask, client, str(number)) for number in range(calls)]
        wait_until(lambda: len(server.questions) == calls, timeout=TIMEOUT_SECONDS)
        ask(client, "one more")
        assert not any(asked.done() for asked in hanging)

    assert {type(asked.result().denial) for asked in hanging} == {DependencyUnavailable}
    assert len(server.questions) == calls
    assert [line["content_id"] for line in lines if line.get("kind") == "busy"] == ["one more"]


def test_every_outcome_frees_its_place_among_the_concurrent_calls(
    client: FlaskClient, server: EntitlementServer
) -> None:
    """Each outcome comes more often than there are places."""
    for number in range(entitlement_service.CALLS_AT_ONCE + 1):
        server.behave = lambda call: call.hang_up()
        assert set_up(client) == "SRM-0010"
        server.behave = grant
        assert set_up(client, str(number)) == "admitted"


# Metrics


def measured(client: FlaskClient) -> dict[str, float]:
    """Read the metrics of entitlements, by name and labels."""
    lines = client.get("/metrics").text.splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines)
        if name.startswith("srm_entitlement_") and "_bucket" not in name and "_created" not in name
    }


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return the changes of the metrics, without those in seconds."""
    changes = {name: value - before.get(name, 0) for name, value in after.items()}
    return {name: change for name, change in changes.items() if change and name != "srm_entitlement_seconds_sum"}


def test_metrics_count_answers_by_result_and_source(client: FlaskClient, server: EntitlementServer) -> None:
    before = measured(client)
    server.behave = keep_for(60)
    set_up(client)
    set_up(client)
    server.behave = deny
    set_up(client, "other")

    assert grown(before, measured(client)) == {
        'srm_entitlement_answers_total{answer="granted",source="service"}': 1,
        'srm_entitlement_answers_total{answer="granted",source="cache"}': 1,
        'srm_entitlement_answers_total{answer="denied",source="service"}': 1,
        "srm_entitlement_seconds_count": 2,
    }


@pytest.mark.parametrize("on_failure", ANSWERED)
def test_metrics_count_failures_by_cause_and_decision(
    serving: Callable[..., FlaskClient], server: EntitlementServer, on_failure: str
) -> None:
    client = serving(on_failure=on_failure)
    before = measured(client)

    server.behave = hang
    set_up(client)
    server.behave = lambda call: call.hang_up()
    set_up(client)
    server.behave = lambda call: call.answer([])
    set_up(client)
    set_up(client)

    after = measured(client)
    assert grown(before, after) == {
        **{
            f'srm_entitlement_failures_total{{answered_as="{on_failure}",kind="{kind}"}}': 1
            for kind in ("timeout", "connection", "answer", "left alone")
        },
        "srm_entitlement_seconds_count": 3,
        "srm_entitlement_breakers_open": 1,
    }
    assert after["srm_entitlement_seconds_sum"] - before["srm_entitlement_seconds_sum"] >= TIMEOUT_SECONDS
    server.behave = grant
    wait_until(lambda: ask(client).spent_seconds > 0 and not measured(client)["srm_entitlement_breakers_open"])
