"""/metrics under gunicorn: whichever process is asked, it tells of all."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from srm.database import Database
from tests.concurrency.players import Player
from tests.entitlement_server import EntitlementServer, entitlement_server
from tests.support import Factory, Process, api, wait_until

WORKERS = 3
GRANTED = 'srm_entitlement_answers_total{answer="granted",source="service"}'
OPEN = "srm_entitlement_breakers_open"


@pytest.fixture
def server() -> Iterator[EntitlementServer]:
    with entitlement_server() as server:
        yield server


@pytest.fixture
def service(clone: Callable[[], str], server: EntitlementServer, tmp_path: Path) -> Iterator[tuple[str, Process]]:
    """Several processes that ask the server; their base URL, and the master."""
    url = clone()
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", max_sessions=None)
    database.dispose()
    variables = {"SRM_ENTITLEMENTS": "http", "SRM_ENTITLEMENTS_URL": server.url}
    with api(url, tmp_path / "log", workers=WORKERS, **variables) as running:
        yield running


def workers(master: Process) -> set[int]:
    return {child.pid for child in psutil.Process(master.popen.pid).children()}


def set_up(base: str) -> str | None:
    """On a connection of its own, so that any worker may take it; its errorCode."""
    with Player(base, "a", "tv") as player:
        return player.set_up().error_code


def value(base: str, name: str) -> float:
    """Of the metric; 0 when there is none."""
    lines = httpx.get(f"{base}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("srm-metrics-*/*.db"))


def test_every_process_tells_of_all(service: tuple[str, Process], server: EntitlementServer, tmp_path: Path) -> None:
    base, _ = service

    def all_have_answered() -> bool:
        assert set_up(base) is None
        return len([name for name in files(tmp_path) if name.startswith("counter")]) == WORKERS

    wait_until(all_have_answered)

    assert [value(base, GRANTED) for _ in range(4 * WORKERS)] == [len(server.questions)] * 4 * WORKERS


def test_what_a_process_counted_outlives_it_and_how_it_was_does_not(
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


def test_nothing_is_left_of_it(service: tuple[str, Process], tmp_path: Path) -> None:
    base, master = service
    set_up(base)
    assert files(tmp_path)

    master.stop()

    assert list(tmp_path.glob("srm-metrics-*")) == []
