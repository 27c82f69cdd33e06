"""The database or SRM is away for longer than the timeout: no viewer loses his session, and no slot is lost."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from srm.db import schema
from srm.db.database import Database
from srm.db.embedded import EmbeddedServer
from srm.playback import limit_check as audit
from srm.playback.availability import OUTAGE_SECONDS
from tests import support
from tests.concurrency.players import LOST, Answer, Player
from tests.support import Factory, issue_token, rows, wait_until

DEVICES = ("tv", "phone", "tablet")
LIMIT = 2
THREADS = 4
SHORT_TIMEOUT_SECONDS = OUTAGE_SECONDS + 1
"""Shortest useful timeout: longer than the longest gap that is no outage."""

REAPED_SECONDS = 5
"""Longest time from the lapse of a session to its end, on a busy machine too. The reaper runs each second here."""

ACTIVE = "SELECT count(*) FROM srm.active_sessions"
EXPIRED = "SELECT count(*) FROM srm.sessions WHERE end_reason = 'expired'"


@dataclass(frozen=True)
class Outage:
    """An outage of the database. In each of `leaving` accounts one viewer goes away during the outage."""

    accounts: int
    leaving: int
    timeout_seconds: int
    away_seconds: int
    keep_alive_seconds: float


class Audience:
    """Viewers who send keep-alives at a steady pace, whatever the answers are."""

    def __init__(self, base: str, sessions: dict[tuple[str, str], str], keep_alive_seconds: float) -> None:
        self._base = base
        self._keep_alive_seconds = keep_alive_seconds
        self._sessions = sessions
        self._tokens = {viewer: issue_token(*viewer) for viewer in sessions}
        self.gone: set[tuple[str, str]] = set()
        self.answers: Counter[int] = Counter()
        self._done = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let the viewers send keep-alives during the block."""
        viewers = list(self._sessions)
        with ThreadPoolExecutor(THREADS) as threads:
            groups = [threads.submit(self._watch, viewers[index::THREADS]) for index in range(THREADS)]
            try:
                yield
            finally:
                self._done.set()
        for group in groups:
            group.result()

    def _watch(self, viewers: list[tuple[str, str]]) -> None:
        pause = self._keep_alive_seconds / len(viewers)
        with Player(self._base, "", "") as player:
            while not self._done.is_set():
                round_at = time.monotonic()
                for index, viewer in enumerate(viewers):
                    if viewer not in self.gone:
                        with suppress(*LOST):
                            self.answers[self._keep_alive(player, viewer).status] += 1
                    if self._done.wait(max(0.0, round_at + index * pause - time.monotonic())):
                        return

    def _keep_alive(self, player: Player, viewer: tuple[str, str]) -> Answer:
        token = {"Client-Token": self._tokens[viewer]}
        return player.request("PUT", f"/srm/v1/sessions/{self._sessions[viewer]}", **token)


def set_up(base: str, account: str, device: str) -> Answer:
    with Player(base, account, device) as player:
        return player.set_up()


def count(database: Database, query: str) -> int:
    number: int = rows(database, query)[0][0]
    return number


def availability(database: Database) -> Any:
    return rows(database, "SELECT *, statement_timestamp() - available_since AS ago FROM srm.availability")[0]


def fill(database: Database, accounts: int, timeout_seconds: int) -> list[str]:
    """Accounts with their devices, all of one profile; their ids."""
    factory = Factory(database)
    factory.profile("p", max_sessions=LIMIT, timeout_seconds=timeout_seconds)
    names = [f"account-{index}" for index in range(accounts)]
    with database.transaction() as db:
        for statement in (
            "INSERT INTO srm.accounts (account_id, profile_id) SELECT unnest(%(names)s::text[]), 'p'",
            "INSERT INTO srm.entitlements (account_id, product_id) SELECT unnest(%(names)s::text[]), 'basic'",
            "INSERT INTO srm.devices (account_id, device_id, device_group, name) "
            "SELECT unnest(%(names)s::text[]), d, 'tv', d FROM unnest(%(devices)s::text[]) d",
        ):
            db.exec_driver_sql(statement, {"names": names, "devices": list(DEVICES)})
    return names


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(data_dir) as server:
        schema.upgrade(server.url)
        database = Database(server.url, application_name="srm-tests")
        Factory(database).content("film")
        Factory(database).product("basic", ("COD", "film"))
        database.dispose()
        yield server


@contextmanager
def reaper(url: str, output: Path) -> Iterator[None]:
    with support.running(
        support.python_m("srm.cli", "reaper"),
        output,
        variables={"SRM_DATABASE_URL": url, "SRM_REAPER_INTERVAL_SECONDS": "1"},
    ):
        yield


