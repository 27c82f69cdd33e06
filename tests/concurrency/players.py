"""Players that call the service over HTTP, each on one connection that it keeps open."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage
from typing import Any, TypeVar
from uuid import UUID

from srm.db.database import Database
from srm.errors import SessionLimitReached
from srm.playback import setup
from srm.playback.model import Admission, ContentRef, Principal
from srm.playback.setup import SetupRequest
from tests.support import SETUP, issue_token

Result = TypeVar("Result")

FILM = ContentRef("COD", "film")

TEST_DEADLINE_SECONDS = 30
"""Longest wait for anything. After it the test fails instead of hanging."""

LOST = (OSError, HTTPException)
"""Errors of a broken connection. Nobody knows whether the request was carried out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer and its times, by the clock of this machine, which is the clock of the database too."""

    status: int
    headers: HTTPMessage
    body: bytes
    sent_at: float
    answered_at: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def session_id(self) -> str | None:
        """Id of the session, if this answers a setup that was admitted."""
        id_: str | None = self.json.get("successResponse", {}).get("sessionId")
        return id_

    @property
    def error_code(self) -> str | None:
        """SRM-… of a denial or an error."""
        if not self.body:
            return None
        code: str | None = self.json.get("errorResponse", {}).get("errorCode")
        return code


class Player:
    """Device of an account. Each call sends one request, and raises one of LOST when the connection breaks."""

    def __init__(self, base: str, account: str, device: str) -> None:
        self._connection = HTTPConnection(base.removeprefix("http://"), timeout=TEST_DEADLINE_SECONDS)
        self._headers = {"Client-Token": issue_token(account, device)}

    def request(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        sent_at = time.time()
        try:
            self._connection.request(method, path, body, {**self._headers, **headers})
            response = self._connection.getresponse()
            content = response.read()
        except LOST:
            self.close()  # The next request opens another connection.
            raise
        return Answer(response.status, response.headers, content, sent_at, time.time())

    def set_up(self, **headers: str) -> Answer:
        return self.request("POST", "/srm/v1/sessions", json.dumps(SETUP), **headers)

    def keep_alive(self, session_id: str) -> Answer:
        return self.request("PUT", f"/srm/v1/sessions/{session_id}")

    def tear_down(self, session_id: str) -> Answer:
        return self.request("DELETE", f"/srm/v1/sessions/{session_id}")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Player":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def connections(url: str) -> Iterator[Database]:
    """Connections for one thread that does without HTTP what a request does."""
    database = Database(url, application_name="srm-tests", statement_timeout_seconds=TEST_DEADLINE_SECONDS)
    try:
        yield database
    finally:
        database.dispose()


def set_up(database: Database, account: str, device: str) -> UUID | None:
    """Set up a session of the film; return its id, or None when the limit is reached."""
    with database.request() as db:
        outcome = setup.set_up(db, SetupRequest(Principal(account, device), FILM)).outcome
    if isinstance(outcome, SessionLimitReached):
        return None
    assert isinstance(outcome, Admission), outcome
    return outcome.session_id


def ask_until_deadline(ask: Callable[[], Answer]) -> Answer:
    """Ask again while the answer is 503, as a client of an overloaded service does."""
    deadline = time.monotonic() + TEST_DEADLINE_SECONDS
    while True:
        answer = ask()
        if answer.status != 503 or time.monotonic() > deadline:
            return answer
        time.sleep(0.2)


class Race:
    """Runs until each goal has been counted as often as wanted. Fails after TEST_DEADLINE_SECONDS."""

    def __init__(self, **goals: int) -> None:
        self._goals = goals
        self._lock = threading.Lock()
        self._deadline = time.monotonic() + TEST_DEADLINE_SECONDS
        self.counts: Counter[str] = Counter()

    def count(self, name: str) -> None:
        """Count one more of these events."""
        with self._lock:
            self.counts[name] += 1

    def goes_on(self) -> bool:
        """Return True while a goal is missing. AssertionError when that takes too long."""
        missing = {name: goal for name, goal in self._goals.items() if self.counts[name] < goal}
        assert not missing or time.monotonic() < self._deadline, f"{self.counts}, expected {missing}"
        return bool(missing)


def at_once(count: int, work: Callable[[int, threading.Barrier], Result]) -> list[Result]:
    """Run `work(index, barrier)` in so many threads at once; return the results. All threads share the barrier."""
    barrier = threading.Barrier(count, timeout=TEST_DEADLINE_SECONDS)

    def guarded(index: int) -> Result:
        try:
            return work(index, barrier)
        except BaseException:
            barrier.abort()  # The others must not wait for this thread.
            raise

    with ThreadPoolExecutor(count) as threads:
        futures = [threads.submit(guarded, index) for index in range(count)]
    causes = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(causes, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
