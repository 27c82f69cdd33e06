"""Parts of all measurements: a database with rows, the service as in production, and wrk."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg

from srm.clients.tokens import SharedSecret
from srm.db import schema
from srm.db.embedded import EmbeddedServer
from srm.serve import gunicorn_conf

HERE = Path(__file__).parent
LOG = Path("var/bench.log")
"""Log of the service in the last run."""
SECRET = secrets.token_urlsafe(32)
CONNECTIONS = 32
PORT = 18080
DELAY_MILLISECONDS = 100
"""Mean pause of each connection before a keep-alive. CONNECTIONS of them send about 300 keep-alives a second."""
FOREVER_SECONDS = 3600

Request = tuple[str, str, str, str]
"""Method, path, token and body."""


@dataclass(frozen=True)
class Service:
    """A gunicorn that answers at the port."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """Return the processor time of its workers since their start."""
        times = [worker.cpu_times() for worker in psutil.Process(self.pid).children()]
        return sum(each.user + each.system for each in times)


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder for files, and empty the log. Exit when wrk is missing."""
    if shutil.which("wrk") is None:
        sys.exit("bench: wrk is missing; install it: apt-get install wrk (Debian, Ubuntu), brew install wrk (macOS)")
    LOG.parent.mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))  # or else servers would go on
    with tempfile.TemporaryDirectory(dir=LOG.parent, prefix="bench-") as folder:
        yield Path(folder)


@contextmanager
def prepared(seed: str, what: str) -> Iterator[tuple[str, Path]]:
    """Run a new embedded database with these rows; yield its URL and a folder for files."""
    with scratch() as folder, EmbeddedServer(folder) as server:
        fill(server.url, seed, what)
        yield server.url, folder


def fill(url: str, seed: str, what: str) -> None:
    """Write SRM's schema and these rows into an empty database."""
    print(f"bench: preparing {what}", flush=True)
    schema.upgrade(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(seed)
        connection.execute("VACUUM ANALYZE")


def wrk(port: int, file: Path, seconds: int, delay: int = 0, connections: int = CONNECTIONS) -> subprocess.Popen[str]:
    """Start wrk, which sends the requests of a file to the port, for `seconds` or until SIGINT.

    `delay`: mean pause in ms of each connection before each request.
    """
    command = ["wrk", "--threads", "2", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--script", str(HERE / "requests.lua"), f"http://127.0.0.1:{port}", "--", str(file)]
    command += [str(delay)] if delay else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def keep_alives(requests: Path, seconds: int) -> subprocess.Popen[str]:
    """Start wrk, which sends keep-alives at a steady rate, for `seconds` or until SIGINT."""
    return wrk(PORT, requests, seconds, DELAY_MILLISECONDS)


def result(running: subprocess.Popen[str], name: str) -> dict[str, float]:
    """Wait for wrk and return its numbers. Exit when more than one answer in a thousand is no 2xx."""
    output, _ = running.communicate()
    run: dict[str, float] = json.loads(output.split("RESULT ")[1].split("\n")[0])
    if run["not_2xx"] or run["broken"]:
        print(f"bench: {name}: {run['not_2xx']:g} not 2xx, {run['broken']:g} broken; see {LOG}", file=sys.stderr)
    if run["not_2xx"] > run["requests"] / 1000:
        raise SystemExit("bench: too many failed requests")
    return run


def write_requests(file: Path, requests: Iterable[Request]) -> None:
    """Write requests into a file for wrk."""
    with file.open("w") as lines:
        lines.writelines("\t".join(request) + "\n" for request in requests)


def session_id(number: int) -> str:
    """Return the id of the live session with this number."""
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def token(account: str, device: str, series: int = 0) -> str:
    """Return a Client-Token that outlasts the run. Another `series` gives another token."""
    expires_at = int(time.time()) + 86400 + 3600 * series
    return SharedSecret(SECRET).issue({"accountId": account, "deviceId": device, "exp": expires_at})


def on_session(method: str, numbers: Iterable[int], series: int = 0) -> Iterator[Request]:
    """Yield requests on the live sessions with these numbers."""
    for number in numbers:
        yield (
            method,
            f"/srm/v1/sessions/{session_id(number)}",
            token(f"live-{1 + number // 4}", f"device-{number % 4}", series),
            "",
        )


def settings(workers: int = gunicorn_conf.workers, **own: int) -> dict[str, object]:
    """Return the settings of a run for its report. `own`: settings of this measurement only."""
    return {
        **own,
        "workers": workers,
        "connections": CONNECTIONS,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }


@contextmanager
def process(command: list[str], **variables: str) -> Iterator[int]:
    """Run a command of SRM during the block; yield its pid. Its log is JSON, as in the shipped units and the image."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SRM_")}
    environment |= {"SRM_TOKEN_SECRET": SECRET, "SRM_LOG_FORMAT": "json", **variables}
    with LOG.open("a") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()


@contextmanager
def gunicorn(application: str, port: int, url: str, workers: int, *options: str) -> Iterator[Service]:
    """Run an application with the shipped settings of gunicorn during the block."""
    command = [sys.executable, "-m", "gunicorn", "--config", "python:srm.gunicorn_conf", "--log-level", "error"]
    command += ["--bind", f"127.0.0.1:{port}", "--workers", str(workers), *options, application]
    with process(command, SRM_DATABASE_URL=url) as pid:
        give_up_at = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx.HTTPError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.1)
        yield Service(port, pid)
