"""deploy/nginx/srm.conf, run by the real nginx in front of the real service."""

import json
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from srm import errors
from srm.api.http_errors import HTTP_ERRORS, MethodNotAllowed, RequestTooLarge, TooManyRequests
from srm.app import create_app
from srm.config import Settings
from srm.db.database import Database
from tests import tools
from tests.deploy.service import NGINX, Nginx, configure, instance, nginx, tls
from tests.support import ROOT, SECRET, SETUP, Factory, http, issue_token, rows, wait_until

PRODUCTION = (ROOT / "docs" / "production.md").read_text()

PAGE = "https://player.example"
FROM_TESTS = "set_real_ip_from 127.0.0.1;\nreal_ip_header Test-Address;\n"
"""nginx takes the client's address from a header, as behind a load balancer: so a test can be many clients."""

CLIENT_API = {"/srm/v1/sessions", "/srm/sessions", "/srm/v1/sessions/<session_id>", "/srm/sessions/<session_id>"}


@pytest.fixture(scope="module")
def url(clone: Callable[[], str]) -> str:
    return clone()


@pytest.fixture(scope="module")
def database(url: str) -> Iterator[Database]:
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", "tv", "phone", max_sessions=2)
    yield database
    database.dispose()


@pytest.fixture(scope="module")
def operator(database: Database) -> dict[str, str]:
    return Factory(database).operator()


@pytest.fixture(scope="module")
def front(url: str, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("nginx")
    bind = f"unix:{folder}/api.sock"
    with (
        instance(url, folder / "api.log", bind, variables={"SRM_CORS_ORIGINS": PAGE}),
        nginx(folder / "nginx", bind, listen=FROM_TESTS, origins=f'"{PAGE}" $http_origin;\n') as front,
    ):
        yield front


@pytest.fixture
def player(front: Nginx) -> Iterator[httpx.Client]:
    with front.client(headers={"Client-Token": issue_token("a", "tv")}) as client:
        yield client


@pytest.fixture
def inside(front: Nginx) -> Iterator[httpx.Client]:
    with httpx.Client(verify=False, base_url=front.operators, timeout=20) as client:
        yield client


def assert_is(answer: httpx.Response, error: type[errors.SrmError]) -> None:
    """Assert that the answer of nginx has the envelope, code and headers with which SRM reports this error."""
    http = HTTP_ERRORS[error]
    assert answer.json() == {
        "errorResponse": {
            "code": str(http.code),
            "status": http.status,
            "errorCode": error.error_code,
            "errorMessage": error.message,
        }
    }
    assert answer.status_code == http.code
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers.get_list("Cache-Control") == ["no-store"]
    assert len(answer.headers.get_list("X-Correlation-Id")) == 1
    assert "nginx" not in answer.text
    assert answer.headers.get("Retry-After") == (None if http.retry_after_seconds is None else "1")


def test_nginx_accepts_the_shipped_files_without_a_warning(tmp_path: Path) -> None:
    result = subprocess.run([*configure(tmp_path / "n", ["127.0.0.1:1"], 1, 2), "-t"], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert "warn" not in result.stderr


def test_copying_the_files_again_keeps_what_an_operator_has_changed(tmp_path: Path) -> None:
    """The block of docs/production.md runs twice: for the first version and for the next one."""
    (lines,) = re.findall(r"^(install -d /etc/nginx/srm\n.*?)^nginx -t", PRODUCTION, re.MULTILINE | re.DOTALL)
    target = tmp_path / "etc"
    (target / "conf.d").mkdir(parents=True)
    (tmp_path / "deploy").symlink_to(NGINX.parent)
    for name in ("certificate.pem", "key.pem"):
        (tmp_path / name).write_text(name)
    script = lines.replace("/etc/nginx", str(target))
    assert "/etc/nginx" not in script
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True)
    assert {path.name for path in (NGINX / "srm").iterdir()} < {path.name for path in (target / "srm").iterdir()}
    theirs = ("listen", "operators", "upstream", "here", "origins", "logs")
    for name in (*theirs, "common"):
        (target / "srm" / f"{name}.conf").write_text("changed")

    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)

    assert {(target / "srm" / f"{name}.conf").read_text() for name in theirs} == {"changed"}
    assert (target / "srm" / "common.conf").read_text() == (NGINX / "srm" / "common.conf").read_text()
    assert (target / "srm" / "key.pem").stat().st_mode & 0o777 == 0o600


