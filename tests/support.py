"""Rows, tokens and real processes of the service for all tests."""

import base64
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import psutil
import psycopg
from flask.testing import FlaskClient
from sqlalchemy import Connection, delete, func, insert, literal, select, text, update
from sqlalchemy.engine import make_url
from werkzeug.test import TestResponse

from srm.db import models
from srm.db.database import Database
from srm.db.embedded import EmbeddedServer, programs
from srm.db.models import PlaybackSession, Role
from srm.operators import keys as operators
from srm.playback import limit_check

SECRET = "a secret of tests, long enough for HS256"
SETUP = {"content": {"contentID": "film", "contentType": "COD"}}
NO_SESSION = "6f5a2c1e-8d0b-4f0e-9b7a-3c1d2e4f5a6b"
"""Id that no session has."""
SESSION = f"/srm/v1/sessions/{NO_SESSION}"
ROUTES = {
    "set up": ("POST", "/srm/v1/sessions"),
    "keep alive": ("PUT", SESSION),
    "tear down": ("DELETE", SESSION),
    "ready": ("GET", "/readyz"),
}
"""One request for each route that needs the database."""
ROOT = Path(__file__).parent.parent
http = partial(httpx.request, verify=False)
"""Sends one request to an `http://` URL, without certificates, which httpx would take 40 ms to load."""


def issue_token(account: str, device: str, **claims: Any) -> str:
    """Client-Token that the test application accepts. `claims` replace its claims; None removes one."""
    content = {"accountId": account, "deviceId": device, "exp": int(time.time()) + 3600, **claims}
    return jwt.encode({name: value for name, value in content.items() if value is not None}, SECRET, algorithm="HS256")


@dataclass
class Factory:
    """Makes rows; each call is committed when it returns."""

    database: Database

    def profile(self, profile_id: str = "p", max_sessions: int | None = 3, timeout_seconds: int | None = 30) -> str:
        self.add(
            models.AccountProfile,
            profile_id=profile_id,
            max_sessions=max_sessions,
            timeout_seconds=timeout_seconds,
        )
        return profile_id

    def account(
        self,
        account_id: str = "a",
        *devices: str,
        profile: str | None = None,
        enabled: bool = True,
        products: tuple[str, ...] = ("basic",),
        **limits: Any,
    ) -> str:
        """Make an account with devices (default: one called `tv`) that is entitled to the products.

        Without `profile` the account gets one of its own, with `max_sessions` and `timeout_seconds` from `limits`.
        """
        profile = profile or self.profile(f"profile of {account_id}", **limits)
        self.add(models.Account, account_id=account_id, profile_id=profile, enabled=enabled)
        for device in devices or ("tv",):
            self.device(account_id, device)
        for product in products:
            self.entitlement(account_id, product)
        return account_id

    def device(self, account_id: str, device_id: str, *, enabled: bool = True, group: str = "tv") -> str:
        self.add(
            models.Device,
            account_id=account_id,
            device_id=device_id,
            device_group=group,
            name=f"{device_id} of {account_id}",
            enabled=enabled,
        )
        return device_id

    def content(self, content_id: str, channel_id: str | None = None, groups: Collection[str] = ()) -> str:
        """Make a content that is in these groups."""
        self.add(models.Content, content_id=content_id, channel_id=channel_id)
        for group in groups:
            self.add(models.ContentGroup, content_id=content_id, content_group=group)
        return content_id

    def product(self, product_id: str, *contents: tuple[str, str]) -> str:
        """Make a product with pairs of content type and content id; the contents have to exist."""
        self.add(models.Product, product_id=product_id, name=product_id)
        for content_type, content_id in contents:
            self.add(models.ProductContent, product_id=product_id, content_type=content_type, content_id=content_id)
        return product_id

    def entitlement(self, account_id: str, product_id: str, **validity: Any) -> None:
        self.add(models.Entitlement, account_id=account_id, product_id=product_id, **validity)

    def operator(self, role: Role = "admin", name: str | None = None) -> dict[str, str]:
        """Make an operator; return the header with its key. Without `name` the operator is called like the role."""
        with self.database.transaction() as db:
            return {"Operator-Key": operators.add(db, "tests", name or role, role)}

    def session(self, account_id: str = "a", device_id: str = "tv", *, silent_for: float = 0, **columns: Any) -> UUID:
        """Make a session whose setup and last keep-alive were `silent_for` seconds ago."""
        then = func.statement_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, silent_for)
        session_id = uuid4()
        values = {
            "account_id": account_id,
            "session_id": session_id,
            "device_id": device_id,
            "content_type": "COD",
            "content_id": "film",
            "timeout_seconds": 30,
            "max_sessions": 3,
            **columns,
        }
        typed = (literal(value, getattr(PlaybackSession, name).type) for name, value in values.items())
        names = [*values, "started_at", "last_keep_alive_at"]
        with self.database.transaction() as db:
            db.execute(insert(PlaybackSession).from_select(names, select(*typed, then, then)))
        return session_id

    def age(self, session_id: UUID | str, seconds: float, *columns: str) -> None:
        """Move times of a session into the past; by default its start and its last keep-alive."""
        with self.database.transaction() as db:
            for column in columns or ("started_at", "last_keep_alive_at"):
                db.execute(
                    text(
                        f"UPDATE srm.sessions SET {column} = {column} - make_interval(secs => :s) "
                        "WHERE session_id = :id"
                    ),
                    {"s": seconds, "id": session_id},
                )

    def change(self, model: type, where: dict[str, Any], **values: Any) -> None:
        """Update rows of a table."""
        with self.database.transaction() as db:
            db.execute(
                update(model).where(*(getattr(model, name) == value for name, value in where.items())).values(values)
            )

    def remove(self, model: type, **where: Any) -> None:
        """Delete rows of a table."""
        with self.database.transaction() as db:
            db.execute(delete(model).where(*(getattr(model, name) == value for name, value in where.items())))

    def add(self, model: type, **columns: Any) -> None:
        """Insert a row."""
        with self.database.transaction() as db:
            db.execute(insert(model), columns)