@pytest.mark.parametrize(
    "outage",
    [
        Outage(accounts=100, leaving=20, timeout_seconds=10, away_seconds=14, keep_alive_seconds=2),
        pytest.param(
            Outage(accounts=500, leaving=100, timeout_seconds=30, away_seconds=90, keep_alive_seconds=10),
            marks=pytest.mark.long(180),
        ),
    ],
    ids=lambda outage: f"{outage.away_seconds} s",
)
def test_no_viewer_is_lost_when_the_database_is_away_for_longer_than_the_timeout(
    server: EmbeddedServer, data_dir: Path, tmp_path: Path, outage: Outage
) -> None:
    database = Database(server.url, application_name="srm-tests")
    accounts = fill(database, outage.accounts, outage.timeout_seconds)
    viewers = [(account, device) for account in accounts for device in DEVICES[:LIMIT]]
    leaving = {(account, DEVICES[0]) for account in accounts[: outage.leaving]}

    with support.api(server.url, tmp_path / "api.log") as (base, _), reaper(server.url, tmp_path / "reaper.log"):
        with ThreadPoolExecutor(THREADS) as threads:
            admitted = list(threads.map(lambda viewer: set_up(base, *viewer).session_id, viewers))
        sessions = {viewer: session for viewer, session in zip(viewers, admitted, strict=True) if session}
        assert len(sessions) == len(viewers) == LIMIT * outage.accounts

        audience = Audience(base, sessions, outage.keep_alive_seconds)
        with audience.watching():
            time.sleep(outage.keep_alive_seconds)
            assert set(audience.answers) == {200}
            support.stop_postgres(server, data_dir)
            audience.gone |= leaving
            time.sleep(outage.away_seconds)
            server.ensure_running()
            wait_until(lambda: audience_is_heard(audience), timeout=10)
            wait_until(
                lambda: availability(database).ago.total_seconds() < outage.away_seconds, timeout=5
            )  # the end of the outage is noted

            # Those who left have not lapsed yet, and nobody takes their slots.
            while (ago := availability(database).ago.total_seconds()) < outage.timeout_seconds - 3:
                assert set_up(base, accounts[int(ago)], DEVICES[-1]).error_code == "SRM-0006"
                assert count(database, ACTIVE) == len(viewers)
                time.sleep(0.5)

            wait_until(lambda: count(database, EXPIRED) == outage.leaving, timeout=3 + REAPED_SECONDS)
            assert availability(database).ago.total_seconds() >= outage.timeout_seconds
            for account in accounts[: outage.leaving]:
                assert set_up(base, account, DEVICES[-1]).session_id
            time.sleep(outage.keep_alive_seconds)

        assert set(audience.answers) <= {200, 503}
        assert min(audience.answers[200], audience.answers[503]) > len(viewers)
        assert count(database, EXPIRED) == outage.leaving
        assert count(database, ACTIVE) == len(viewers)
        ends = "SELECT DISTINCT extract(epoch FROM ended_at - available_since) FROM srm.sessions, srm.availability"
        assert rows(database, f"{ends} WHERE end_reason = 'expired'") == [(outage.timeout_seconds,)]
        with database.transaction() as db:
            assert audit.excesses(db) == []
    database.dispose()


def audience_is_heard(audience: Audience) -> bool:
    """True when a keep-alive succeeds within half a second."""
    before = audience.answers[200]
    time.sleep(0.5)
    return audience.answers[200] > before


@pytest.fixture
def url(clone: Callable[[], str], outside: Callable[[str], str]) -> str:
    """Database in which the last heartbeat was just now."""
    url = clone()
    with psycopg.connect(outside(url)) as connection:
        connection.execute("UPDATE srm.availability SET seen_at = statement_timestamp()")
    return url


def test_no_viewer_is_lost_when_srm_is_away_and_its_reaper_is_not(url: str, tmp_path: Path) -> None:
    database = Database(url, application_name="srm-tests")
    (account,) = fill(database, 1, SHORT_TIMEOUT_SECONDS)

    with reaper(url, tmp_path / "reaper.log"):
        with support.api(url, tmp_path / "api.log") as (base, _):
            stays, leaves = (set_up(base, account, device).session_id for device in DEVICES[:LIMIT])
            assert stays
        time.sleep(SHORT_TIMEOUT_SECONDS + REAPED_SECONDS)
        assert count(database, ACTIVE) == LIMIT

        with support.api(url, tmp_path / "api.log") as (base, _), Player(base, account, DEVICES[0]) as player:
            assert player.keep_alive(stays).status == 200
            assert set_up(base, account, DEVICES[-1]).error_code == "SRM-0006"
            while count(database, EXPIRED) == 0:
                assert availability(database).ago.total_seconds() < SHORT_TIMEOUT_SECONDS + REAPED_SECONDS
                assert player.keep_alive(stays).status == 200
                time.sleep(0.2)
            assert availability(database).ago.total_seconds() >= SHORT_TIMEOUT_SECONDS
            assert set_up(base, account, DEVICES[-1]).session_id
        assert "outage over" in (tmp_path / "api.log").read_text()

    assert rows(database, "SELECT session_id::text FROM srm.sessions WHERE end_reason = 'expired'") == [(leaves,)]
    database.dispose()


def test_sessions_lapse_when_the_reaper_is_away_and_srm_is_not(url: str, tmp_path: Path) -> None:
    database = Database(url, application_name="srm-tests")
    (account,) = fill(database, 1, SHORT_TIMEOUT_SECONDS)

    with support.api(url, tmp_path / "api.log") as (base, _):
        for device in DEVICES[:LIMIT]:
            assert set_up(base, account, device).session_id
        assert set_up(base, account, DEVICES[-1]).error_code == "SRM-0006"
        wait_until(lambda: count(database, ACTIVE) == 0, timeout=SHORT_TIMEOUT_SECONDS + REAPED_SECONDS)

        assert set_up(base, account, DEVICES[-1]).session_id
    database.dispose()