def test_no_command_of_the_production_page_contains_a_password() -> None:
    urls = re.findall(r"postgresql://(?:srm_\w+|postgres):([^@]*)@", PRODUCTION)

    assert {*urls} == {"$APPLICATION", "$OWNER"}


def test_a_session_goes_through_its_life_behind_nginx(player: httpx.Client, database: Database) -> None:
    first = player.post("/srm/v1/sessions", json=SETUP)
    session = first.json()["successResponse"]["sessionId"]
    path = f"/srm/v1/sessions/{session}"
    second = player.post("/srm/sessions", json=SETUP, headers={"Idempotency-Key": "k"})
    refused = player.post("/srm/v1/sessions", json=SETUP)
    alive = player.put(path)
    listed = player.get("/srm/v1/sessions")
    gone = [player.delete(path), player.delete(path)]
    ended = player.put(path)
    player.delete(f"/srm/sessions/{second.json()['successResponse']['sessionId']}")

    assert first.json()["successResponse"]["timeout"] == 30
    assert refused.json()["errorResponse"]["errorCode"] == "SRM-0006"
    assert (alive.status_code, alive.content) == (200, b"")
    assert len(listed.json()["successResponse"]["sessions"]) == 2
    assert [answer.status_code for answer in gone] == [200, 200]
    assert (ended.status_code, ended.headers["SRM-End-Reason"]) == (410, "teardown")
    for answer in (first, refused, alive, listed, *gone, ended):
        assert answer.headers.get_list("Cache-Control") == ["no-store"]
        assert UUID(answer.headers["X-Correlation-Id"]).version == 4
        assert answer.http_version == "HTTP/1.1"


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_nginx_speaks_http_1_1_and_http_2(front: Nginx, version: str) -> None:
    """curl plays the client: httpx speaks HTTP/1.1 only."""

    def curl(method: str, path: str, *options: str) -> tuple[str, str]:
        command = [tools.need("curl"), "-s", f"--http{version}", "--cacert", front.certificate, "-X", method]
        command += ["-H", f"Client-Token: {issue_token('a', 'phone')}", "-w", "\n%{http_version} %{response_code}"]
        said = subprocess.run([*command, *options, front.world + path], capture_output=True, text=True, check=True)
        body, _, last = said.stdout.rpartition("\n")
        return body, last

    body, said = curl("POST", "/srm/v1/sessions", "-d", json.dumps(SETUP))
    session = json.loads(body)["successResponse"]["sessionId"]
    too_large, said_413 = curl("POST", "/srm/v1/sessions", "-d", "x" * 20_000)

    assert said == f"{version} 200"
    assert curl("DELETE", f"/srm/v1/sessions/{session}") == ("", f"{version} 200")
    assert said_413 == f"{version} 413"
    assert json.loads(too_large)["errorResponse"]["errorCode"] == "SRM-0002"
    assert curl("GET", "/readyz")[1] == f"{version} 404"


@pytest.mark.parametrize(
    ("option", "is_taken"), [("--tlsv1.3", True), ("--tls-max=1.2", True), ("--tls-max=1.1", False)]
)
def test_nginx_accepts_tls_1_2_and_1_3_and_refuses_older_ones(front: Nginx, option: str, is_taken: bool) -> None:
    command = [
        tools.need("curl"),
        "-s",
        "-o",
        "/dev/null",
        "--cacert",
        front.certificate,
        "--ciphers",
        "DEFAULT@SECLEVEL=0",
    ]
    command += ["--tlsv1.0"] * (not is_taken) + option.split("=")

    assert (subprocess.run([*command, front.world]).returncode == 0) is is_taken