ROLES = ("srm_owner", "srm_application", "srm_readonly")


def psql(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real psql on the database."""
    command = [str(programs() / "psql"), "--no-psqlrc", "--dbname", url, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)


def make_roles(url: str) -> None:
    """Run deploy/postgres/roles.sql as a superuser, and give each role the password `password`."""
    result = psql(url, "--file", str(ROOT / "deploy" / "postgres" / "roles.sql"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    for role in ROLES:
        result = psql(url, "--command", f"ALTER ROLE {role} PASSWORD 'password'")
        assert result.returncode == 0, result.stderr


def as_role(role: str, url: str) -> str:
    """Return the URL with a role of `make_roles` and its password."""
    return make_url(url).set(username=role, password="password").render_as_string(hide_password=False)


ALWAYS_AVAILABLE = (
    "UPDATE srm.availability SET seen_at = 'infinity', available_since = '-infinity', outage_at = NULL,"
    " clock_stepped_from = NULL, clock_stepped_at = NULL"
)
"""Most tests have nothing to do with outages, and no heartbeat runs while they call the application."""

EMPTIED = (
    "TRUNCATE srm.sessions, srm.session_history, srm.denials, srm.entitlements, srm.devices, srm.accounts, "
    "srm.account_profiles, srm.profile_device_groups, srm.profile_content_groups, srm.content_groups, "
    "srm.operators, srm.operator_audit",
    ALWAYS_AVAILABLE,
    "DELETE FROM srm.product_contents WHERE product_id <> 'basic'",
    "DELETE FROM srm.products WHERE product_id <> 'basic'",
    "DELETE FROM srm.contents WHERE content_id <> 'film'",
)


def step_clock(superuser: psycopg.Connection, seconds: float) -> None:
    """Let the database's clock step ahead, or back when negative: move all instants in the tables the other way."""
    columns = (
        "SELECT format('UPDATE srm.%I SET %s', c.relname, string_agg("
        "format('%I = %I - make_interval(secs => $1)', a.attname, a.attname), ', '))"
        " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'srm'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        " AND a.atttypid = 'timestamptz'::regtype AND NOT a.attisdropped GROUP BY c.relname"
    )
    for (statement,) in superuser.execute(columns).fetchall():
        superuser.execute(statement.replace("$1", str(float(seconds))))


def empty(superuser: psycopg.Connection) -> None:
    """Delete all rows but those of the template: the film, in the product `basic`."""
    for statement in EMPTIED:
        superuser.execute(statement)


def rows(db_or_database: Connection | Database, sql: str, **parameters: Any) -> list[Any]:
    """The rows of a query."""
    if isinstance(db_or_database, Database):
        with db_or_database.transaction() as db:
            return list(db.execute(text(sql), parameters))
    return list(db_or_database.execute(text(sql), parameters))


def session_row(database: Database, session_id: UUID | str) -> Any:
    """The row of a session in `sessions`."""
    return rows(database, "SELECT * FROM srm.sessions WHERE session_id = :id", id=session_id)[0]


def free_port() -> int:
    """Port of the loopback on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**variables: str) -> dict[str, str]:
    """Environment for a command: the one of the tests without SRM_…, plus the variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SRM_")}
    return {**clean, **variables}


def python_m(*arguments: str) -> list[str]:
    """A command that runs a module of this virtual environment."""
    return [sys.executable, "-m", *arguments]


def postmaster(data_dir: Path) -> psutil.Process:
    """Parent of all processes of the embedded server in this data directory."""
    return psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0]))


def stop_postgres(server: EmbeddedServer, data_dir: Path) -> None:
    """Shut the embedded server down "fast" (PostgreSQL manual, "Shutting Down the Server"); wait for its end."""
    postmaster(data_dir).send_signal(signal.SIGINT)
    wait_until(lambda: not server.is_running())


