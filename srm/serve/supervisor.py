"""`srm serve`: run gunicorn and the reaper as child processes, and the embedded database if none is configured."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import click
import httpx
import structlog

from srm.api.v1.client.example import setup_with_curl
from srm.clients import tokens
from srm.config import Settings
from srm.db import schema
from srm.db.database import CONNECTIONS, Database
from srm.db.embedded import EmbeddedServer
from srm.errors import StartupError
from srm.operators import demo
from srm.playback.model import ContentRef
from srm.serve import address, gunicorn_conf
from srm.serve.child import RESTART_SECONDS, Child

log = structlog.get_logger("srm.serve")

READY_SECONDS = 30
"""Time in which /readyz must answer 200 after the start."""

LOOK_SECONDS = 0.2
"""Time between two looks at the child processes and the database."""

REAPER_CONNECTIONS = 3
"""Most connections of a reaper."""

DEMO_TOKEN_SECONDS = 24 * 3600
"""Life of the Client-Token in the example that is printed at the start."""


class Supervisor:
    """The processes of one `srm serve`, from their start to their stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server: EmbeddedServer | None = None
        self._children: list[Child] = []
        self._stopping = False

    def serve(self, *, workers: int | None, with_demo: bool) -> None:
        """Run until SIGTERM, SIGINT or SIGHUP; the function `serve` describes it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        settings = self._settings
        with ExitStack() as stack:
            address.check_is_free(settings.bind)
            if settings.database_url is not None:
                url = settings.database_url.get_secret_value()
            else:
                stack.enter_context(_claimed(settings.data_dir))
                self._server = stack.enter_context(EmbeddedServer(settings.data_dir))
                url = self._server.url
                schema.upgrade(url)
            has_demo = _prepare(url, load_demo=with_demo and self._server is not None)
            _check_capacity(url, workers or gunicorn_conf.workers)
            if settings.token_jwks is None:
                tokens.shared_secret(settings, create=True)
            self._start_children(url, workers, stack)
            self._wait_until_ready()
            if not self._stopping:
                _greet(settings, with_example=has_demo)
            self._watch()
        log.info("stopped")

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._stopping = True

    def _start_children(self, url: str, workers: int | None, stack: ExitStack) -> None:
        gunicorn = [sys.executable, "-m", "gunicorn", "--config", "python:srm.gunicorn_conf"]
        gunicorn += ["--bind", self._settings.bind]
        gunicorn += ["--workers", str(workers)] if workers else []
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
                with address.client(self._settings.bind, READY_SECONDS) as client:
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
                except StartupError as error:  # the old process may not have ended yet
                    log.error("embedded PostgreSQL does not start yet", cause=str(error))
                    time.sleep(RESTART_SECONDS)
            time.sleep(LOOK_SECONDS)


def serve(settings: Settings, *, workers: int | None, with_demo: bool) -> None:
    """Run until SIGTERM, SIGINT or SIGHUP. Then stop what was started, the embedded database last.

    `workers` of gunicorn: None means the default. The embedded database is migrated; a configured database must have
    the schema already. A process that dies is started again. Raises StartupError or DependencyUnavailable when the
    service does not start.
    """
    Supervisor(settings).serve(workers=workers, with_demo=with_demo)


@contextmanager
def _claimed(data_dir: Path) -> Iterator[None]:
    """Hold the lock of the data directory. Raises StartupError when another run holds it."""
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
    """Check the schema, and load the demo data if asked to. Return whether the database has the demo data."""
    database = Database(url, application_name="srm-serve")
    try:
        with database.transaction() as db:
            schema.check_not_behind(db)
            if load_demo and not demo.is_loaded(db):
                demo.load(db, "srm serve")
            return demo.is_loaded(db)
    finally:
        database.dispose()


def _check_capacity(url: str, workers: int) -> None:
    """Warn when the database allows fewer connections than this host may open."""
    needed = workers * CONNECTIONS + REAPER_CONNECTIONS
    database = Database(url, application_name="srm-serve")
    try:
        allowed = database.connections_allowed()
    finally:
        database.dispose()
    if allowed is not None and allowed < needed:
        log.warning("max_connections of the database is too small for this host", allowed=allowed, needed=needed)


def _greet(settings: Settings, *, with_example: bool) -> None:
    base_url = address.base_url(settings.bind)
    click.echo(f"SRM is ready on {base_url} (API documentation: {base_url}/srm/docs)")
    if not with_example:
        click.echo("No demo data here; load it with: srm demo load")
    elif settings.token_jwks is None:
        token = tokens.issue(settings, demo.ACCOUNT, demo.DEVICE, DEMO_TOKEN_SECONDS)
        content = ContentRef(demo.CONTENT_TYPE, demo.CONTENT_ID)
        unix_socket = settings.bind.removeprefix("unix:") if settings.bind.startswith("unix:") else None
        command = setup_with_curl(base_url, token, content, unix_socket)
        click.echo(f"Try it:\n\n{command}\n")
    sys.stdout.flush()