class TestClosedToTheOutside:
    def test_the_world_reaches_the_client_api_only(
        self, front: Nginx, inside: httpx.Client, operator: dict[str, str]
    ) -> None:
        """Every other route gets 404 with every method. Operators reach these routes."""
        app = create_app(Settings(database_url="postgresql://nowhere/none", token_secret=SECRET))
        routes = {(rule.rule, method) for rule in app.url_map.iter_rules() for method in rule.methods or ()}
        others = {(rule, method) for rule, method in routes if rule not in CLIENT_API}
        assert {rule for rule, _ in routes} > CLIENT_API
        assert len(others) > 80

        with front.client(headers={"Client-Token": issue_token("a", "tv"), **operator}) as client:
            for rule, method in sorted(others):
                path = re.sub("<[^>]*>", "a", rule)
                answer = client.request(method, path)
                assert answer.status_code == 404, path
                if method != "HEAD":
                    assert_is(answer, errors.ResourceNotFound)
        for path in ("/metrics", "/readyz", "/healthz", "/srm/v1/openapi.json", "/srm/v1/accounts", "/srm/docs/"):
            assert inside.get(path, headers=operator).status_code == 200, path

    def test_no_odd_path_leads_to_another_route(self, front: Nginx, operator: dict[str, str]) -> None:
        """nginx answers these paths itself, because nginx and SRM could read them differently."""
        ways = [
            "/srm/v1/accounts/%2e%2e/sessions",
            "/srm/v1/accounts/a/../../sessions",
            "/srm/v1/sessions/../accounts",
            "/srm/v1/sessions/..%2faccounts",
            "/srm/v1/sessions/%2e%2e/accounts",
            "//srm/v1/accounts",
            "/srm/v1/./accounts",
            "/srm/v1/sessions/../../../metrics",
            "/srm/v1/accounts#/../sessions",
            "/-/429",
            "/-/",
            "/srm/v1/sessions/",
            "/srm/v1/sessions/x/y",
            "/SRM/v1/accounts",
            "http://srm/srm/v1/accounts",
        ]
        run = uuid4()
        for number, way in enumerate(ways):
            head = f"GET {way} HTTP/1.1\r\nHost: srm\r\nOperator-Key: {operator['Operator-Key']}\r\n"
            answer = send(front, f"{head}X-Correlation-Id: {run}-{number}.\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 404 "), way
            assert b"SRM-0011" in answer, way

        wait_until(lambda: front.logged("srm-access.log").count(str(run)) == len(ways))
        lines = [json.loads(line) for line in front.logged("srm-access.log").splitlines() if str(run) in line]
        assert [line["path"] for line in lines if line["upstream"]] == []

    @pytest.mark.parametrize("header", ["PATH_INFO", "SCRIPT_NAME"])
    def test_no_header_leads_to_another_route(
        self, player: httpx.Client, operator: dict[str, str], header: str
    ) -> None:
        answer = player.get("/srm/v1/sessions", headers={**operator, header: "/srm/v1/accounts"})

        assert "sessions" in answer.json()["successResponse"]


def test_metrics_and_health_come_from_this_host_and_other_requests_from_any_host(url: str, tmp_path: Path) -> None:
    """SRM on this host is down: its metrics and health get 503 instead of the answer of another host."""
    here, elsewhere = f"unix:{tmp_path}/here.sock", f"unix:{tmp_path}/elsewhere.sock"
    with (
        instance(url, tmp_path / "log", elsewhere),
        nginx(tmp_path / "nginx", here, elsewhere) as front,
        httpx.Client(verify=False, base_url=front.operators, timeout=20) as client,
    ):
        states = {path: client.get(path).status_code for path in ("/metrics", "/readyz", "/healthz")}
        others = {client.get("/srm/v1/accounts").status_code for _ in range(5)}

    assert states == dict.fromkeys(states, 503)
    assert others == {401}


class TestClientAddress:
    @pytest.mark.parametrize("claim", ["203.0.113.9", "203.0.113.9, 198.51.100.7", "nonsense"])
    def test_the_client_address_is_that_of_the_connection_whatever_headers_claim(
        self, player: httpx.Client, database: Database, claim: str
    ) -> None:
        answer = player.post(
            "/srm/v1/sessions", json=SETUP, headers={"X-Forwarded-For": claim, "X-Real-IP": claim, "Forwarded": claim}
        )
        session = answer.json()["successResponse"]["sessionId"]
        player.delete(f"/srm/v1/sessions/{session}")

        found = rows(database, "SELECT host(address) FROM srm.sessions WHERE session_id = :id", id=session)
        assert found == [("127.0.0.1",)]

    def test_the_client_address_comes_from_a_trusted_load_balancer(
        self, player: httpx.Client, database: Database
    ) -> None:
        """listen.conf of these tests makes nginx trust the header Test-Address."""
        answer = player.post("/srm/v1/sessions", json=SETUP, headers={"Test-Address": "192.0.2.77"})
        session = answer.json()["successResponse"]["sessionId"]
        player.delete(f"/srm/v1/sessions/{session}")

        found = rows(database, "SELECT host(address) FROM srm.sessions WHERE session_id = :id", id=session)
        assert found == [("192.0.2.77",)]