@dataclass
class Process:
    """A running command, with its output in a file."""

    popen: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        """Output so far, standard error included."""
        return self.output.read_text()

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Send a signal, wait for the end, and return the exit code. TimeoutExpired after `timeout` seconds."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(timeout)

    def kill_group(self) -> None:
        """Send SIGKILL to all processes of the command."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@contextmanager
def running(
    command: list[str],
    output: Path,
    cwd: Path = ROOT,
    pass_fds: Collection[int] = (),
    variables: Mapping[str, str] = {},
) -> Iterator[Process]:
    """Run a command in a process group of its own; kill the group at the end of the block."""
    with output.open("ab") as file:
        popen = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env=environment(**variables),
            pass_fds=pass_fds,
            start_new_session=True,
        )
    process = Process(popen, output)
    try:
        yield process
    finally:
        process.kill_group()


def wait_until(condition: Any, timeout: float = 30, every: float = 0.05) -> None:
    """Wait until the condition is true. AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not true after {timeout} s: {condition}"
        time.sleep(every)


@contextmanager
def api(
    url: str,
    output: Path,
    workers: int = 2,
    cwd: Path = ROOT,
    up: str = "/readyz",
    variables: Mapping[str, str] = {},
) -> Iterator[tuple[str, Process]]:
    """Run the API under gunicorn; yield its base URL and the gunicorn master.

    `cwd`: folder with the code. `up`: path that answers 200 once the API is
    ready.
    """
    port = free_port()
    command = python_m("gunicorn", "--config", "python:srm.gunicorn_conf", "--bind", f"127.0.0.1:{port}")
    command += ["--workers", str(workers), "wsgi:app"]
    base = f"http://127.0.0.1:{port}"
    all_variables = {
        "SRM_DATABASE_URL": url,
        "SRM_TOKEN_SECRET": SECRET,
        "TMPDIR": str(output.parent),  # a killed master leaves files there, which go with the test
        **variables,
    }
    with running(command, output, cwd, variables=all_variables) as process:

        def is_ready() -> bool:
            assert process.popen.poll() is None, process.text()
            try:
                return http("GET", f"{base}{up}", timeout=5).is_success
            except httpx.HTTPError:
                return False

        wait_until(is_ready)
        yield base, process


@contextmanager
def reaper(
    url: str, output: Path, interval: float = 0.5, cwd: Path = ROOT, variables: Mapping[str, str] = {}
) -> Iterator[Process]:
    """Run a reaper. `interval` is in seconds. `cwd`: folder with the code."""
    all_variables = {"SRM_DATABASE_URL": url, "SRM_REAPER_INTERVAL_SECONDS": str(interval), **variables}
    with running(python_m("srm.cli", "reaper"), output, cwd, variables=all_variables) as process:
        yield process


def assert_audit_clean(url: str) -> None:
    """Assert what `srm audit` checks, in this process: no session in the tables was admitted over a limit."""
    database = Database(url, application_name="srm-tests", statement_timeout_seconds=60)
    try:
        with database.transaction() as db:
            assert limit_check.count_sessions(db) > 0
            assert limit_check.excesses(db) == []
    finally:
        database.dispose()


def sign(claims: str | dict[str, Any], header: str | dict[str, Any] | None = None, secret: str | bytes = SECRET) -> str:
    """JWS signed with HS256 by hand, for tokens that no library would write. Strings are signed unchanged."""

    def encoded(part: str | bytes | dict[str, Any]) -> str:
        data = json.dumps(part) if isinstance(part, dict) else part
        return base64.urlsafe_b64encode(data if isinstance(data, bytes) else data.encode()).rstrip(b"=").decode()

    signed = f"{encoded(header or {'alg': 'HS256', 'typ': 'JWT'})}.{encoded(claims)}"
    key = secret if isinstance(secret, bytes) else secret.encode()
    return f"{signed}.{encoded(hmac.digest(key, signed.encode(), 'sha256'))}"


@dataclass
class Admin:
    """Client of the operator API, with the header of one operator."""

    client: FlaskClient
    key: dict[str, str]

    def __call__(self, method: str, path: str, body: object = None, **headers: str) -> TestResponse:
        """Send a request. A body of bytes is sent unchanged, any other one as JSON."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.open(f"/srm/v1/{path}", method=method, headers={**self.key, **named}, data=content)

    def get(self, path: str) -> Any:
        """Read a resource; return its JSON."""
        return self("GET", path).get_json()


def error_of(answer: TestResponse) -> tuple[int, str, str]:
    """Check the shape of an error envelope; return its HTTP status, status and errorCode."""
    ((name, error),) = answer.get_json().items()
    assert name == "errorResponse", answer.text
    assert list(error) == ["code", "status", "errorCode", "errorMessage"], answer.text
    assert error["code"] == str(answer.status_code), answer.text
    assert answer.content_type == "application/json"
    return answer.status_code, error["status"], error["errorCode"]


def session_count(database: Database) -> int:
    """Number of rows in `sessions`."""
    return int(rows(database, "SELECT count(*) FROM srm.sessions")[0][0])
