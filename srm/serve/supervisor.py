"""`srm serve`: gunicorn and the reaper as separate processes, and the embedded database below them."""

import errno
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import click
import httpx
import structlog

from srm.clients import tokens
from srm.config import Settings
from srm.db import schema
from srm.db.database import Database
from srm.db.embedded import EmbeddedServer
from srm.errors import StartupError
from srm.operators import demo

log = structlog.get_logger("srm.serve")

READY_SECONDS = 30
STOP_SECONDS = 15
"""Longer than gunicorn waits for the requests in hand."""
LOOK_SECONDS = 0.2
RESTART_SECONDS = 1
DEMO_TOKEN_SECONDS = 24 * 3600


class Child:
    """A process of ours, in a process group of its own so that Ctrl-C reaches only us."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        self._name = name
        self._command = command
        self._environment = environment
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._environment, start_new_session=True)  # noqa: S603
        self._started_at = time.monotonic()

    def has_died(self) -> bool:
        """Whether it ended by itself."""
        return self._process.poll() is not None

    def revive(self) -> None:
        """Start it again when it has died, but not more often than once in RESTART_SECONDS."""
        if self.has_died() and time.monotonic() - self._started_at >= RESTART_SECONDS:
            log.error("process died, starting it again", process=self._name, exit_code=self._process.returncode)
            self._kill_group()
            self._start()

    def terminate(self) -> None:
        """Ask it to stop."""
        self._process.terminate()

    def stop(self) -> None:
        """Wait for its end, once it was asked; SIGKILL to all that is left of it when it does not end in time."""
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("process does not stop, killing it", process=self._name)
        self._kill_group()
        self._process.wait()

    def _kill_group(self) -> None:
        """SIGKILL to it and to what it has left behind, which may still hold the port."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class Supervisor:
    """What runs, and whether it is to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server: EmbeddedServer | None = None
        self._children: list[Child] = []
        self._stopping = False

    def serve(self, *, workers: int | None, threads: int | None, with_demo: bool) -> None:
        """See `serve`."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        settings = self._settings
        with ExitStack() as stack:
            _check_is_free(settings.bind)
            if settings.database_url is not None:
                url = settings.database_url.get_secret_value()
            else:
                stack.enter_context(_claimed(settings.data_dir))
                self._server = stack.enter_context(EmbeddedServer(settings.data_dir))
                url = self._server.url
                schema.upgrade(url)
            has_demo = _prepare(url, load_demo=with_demo and self._server is not None)
            if settings.token_jwks is None:
                tokens.shared_secret(settings, create=True)
            self._start_children(url, workers, threads, stack)
            self._wait_until_ready()
            if not self._stopping:
                _greet(settings, with_example=has_demo)
            self._watch()
        log.info("stopped")

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._stopping = True

    def _start_children(self, url: str, workers: int | None, threads: int | None, stack: ExitStack) -> None:
        gunicorn = [sys.executable, "-m", "gunicorn", "--config", "python:srm.gunicorn_conf"]
        gunicorn += ["--bind", self._settings.bind]
        gunicorn += ["--workers", str(workers)] if workers else []
        gunicorn += ["--threads", str(threads)] if threads else []
        commands = {
            "gunicorn": [*gunicorn, "wsgi:app"],
            "reaper": [sys.executable, "-m", "srm.cli", "reaper"],
        }
        environment = {**os.environ, "SRM_DATABASE_URL": url}
        stack.callback(self._stop_children)
        for name, command in commands.items():
            self._children.append(Child(name, command, environment))

    def _stop_children(self) -> None:
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.stop()

    def _wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + READY_SECONDS
        problem = "no answer"
        while not self._stopping:
            if any(child.has_died() for child in self._children):
                raise StartupError("a process did not start; the lines above say why")
            try:
                with _client(self._settings.bind) as client:
                    answer = client.get("/readyz")
                if answer.is_success:
                    return
                problem = answer.text
            except httpx.HTTPError:
                pass
            if time.monotonic() > give_up_at:
                raise StartupError(f"not ready after {READY_SECONDS} s: {problem}")
            time.sleep(LOOK_SECONDS)

    def _watch(self) -> None:
        while not self._stopping:
            for child in self._children:
                child.revive()
            if self._server is not None and not self._server.is_running():
                log.error("embedded PostgreSQL died, starting it again")
                try:
                    self._server.ensure_running()
                except StartupError as error:  # what is left of it may still be going down
                    log.error("embedded PostgreSQL does not start yet", cause=str(error))
                    time.sleep(RESTART_SECONDS)
            time.sleep(LOOK_SECONDS)


def serve(settings: Settings, *, workers: int | None, threads: int | None, with_demo: bool) -> None:
    """Run until SIGTERM, SIGINT or SIGHUP, then stop everything that was started, the database last.

    The embedded database is migrated, another one must not be behind. A process that dies is started
    again. StartupError, or DependencyUnavailable, when something does not come up in the first place.
    """
    Supervisor(settings).serve(workers=workers, threads=threads, with_demo=with_demo)


@contextmanager
def _claimed(data_dir: Path) -> Iterator[None]:
    """Keep other runs off the data directory."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "serve.lock").open("w")
    except OSError as error:
        raise StartupError(f"data directory {data_dir} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartupError(f"data directory {data_dir} is in use by another run") from None
        yield


def _prepare(url: str, *, load_demo: bool) -> bool:
    """Check that the schema is not behind; whether the demo data is there."""
    database = Database(url, application_name="srm-serve")
    try:
        with database.transaction() as db:
            schema.check_not_behind(db)
            if load_demo and not demo.is_loaded(db):
                demo.load(db, "srm serve")
            return demo.is_loaded(db)
    finally:
        database.dispose()


def _host_and_port(bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


def _check_is_free(bind: str) -> None:
    """StartupError when nobody can listen there; gunicorn would try for five seconds and then say less."""
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


def _base_url(bind: str) -> str:
    """Where this machine reaches what is bound there."""
    if bind.startswith("unix:"):
        return "http://localhost"
    host, port = _host_and_port(bind)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 we connect, not listen
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _client(bind: str) -> httpx.Client:
    socket_path = bind.removeprefix("unix:") if bind.startswith("unix:") else None
    return httpx.Client(transport=httpx.HTTPTransport(uds=socket_path), base_url=_base_url(bind), timeout=READY_SECONDS)


def _greet(settings: Settings, *, with_example: bool) -> None:
    base_url = _base_url(settings.bind)
    click.echo(f"SRM is ready on {base_url} (API documentation: {base_url}/srm/docs)")
    if not with_example:
        click.echo("No demo data here; load it with: srm demo load")
    elif settings.token_jwks is None:
        token = tokens.issue(settings, demo.ACCOUNT, demo.DEVICE, DEMO_TOKEN_SECONDS)
        body = {"content": {"contentID": demo.CONTENT_ID, "contentType": demo.CONTENT_TYPE}}
        command = ["curl", "-s", "-X", "POST", f"{base_url}/srm/v1/sessions"]
        if settings.bind.startswith("unix:"):
            command += ["--unix-socket", settings.bind.removeprefix("unix:")]
        command += ["-H", f"Client-Token: {token}", "-d", json.dumps(body)]
        click.echo(f"Try it:\n\n{shlex.join(command)}\n")
    sys.stdout.flush()
