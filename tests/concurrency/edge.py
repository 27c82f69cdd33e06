"""Players that keep their sessions alive at the instant of expiry, while others want the slots.

They play in several processes, so that waiting for the interpreter lock does not spoil their aim. They aim by the clock
of this machine, which is the clock of the database: the server of the tests runs here.
"""

import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Protocol, TypeVar
from uuid import UUID

import psycopg

from srm.db.database import Database
from srm.errors import SessionHasEnded
from srm.playback.keep_alive import keep_alive
from srm.playback.model import Principal
from srm.playback.teardown import tear_down_or_explain
from tests.concurrency.players import Player, connections, set_up

Result = TypeVar("Result")

TIMEOUT_SECONDS = 1

SEEN_ENOUGH = 16
"""Times that each event of a Tally has to happen in a process before its players stop."""

PLAY_DEADLINE_SECONDS = 60
"""Longest time that players play, whatever has happened."""


class Service(Protocol):
    """Setup, keep-alive and teardown. The result None = not known, because the service was overloaded."""

    def set_up(self) -> str | None: ...

    def keep_alive(self, session_id: str) -> bool | None: ...

    def tear_down(self, session_id: str) -> bool | None: ...


class OverHttp:
    """Calls over HTTP. AssertionError for an answer that must not occur."""

    def __init__(self, player: Player) -> None:
        self._player = player

    def set_up(self) -> str | None:
        answer = self._player.set_up()
        assert answer.status == 503 or answer.session_id or answer.error_code == "SRM-0006", answer
        return None if answer.status == 503 else answer.session_id

    def keep_alive(self, session_id: str) -> bool | None:
        answer = self._player.keep_alive(session_id)
        return {200: True, 410: False, 503: None}[answer.status]

    def tear_down(self, session_id: str) -> bool | None:
        answer = self._player.tear_down(session_id)
        return {200: True, 410: False, 503: None}[answer.status]


class Direct:
    """Calls of the rules without HTTP, on connections of this player alone."""

    def __init__(self, database: Database, account: str, device: str) -> None:
        self._database = database
        self._principal = Principal(account, device)

    def set_up(self) -> str | None:
        session_id = set_up(self._database, self._principal.account_id, self._principal.device_id)
        return None if session_id is None else str(session_id)

    def keep_alive(self, session_id: str) -> bool:
        with self._database.request() as db:
            is_active = keep_alive(db, self._principal, UUID(session_id))
            time.sleep(random.uniform(0, 0.005))  # As when the process is starved between statement and commit.
        return is_active

    def tear_down(self, session_id: str) -> bool:
        with self._database.request() as db:
            outcome = tear_down_or_explain(db, self._principal, UUID(session_id)).outcome
        assert isinstance(outcome, bool | SessionHasEnded), outcome
        return not isinstance(outcome, SessionHasEnded)


@dataclass
class Tally:
    """Counts of events. The two lists have ids of sessions and must stay empty."""

    admitted: int = 0
    refused: int = 0
    kept: int = 0
    kept_at_the_edge: int = 0
    lapsed_at_the_edge: int = 0
    late: int = 0
    came_back: list[str] = field(default_factory=list)
    ended_early: list[str] = field(default_factory=list)

    def least(self) -> int:
        """Return the count of the rarest event that has to happen."""
        return min(self.admitted, self.refused, self.kept_at_the_edge, self.lapsed_at_the_edge, self.late)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True, slots=True)
class Contact:
    """Call about a session. The database was asked at some instant between the two times."""

    sent_at: float
    answered_at: float


@dataclass(frozen=True)
class Place:
    """Target of the players: the API at `base`, or without it the database itself."""

    base: str | None
    url: str

    @contextmanager
    def player(self, account: str, device: str) -> Iterator[Service]:
        if self.base is not None:
            with Player(self.base, account, device) as player:
                yield OverHttp(player)
        else:
            with connections(self.url) as database:
                yield Direct(database, account, device)


