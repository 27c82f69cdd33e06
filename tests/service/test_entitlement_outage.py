"""The entitlement service hangs: setups are answered in time, and keep-alives are not delayed.

docs/design.md, Invariant 7: the service is asked while no lock is held.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from srm.db.database import Database
from tests.cli.command import run
from tests.concurrency.players import Player, at_once
from tests.entitlement_server import EntitlementServer, entitlement_server, hang
from tests.support import Factory, api, python_m, wait_until

TIMEOUT_SECONDS = 2
SLACK_SECONDS = 2
"""For a busy machine."""

SETUPS_AT_ONCE = 24
"""Fewer than the calls that a process makes at once."""


@pytest.fixture
def server() -> Iterator[EntitlementServer]:
    with entitlement_server() as server:
        yield server


@contextmanager
def serving(clone: Callable[[], str], server: EntitlementServer, tmp_path: Path) -> Iterator[str]:
    """Run one API process that asks the server; yield its base URL."""
    url = clone()
    database = Database(url, application_name="srm-tests")
    Factory(database).account("a", max_sessions=None)
    database.dispose()
    variables = {
        "SRM_ENTITLEMENTS": "http",
        "SRM_ENTITLEMENTS_URL": server.url,
        "SRM_ENTITLEMENTS_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
    }
    with api(url, tmp_path / "log", workers=1, variables=variables) as (base, _):
        yield base


def keep_alives(player: Player, session: str, until: Callable[[], bool]) -> list[float]:
    """Send keep-alives until the condition holds; return the seconds that each took."""
    took = []
    while not until():
        answer = player.keep_alive(session)
        assert answer.status == 200
        took.append(answer.answered_at - answer.sent_at)
        time.sleep(0.02)
    return took


def test_keep_alives_do_not_wait_while_setups_hang(
    clone: Callable[[], str], server: EntitlementServer, tmp_path: Path
) -> None:
    with serving(clone, server, tmp_path) as base, Player(base, "a", "tv") as viewer:
        session = viewer.set_up().session_id
        assert session is not None
        server.behave = hang
        asked = len(server.questions)
        answered: list[tuple[int, float]] = []
        meanwhile: list[float] = []

        def work(index: int, barrier: threading.Barrier) -> None:
            if index == 0:
                barrier.wait()
                wait_until(lambda: len(server.questions) > asked, timeout=TIMEOUT_SECONDS)
                meanwhile.extend(keep_alives(viewer, session, lambda: len(answered) == SETUPS_AT_ONCE))
                return
            with Player(base, "a", "tv") as other:
                barrier.wait()
                answer = other.set_up()
                answered.append((answer.status, answer.answered_at - answer.sent_at))

        at_once(SETUPS_AT_ONCE + 1, work)

    assert {status for status, _ in answered} == {503}
    assert max(seconds for _, seconds in answered) < TIMEOUT_SECONDS + SLACK_SECONDS
    assert max(seconds for _, seconds in answered) > TIMEOUT_SECONDS - 0.1  # some did hang
    assert max(meanwhile) < TIMEOUT_SECONDS * 3 / 4
    assert len(meanwhile) > 5


def test_the_service_does_not_start_without_an_entitlement_url(tmp_path: Path) -> None:
    result = run(python_m("gunicorn", "--config", "python:srm.gunicorn_conf", "wsgi:app"), SRM_ENTITLEMENTS="http")

    assert result.returncode != 0
    assert "SRM_ENTITLEMENTS_URL" in result.stderr
    assert "Traceback" not in result.stderr


def test_setups_are_admitted_again_when_the_service_answers_again(
    clone: Callable[[], str], server: EntitlementServer, tmp_path: Path
) -> None:
    with serving(clone, server, tmp_path) as base, Player(base, "a", "tv") as viewer:
        server.behave = lambda call: call.hang_up()
        for _ in range(5):
            assert viewer.set_up().error_code == "SRM-0010"
        server.behave = lambda call: call.answer({"granted": True})

        wait_until(lambda: viewer.set_up().session_id is not None, timeout=5)
        assert viewer.set_up().session_id is not None