class TestRates:
    def flood(self, front: Nginx, count: int, headers: Callable[[int], dict[str, str]]) -> list[httpx.Response]:
        """Send this many keep-alives of unknown sessions, one after the other."""
        with front.client() as client:
            return [client.put(f"/srm/v1/sessions/{uuid4()}", headers=headers(number)) for number in range(count)]

    def test_a_token_beyond_its_rate_gets_429(self, front: Nginx) -> None:
        """The rate is a burst of 40 and 10 requests a second."""
        token = issue_token("a", "tv", nonce=1)
        started_at = time.monotonic()

        answers = self.flood(front, 120, lambda _: {"Client-Token": token, "Test-Address": "192.0.2.1"})

        allowed = 41 + 10 * (time.monotonic() - started_at)
        passed = [answer for answer in answers if answer.status_code == 404]
        assert 41 <= len(passed) <= allowed + 1
        assert all(answer.status_code == 404 for answer in answers[:40])
        refused = [answer for answer in answers if answer.status_code != 404]
        assert refused
        for answer in refused:
            assert_is(answer, TooManyRequests)
        other = self.flood(front, 1, lambda _: {"Client-Token": issue_token("a", "tv", nonce=2)})
        assert [answer.status_code for answer in other] == [404]

    def test_a_token_works_again_after_retry_after(self, front: Nginx) -> None:
        token = issue_token("a", "tv", nonce=3)
        answers = self.flood(front, 100, lambda _: {"Client-Token": token, "Test-Address": "192.0.2.2"})
        assert answers[-1].status_code == 429

        time.sleep(float(answers[-1].headers["Retry-After"]))

        assert self.flood(front, 1, lambda _: {"Client-Token": token})[0].status_code == 404

    def test_a_full_zone_of_tokens_refuses_nobody(self, tmp_path: Path) -> None:
        """The zone is full of shorter tokens. Requests get 503 because no SRM runs, and never 429."""

        def tokens(count: int, length: int) -> list[str]:
            return [issue_token("a" * length, "tv", nonce=number) for number in range(count)]

        def ask(front: Nginx, tokens: list[str]) -> set[int]:
            answers = self.flood(front, len(tokens), lambda number: {"Client-Token": tokens[number]})
            return {answer.status_code for answer in answers}

        with nginx(tmp_path / "nginx", "127.0.0.1:1", token_zone="32k") as front:
            assert ask(front, tokens(400, 10)) == {503}
            assert ask(front, tokens(60, 1500)) == {503}
            assert ask(front, ["short", *tokens(1, 5000)]) == {503}

    @pytest.mark.parametrize(
        ("address", "neighbour", "stranger"),
        [
            ("192.0.2.3", "192.0.2.3", "192.0.2.4"),
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff::7", "2001:db8:1:3::1"),
        ],
    )
    def test_an_address_beyond_its_rate_gets_429(
        self, tmp_path: Path, address: str, neighbour: str, stranger: str
    ) -> None:
        """The rate does not depend on tokens. An IPv6 /64 counts as one address.

        Requests that pass get 503: no SRM runs, because SRM on a busy machine would be too slow for the rate.
        """
        with nginx(tmp_path / "nginx", "127.0.0.1:1", listen=FROM_TESTS) as front:
            started_at = time.monotonic()
            passed, refused = flood(front, address)
            allowed = 1000 + 500 * (time.monotonic() - started_at)

            assert 1000 <= passed <= allowed + CONNECTIONS
            assert refused > 0
            if neighbour != address:
                assert flood(front, neighbour)[1] > 0
            with front.client(headers={"Test-Address": stranger}) as client:
                assert [client.get("/srm/v1/sessions").status_code for _ in range(20)] == [503] * 20

    def test_an_allowed_page_may_read_a_429(self, front: Nginx) -> None:
        token = issue_token("a", "tv", nonce=4)
        headers = {"Client-Token": token, "Test-Address": "192.0.2.5"}

        answers = self.flood(
            front, 80, lambda number: {**headers, "Origin": PAGE if number % 2 else "https://x.example"}
        )

        theirs, others = answers[79], answers[78]
        assert (theirs.status_code, others.status_code) == (429, 429)
        assert theirs.headers.get_list("Access-Control-Allow-Origin") == [PAGE]
        assert "Retry-After" in theirs.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Origin" not in others.headers


