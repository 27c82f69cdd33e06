"""/metrics under gunicorn: whichever worker is asked shows the numbers of all workers."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from srm.db.database import Database
from srm.serve import gunicorn_conf
from tests.concurrency.players import Player
from tests.entitlement_server import EntitlementServer, entitlement_server
from tests.support import ROOT, Factory, Process, api, http, wait_until

WORKERS = 2
GRANTED = 'srm_entitlement_answers_total{answer="granted",source="service"}'
OPEN = "srm_entitlement_breakers_open"
COUNT = 'srm_request_seconds_count{{method="{method}",outcome="{outcome}",route="{route}"}}'
MADE_UP = "8f14e45f-ceea-467f-9575-1c2f6a7b0c11"


@pytest.fixture
def server() -> Iterator[EntitlementServer]:
    with entitlement_server() as server:
        yield server


@pytest.fixture
def service(clone: Callable[[], str], server: EntitlementServer, tmp_path: Path) -> Iterator[tuple[str, Process]]:
    """Run several workers that ask the server; yield their base URL and the master."""
    url = clone()
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", max_sessions=None)
    database.dispose()
    variables = {"SRM_ENTITLEMENTS": "http", "SRM_ENTITLEMENTS_URL": server.url}
    with api(url, tmp_path / "log", workers=WORKERS, variables=variables) as running:
        yield running


def workers(master: Process) -> set[int]:
    return {child.pid for child in psutil.Process(master.popen.pid).children()}


def set_up(base: str) -> str | None:
    """Set up a session on a new connection, so that any worker may take it; return the errorCode."""
    with Player(base, "a", "tv") as player:
        return player.set_up().error_code


def value(base: str, name: str) -> float:
    """Return the value of the metric; 0 when it is missing."""
    lines = http("GET", f"{base}/metrics", timeout=30).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("srm-metrics-*/*.db"))


def test_every_worker_shows_the_sum_over_all_workers(
    service: tuple[str, Process], server: EntitlementServer, tmp_path: Path
) -> None:
    base, _ = service

    def all_have_answered() -> bool:
        assert set_up(base) is None
        return len([name for name in files(tmp_path) if name.startswith("counter")]) == WORKERS

    wait_until(all_have_answered)

    assert [value(base, GRANTED) for _ in range(4 * WORKERS)] == [len(server.questions)] * 4 * WORKERS


def test_counters_of_an_ended_worker_stay_and_its_gauges_go(
    service: tuple[str, Process], server: EntitlementServer
) -> None:
    base, master = service
    for _ in range(10):
        set_up(base)
    server.behave = lambda call: call.answer([])
    wait_until(lambda: set_up(base) == "SRM-0010" and value(base, OPEN) == WORKERS)
    before = workers(master)

    for pid in before:
        os.kill(pid, signal.SIGKILL)

    wait_until(lambda: len(workers(master)) == WORKERS and not workers(master) & before)
    wait_until(lambda: value(base, OPEN) == 0)
    assert value(base, GRANTED) == 10


def test_every_metric_is_shown_once(service: tuple[str, Process]) -> None:
    base, _ = service
    for _ in range(5 * WORKERS):
        assert set_up(base) is None

    names = [
        line.rpartition(" ")[0]
        for line in http("GET", f"{base}/metrics", timeout=30).text.splitlines()
        if line[0] != "#"
    ]

    assert len(names) == len(set(names))
    assert value(base, COUNT.format(route="/srm/v1/sessions", method="POST", outcome="2xx")) == 5 * WORKERS
    assert value(base, 'srm_active_sessions{content_type="COD",device_group="tv"}') > 0
    assert value(base, "srm_setups_total") == 5 * WORKERS
    assert value(base, "srm_database_connect_seconds_count") > 0
    wait_until(lambda: value(base, "srm_thread_wait_seconds_count") > 0)  # the loop measures itself


def test_a_new_worker_continues_the_metric_files_of_the_ended_one(service: tuple[str, Process], tmp_path: Path) -> None:
    base, master = service
    keep_alive = COUNT.format(route="/srm/v1/sessions/<session_id>", method="PUT", outcome="SRM-0008")

    asked = 0

    def all_have_answered() -> bool:
        with Player(base, "a", "tv") as player:
            assert player.keep_alive(MADE_UP).error_code == "SRM-0008"
        nonlocal asked
        asked += 1
        return len(files(tmp_path)) >= 3 * WORKERS and asked >= 10 * WORKERS

    wait_until(all_have_answered)
    before = files(tmp_path)

    for signal_ in (signal.SIGHUP, signal.SIGKILL):
        old = workers(master)
        for pid in [master.popen.pid] if signal_ == signal.SIGHUP else old:
            os.kill(pid, signal_)
        wait_until(lambda old=old: len(workers(master)) == WORKERS and not workers(master) & old)
        wait_until(lambda: http("GET", f"{base}/healthz", timeout=30).is_success)
        assert value(base, keep_alive) == asked
        wait_until(all_have_answered)
        assert value(base, keep_alive) == asked

    # A worker that comes before its predecessor is gone, as with HUP, has a slot beside it, and no third one comes.
    assert len(files(tmp_path)) <= 2 * len(before)


def test_unreadable_requests_are_counted(service: tuple[str, Process]) -> None:
    base, _ = service
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"this is no HTTP\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")

    assert value(base, "srm_unreadable_requests_total") == 1


@pytest.mark.parametrize(("tmpdir", "folder"), [(None, "/dev/shm"), ("/somewhere", None)])
def test_metric_files_are_in_memory_unless_tmpdir_is_set(
    monkeypatch: pytest.MonkeyPatch, tmpdir: str | None, folder: str | None
) -> None:
    """On a full disk, a write to a mapped file kills the process."""
    monkeypatch.delenv("TMPDIR", raising=False)
    if tmpdir is not None:
        monkeypatch.setenv("TMPDIR", tmpdir)

    assert gunicorn_conf._folder_in_memory() == folder


def test_the_master_does_not_import_srm_metrics() -> None:
    """The master would import it before the environment names folder and slot."""
    code = "import srm.gunicorn_conf, srm.serve.worker, sys; print('prometheus_client' in sys.modules)"

    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert result.stdout == "False\n"


def test_no_metric_file_is_left_after_a_stop(service: tuple[str, Process], tmp_path: Path) -> None:
    base, master = service
    set_up(base)
    assert files(tmp_path)

    master.stop()

    assert list(tmp_path.glob("srm-metrics-*")) == []
