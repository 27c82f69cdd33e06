"""Requests that wait for a lock take nothing from other requests: no viewer loses a session to a lock on other rows."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from srm.db.database import Database
from tests import support
from tests.concurrency.players import Answer, Player
from tests.service.test_outage import PROMISED_SECONDS, SLACK_SECONDS
from tests.service.test_viewers_survive import EXPIRED, SHORT_TIMEOUT_SECONDS, Audience, count, reaper
from tests.support import Factory

VIEWERS = 20
NEW_PER_SECOND = 3
RETRY_SECONDS = 1


@dataclass
class Crowd:
    """Clients in threads of their own. Each client repeats its setup every second."""

    base: str
    done: threading.Event = field(default_factory=threading.Event)
    answers: list[Answer] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def join(self, account: str, device: str) -> None:
        """Let one more client set up sessions."""
        thread = threading.Thread(target=self._retry, args=(account, device))
        thread.start()
        self._threads.append(thread)

    def _retry(self, account: str, device: str) -> None:
        with Player(self.base, account, device) as player:
            while not self.done.wait(RETRY_SECONDS):
                self.answers.append(player.set_up())

    def leave(self) -> None:
        """Stop all clients."""
        self.done.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def crowd(base: str) -> Iterator[Crowd]:
    crowd = Crowd(base)
    try:
        yield crowd
    finally:
        crowd.leave()


def assert_refused_in_time(answers: list[Answer]) -> None:
    """Assert that every setup got 503 with Retry-After, and within the promised time."""
    assert {answer.status for answer in answers} == {503}
    assert all(answer.headers["Retry-After"] for answer in answers)
    assert max(answer.answered_at - answer.sent_at for answer in answers) < PROMISED_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize(
    ("timeout_seconds", "locked_seconds"),
    [
        (SHORT_TIMEOUT_SECONDS, SHORT_TIMEOUT_SECONDS + 3),
        pytest.param(30, 45, marks=pytest.mark.long(60)),
    ],
)
def test_no_viewer_is_lost_while_every_account_is_locked(
    clone: Callable[[], str],
    outside: Callable[[str], str],
    tmp_path: Path,
    timeout_seconds: int,
    locked_seconds: int,
) -> None:
    url = clone()
    database = Database(url, application_name="srm-tests")
    factory = Factory(database)
    factory.profile("p", max_sessions=None, timeout_seconds=timeout_seconds)
    for account in (f"viewer-{number}" for number in range(VIEWERS)):
        factory.account(account, profile="p")
    new = [f"new-{number}" for number in range(NEW_PER_SECOND * locked_seconds)]
    for account in new:
        factory.account(account, profile="p")

    with support.api(url, tmp_path / "api.log") as (base, _), reaper(url, tmp_path / "reaper.log"):
        sessions = {}
        for number in range(VIEWERS):
            with Player(base, f"viewer-{number}", "tv") as player:
                session = player.set_up().session_id
                assert session is not None
                sessions[(f"viewer-{number}", "tv")] = session
        audience = Audience(base, sessions, timeout_seconds / 3)
        with (
            psycopg.connect(outside(url)) as somebody,
            audience.watching(),
            crowd(base) as setups,
        ):
            somebody.execute("SELECT FROM srm.accounts FOR UPDATE")
            for account in new:
                setups.join(account, "tv")
                time.sleep(1 / NEW_PER_SECOND)
            setups.leave()

    assert_refused_in_time(setups.answers)
    assert set(audience.answers) == {200}
    assert audience.answers[200] > 2 * VIEWERS
    assert count(database, EXPIRED) == 0
    database.dispose()


def test_a_lock_on_one_account_delays_no_other(
    clone: Callable[[], str], outside: Callable[[str], str], tmp_path: Path
) -> None:
    """Fifty clients of the locked account repeat their setups in one process."""
    url = clone()
    database = Database(url, application_name="srm-tests")
    factory = Factory(database)
    factory.account("locked", max_sessions=None)
    factory.account("free", max_sessions=None)
    database.dispose()

    with support.api(url, tmp_path / "api.log", workers=1) as (base, _), Player(base, "free", "tv") as viewer:
        session = viewer.set_up().session_id
        assert session is not None
        with psycopg.connect(outside(url)) as somebody, crowd(base) as setups:
            somebody.execute("SELECT FROM srm.accounts WHERE account_id = 'locked' FOR UPDATE")
            for _ in range(50):
                setups.join("locked", "tv")
            others = []
            while len(setups.answers) < 100:
                others += [viewer.keep_alive(session), viewer.set_up()]
            setups.leave()

    assert_refused_in_time(setups.answers)
    assert {answer.status for answer in others} == {200}
    took = sorted(answer.answered_at - answer.sent_at for answer in others)
    assert took[len(took) * 9 // 10] < RETRY_SECONDS / 2  # a request that waits for a connection waits a second