SLOW_CLIENTS = 764
"""Nearly all of the connections that Debian's nginx.conf has room for."""


@pytest.mark.parametrize("token", ["", "Client-Token: made up\r\n"], ids=["no token", "a token"])
def test_slow_bodies_of_one_address_keep_nobody_out(front: Nginx, token: str) -> None:
    head = f"POST /srm/v1/sessions HTTP/1.1\r\nHost: srm\r\nTest-Address: 192.0.2.77\r\n{token}"
    context = tls(front.certificate)
    with ExitStack() as stack:
        for _ in range(SLOW_CLIENTS):
            slow = stack.enter_context(connect(front, context))
            slow.sendall(f"{head}Content-Length: 16000\r\n\r\n".encode() + b"x")
        took = []
        for _ in range(5):
            began_at = time.monotonic()
            with front.client(headers={"Client-Token": issue_token("a", "tv"), "Test-Address": "192.0.2.78"}) as client:
                assert client.get("/srm/v1/sessions").status_code == 200
            took.append(time.monotonic() - began_at)

    assert max(took) < 3


CONNECTIONS = 8
COUNTING = """
local threads = {}
passed, refused = 0, 0
function setup(thread) table.insert(threads, thread) end
function response(status) if status == 429 then refused = refused + 1 else passed = passed + 1 end end
function done() print("RESULT " .. threads[1]:get("passed") .. " " .. threads[1]:get("refused")) end
"""