class EdgePlayer:
    """Player that learns from hits and misses how early a keep-alive has to be sent to be just in time."""

    def __init__(self, service: Service, jitter_seconds: float) -> None:
        self._service = service
        self._jitter_seconds = jitter_seconds
        self._lead_seconds = jitter_seconds
        self.tally = Tally()

    def play(self, goes_on: Callable[[], bool]) -> Tally:
        while goes_on():
            session_id, contact = _timed(self._service.set_up)
            if session_id is None:
                self.tally.refused += 1
            else:
                self.tally.admitted += 1
                self._hold(session_id, contact, goes_on)
        return self.tally

    def _hold(self, session_id: str, last: Contact, goes_on: Callable[[], bool]) -> None:
        """Keep the session alive at the edge until it lapses, or for at most six keep-alives."""
        for _ in range(random.randint(1, 6)):
            if not goes_on():
                return
            kind = random.choices(("edge", "late", "soon"), (7, 2, 1))[0]
            time.sleep(max(0, self._next_at(kind, last) - time.time()))
            is_active, contact = _timed(partial(self._service.keep_alive, session_id))
            if is_active is None:
                return
            self._judge(session_id, last, is_active, contact)
            if kind == "edge":
                self._learn(is_active)
            if not is_active:
                return
            last = contact
        if random.random() < 0.3:
            self._service.tear_down(session_id)

    def _next_at(self, kind: str, last: Contact) -> float:
        if kind == "late":
            return last.answered_at + TIMEOUT_SECONDS + random.uniform(0, 0.006)
        if kind == "soon":
            return last.answered_at + random.uniform(0, 0.02)
        jitter = random.uniform(-self._jitter_seconds, self._jitter_seconds)
        return last.sent_at + TIMEOUT_SECONDS - self._lead_seconds + jitter

    def _judge(self, session_id: str, last: Contact, is_active: bool, contact: Contact) -> None:
        """Record what must not happen, given that the database was asked between request and answer."""
        self.tally.kept += is_active
        if contact.sent_at >= last.answered_at + TIMEOUT_SECONDS:
            self.tally.late += 1
            if is_active:
                self.tally.came_back.append(session_id)
        if not is_active and contact.answered_at < last.sent_at + TIMEOUT_SECONDS:
            self.tally.ended_early.append(session_id)

    def _learn(self, is_active: bool) -> None:
        self.tally.kept_at_the_edge += is_active
        self.tally.lapsed_at_the_edge += not is_active
        self._lead_seconds += (-1 if is_active else 1) * self._jitter_seconds / 4


def _timed(call: Callable[[], Result]) -> tuple[Result, Contact]:
    sent_at = time.time()
    result = call()
    return result, Contact(sent_at, time.time())


_started: Barrier


def _share(barrier: Barrier) -> None:
    """Initialise a process. Its modules are loaded then, so all processes can start together."""
    global _started
    _started = barrier


def _play(place: Place, players: list[tuple[str, str]], seconds: float, jitter_seconds: float) -> Tally:
    """Let the players of one process play, each in a thread, for `seconds` and until SEEN_ENOUGH."""
    tallies: list[Tally] = []
    _started.wait(PLAY_DEADLINE_SECONDS)
    started_at = time.time()

    def goes_on() -> bool:
        played = time.time() - started_at
        return played < seconds or (played < PLAY_DEADLINE_SECONDS and sum(tallies, Tally()).least() < SEEN_ENOUGH)

    def play(account: str, device: str) -> Tally:
        with place.player(account, device) as service:
            player = EdgePlayer(service, jitter_seconds)
            tallies.append(player.tally)
            return player.play(goes_on)

    with ThreadPoolExecutor(len(players)) as threads:
        return sum(threads.map(play, *zip(*players, strict=True)), Tally())


HOLDERS = 3
HOLD_EXPIRING = """
    SELECT FROM srm.sessions
    WHERE ended_at IS NULL
      AND make_interval(secs => timeout_seconds) - (clock_timestamp() - last_keep_alive_at)
          BETWEEN interval '0' AND interval '10 milliseconds'
    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
"""


@contextmanager
def rows_held_up(url: str) -> Iterator[None]:
    """Hold rows of sessions that are about to expire, each for 15 ms, again and again during the block.

    So keep-alives that began in time are committed late, as when their process is starved. The window in which a setup
    could overlook them then opens often enough to be hit within seconds.
    """
    done = threading.Event()

    def hold() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not done.is_set():
                with connection.transaction():
                    if connection.execute(HOLD_EXPIRING).rowcount:
                        time.sleep(0.015)
                time.sleep(0.002)

    with ThreadPoolExecutor(HOLDERS) as threads:
        holding = [threads.submit(hold) for _ in range(HOLDERS)]
        try:
            yield
        finally:
            done.set()
        for held in holding:
            held.result()


def play_on_the_edge(
    place: Place, players: list[tuple[str, str]], *, seconds: float, processes: int, jitter_seconds: float
) -> Tally:
    """Let players, as (account, device), play in so many processes; return the sum of their tallies.

    They play for `seconds` from the start of the last process, and until each process has SEEN_ENOUGH.
    """
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(processes)
    with ProcessPoolExecutor(processes, spawn, initializer=_share, initargs=(barrier,)) as pool:
        shares = [players[start::processes] for start in range(processes)]
        played = [pool.submit(_play, place, share, seconds, jitter_seconds) for share in shares]
        return sum((share.result() for share in played), Tally())