def flood(front: Nginx, address: str) -> tuple[int, int]:
    """Send requests without a token from this address for two seconds; count those that passed and those refused."""
    script = front.folder / "counting.lua"
    script.write_text(COUNTING)
    command = [tools.need("wrk"), "--threads", "1", "--connections", str(CONNECTIONS), "--duration", "2s"]
    command += ["--script", str(script), "--header", f"Test-Address: {address}", f"{front.world}/srm/v1/sessions"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    passed, refused = said.partition("RESULT ")[2].split()[:2]
    return int(passed), int(refused)


@contextmanager
def broken(how: str) -> Iterator[str]:
    """Yield the address of a broken SRM."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if how != "refuses":
            listener.listen()
        if how == "breaks off":
            threading.Thread(target=break_off, args=[listener], daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def break_off(listener: socket.socket) -> None:
    """Read what comes, and close the connection."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(65536)


class TestWhatNginxAnswersItself:
    @pytest.mark.parametrize("size", [16 * 1024 + 1, 200_000])
    def test_a_client_body_over_16_kib_gets_413(self, player: httpx.Client, size: int) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(0, size, 1000):
                yield b"x" * 1000
            yield b"x" * 1000

        assert_is(player.post("/srm/v1/sessions", content=b"x" * size), RequestTooLarge)
        assert_is(player.post("/srm/v1/sessions", content=chunks()), RequestTooLarge)
        assert_is(player.put(f"/srm/v1/sessions/{uuid4()}", content=b"x" * size), RequestTooLarge)

    def test_a_client_body_of_16_kib_passes(self, player: httpx.Client) -> None:
        body = json.dumps({"content": {"contentID": "none", "contentType": "COD"}})

        answer = player.post("/srm/v1/sessions", content=body.ljust(16 * 1024))

        assert answer.json()["errorResponse"]["errorCode"] == "SRM-0007"

    def test_an_operator_body_over_1_mib_gets_413(self, inside: httpx.Client, operator: dict[str, str]) -> None:
        body = json.dumps({"name": "many"})

        taken = inside.put("/srm/v1/products/large", content=body.ljust(1024 * 1024), headers=operator)
        refused = inside.put("/srm/v1/products/large", content=body.ljust(1024 * 1024 + 1), headers=operator)

        assert taken.status_code == 201
        assert_is(refused, RequestTooLarge)

    @pytest.mark.parametrize(
        "headers", [{"Client-Token": "x" * 40_000}, {f"Header-{number}": "x" * 4000 for number in range(20)}]
    )
    def test_headers_that_are_too_large_get_400_in_the_envelope(self, front: Nginx, headers: dict[str, str]) -> None:
        with front.client() as client:
            assert_is(client.get("/srm/v1/sessions", headers=headers), errors.MalformedRequest)

    def test_a_path_that_is_too_long_gets_400_in_the_envelope(self, player: httpx.Client) -> None:
        assert_is(player.get("/srm/v1/sessions?" + "x" * 40_000), errors.MalformedRequest)

    def test_an_unknown_method_gets_405_in_the_envelope(self, player: httpx.Client) -> None:
        assert_is(player.request("TRACE", "/srm/v1/sessions"), MethodNotAllowed)

    def test_bytes_that_are_no_http_get_400_in_the_envelope(self, front: Nginx) -> None:
        head, _, body = send(front, b"nonsense\r\n\r\n").partition(b"\r\n\r\n")

        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["errorResponse"]["errorCode"] == "SRM-0002"

    def test_plain_http_on_the_tls_port_gets_400_in_the_envelope(self, front: Nginx) -> None:
        assert_is(http("GET", front.world.replace("https", "http")), errors.MalformedRequest)

    @pytest.mark.parametrize("upstream", ["refuses", "is silent", "breaks off"])
    def test_nginx_answers_503_in_the_envelope_for_an_srm_that_does_not_answer(
        self, tmp_path: Path, upstream: str
    ) -> None:
        """502 and 504 of nginx become 503 SRM-0010, as when the database is away."""
        with (
            broken(upstream) as address,
            nginx(tmp_path / "nginx", address, origins=f'"{PAGE}" $http_origin;\n') as front,
            front.client(headers={"Origin": PAGE}) as client,
        ):
            started_at = time.monotonic()
            answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": issue_token("a", "tv")})
            took = time.monotonic() - started_at

        assert_is(answer, errors.DependencyUnavailable)
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert took < 12


def connect(front: Nginx, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connect to nginx over TLS."""
    address = urlsplit(front.world)
    connection = socket.create_connection((str(address.hostname), address.port or 0), timeout=20)
    return context.wrap_socket(connection, server_hostname="localhost")


def send(front: Nginx, data: bytes) -> bytes:
    """Send raw bytes over TLS; return the beginning of the answer."""
    with connect(front, tls(front.certificate)) as encrypted:
        encrypted.sendall(data)
        return encrypted.recv(4096)


class TestLogs:
    def test_each_request_has_one_log_line_with_its_correlation_id(self, front: Nginx, player: httpx.Client) -> None:
        id_ = f"test-{uuid4()}"

        player.put(f"/srm/v1/sessions/{uuid4()}", headers={"X-Correlation-Id": id_})
        assert player.get("/nothing", headers={"X-Correlation-Id": id_}).headers["X-Correlation-Id"] == id_

        wait_until(lambda: front.logged("srm-access.log").count(id_) == 2)
        lines = [json.loads(line) for line in front.logged("srm-access.log").splitlines() if id_ in line]
        assert [line["status"] for line in lines] == ["404", "404"]
        assert lines[0]["upstream"].startswith("unix:")
        assert lines[0]["path"].startswith("/srm/v1/sessions/")
        assert lines[1]["path"] == "/nothing"
        assert id_ in (front.folder.parent / "api.log").read_text()

    def test_an_invalid_correlation_id_is_replaced(self, player: httpx.Client) -> None:
        answer = player.get("/nothing", headers={"X-Correlation-Id": "two words"})

        assert UUID(answer.headers["X-Correlation-Id"]).version == 4

    def test_logs_contain_no_token_or_key(self, front: Nginx, operator: dict[str, str]) -> None:
        """Tokens come in headers, in the query, and in a request that nginx cannot read."""
        token, marker = issue_token("a", "tv"), f"secret{uuid4().hex}"
        with front.client() as client:
            client.get("/srm/v1/sessions", headers={"Client-Token": token})
            client.get(f"/srm/v1/sessions?token={marker}", headers={"Client-Token": marker, "Operator-Key": marker})
            client.get("/srm/v1/sessions", headers={"Client-Token": marker * 1000})
            send(front, f"GET /srm/v1/sessions HTTP/1.1\r\nHost: srm\r\nbad name: {marker}\r\n\r\n".encode())
            client.get("/last", headers={"X-Correlation-Id": marker[6:]})
        wait_until(lambda: marker[6:] in front.logged("srm-access.log"))

        everything = "".join(front.logged(name) for name in ("srm-access.log", "srm-error.log", "start.log", "output"))
        assert token not in everything
        assert marker not in everything
        assert operator["Operator-Key"] not in everything
