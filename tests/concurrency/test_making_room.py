"""Setups that end other sessions meet each other, keep-alives and teardowns.

docs/design.md, Invariant 1: no limit is exceeded. Nobody is evicted without need, and nobody waits in a circle
(docs/design.md, "Locks in one order").
"""

import json
import random
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from srm.db.database import Database
from srm.db.models import AccountProfile
from tests import support
from tests.concurrency.players import Player, at_once, deadlocks, patiently
from tests.support import SETUP, Factory

pytestmark = pytest.mark.alone

SECONDS = 8
CLIENTS = 16
LIMIT = 3
DEVICES = [f"device-{index}" for index in range(CLIENTS)]


def make_account(database: Database, **profile: str) -> None:
    """The account `a`, whose profile has these rules; its sessions never lapse."""
    factory = Factory(database)
    factory.account("a", *DEVICES, max_sessions=LIMIT, timeout_seconds=None)
    if profile:
        factory.change(AccountProfile, {"profile_id": "profile of a"}, **profile)


def zap(base: str, device: str, barrier: threading.Barrier) -> tuple[int, int]:
    """Set up again and again, and keep the last session alive; how many were admitted, and how many refused."""
    admitted = refused = 0
    with Player(base, "a", device) as player:
        barrier.wait()
        stop_at = time.monotonic() + SECONDS
        while time.monotonic() < stop_at:
            answer = patiently(player.set_up)
            if answer.session_id is None:
                assert answer.error_code == "SRM-0006"
                refused += 1
                continue
            admitted += 1
            session_id = answer.session_id
            for _ in range(random.randint(0, 2)):
                assert patiently(lambda: player.keep_alive(session_id)).status in (200, 410)  # noqa: B023 at once
    return admitted, refused


@pytest.mark.parametrize("on_limit", ["evict_oldest", "evict_newest"])
def test_evictions_that_meet(own_url: str, own_database: Database, tmp_path: Path, on_limit: str) -> None:
    make_account(own_database, on_limit=on_limit)

    with support.api(own_url, tmp_path / "api.log", workers=4) as (base, _):
        tallies = at_once(CLIENTS, lambda i, barrier: zap(base, DEVICES[i], barrier))

    admitted = sum(tally[0] for tally in tallies)
    assert admitted > 10 * CLIENTS
    assert sum(tally[1] for tally in tallies) == 0
    (ended,) = support.rows(
        own_database,
        "SELECT count(*) AS sessions, count(*) FILTER (WHERE end_reason = 'evicted') AS evicted,"
        " count(*) FILTER (WHERE ended_at IS NULL) AS active FROM srm.sessions",
    )
    assert (ended.sessions, ended.evicted, ended.active) == (admitted, admitted - LIMIT, LIMIT)
    support.assert_audit_clean(own_url)
    assert deadlocks(own_database) == 0


def test_devices_that_zap_leave_no_slots_behind(own_url: str, own_database: Database, tmp_path: Path) -> None:
    make_account(own_database, same_device="replace")

    with support.api(own_url, tmp_path / "api.log", workers=4) as (base, _):
        tallies = at_once(CLIENTS, lambda i, barrier: zap(base, DEVICES[i], barrier))

    admitted = sum(tally[0] for tally in tallies)
    assert admitted > 10 * LIMIT
    (ended,) = support.rows(
        own_database,
        "SELECT count(*) FILTER (WHERE end_reason = 'replaced') AS replaced,"
        " count(*) FILTER (WHERE ended_at IS NULL) AS active,"
        " count(DISTINCT device_id) FILTER (WHERE ended_at IS NULL) AS devices FROM srm.sessions",
    )
    assert (ended.replaced, ended.active, ended.devices) == (admitted - LIMIT, LIMIT, LIMIT)
    support.assert_audit_clean(own_url)
    assert deadlocks(own_database) == 0


def zap_and_tear_down(base: str, device: str, barrier: threading.Barrier) -> int:
    """Set up and, at a random moment, tear down, again and again; how many were admitted."""
    admitted = 0
    with Player(base, "a", device) as player:
        barrier.wait()
        stop_at = time.monotonic() + SECONDS / 2
        while time.monotonic() < stop_at:
            time.sleep(random.uniform(0, 0.01))  # long enough for others to tear theirs down
            answer = patiently(player.set_up)
            if (session_id := answer.session_id) is None:
                assert answer.error_code == "SRM-0006"
                continue
            admitted += 1
            time.sleep(random.uniform(0, 0.003))
            if random.random() < 0.8:
                assert patiently(partial(player.tear_down, session_id)).status in (200, 410)
    return admitted


@pytest.mark.parametrize(
    "profile",
    [{"on_limit": "evict_oldest"}, {"on_limit": "evict_newest"}, {"same_device": "replace"}],
    ids=lambda profile: "-".join(profile.values()),
)
def test_teardowns_that_meet_setups_that_end_the_session(
    own_url: str, own_database: Database, tmp_path: Path, profile: dict[str, str]
) -> None:
    """Two players on each device: one may tear down what the setup of the other is about to end."""
    make_account(own_database, **profile)

    with support.api(own_url, tmp_path / "api.log", workers=4) as (base, _):
        admitted = at_once(2 * LIMIT, lambda i, barrier: zap_and_tear_down(base, DEVICES[i // 2], barrier))

    assert sum(admitted) > 10 * CLIENTS
    ended = support.rows(own_database, "SELECT end_reason, count(*) FROM srm.sessions GROUP BY end_reason")
    counts = {reason: count for reason, count in ended if reason}
    assert counts.keys() == {"teardown", "replaced" if "same_device" in profile else "evicted"}
    assert min(counts.values()) > CLIENTS
    support.assert_audit_clean(own_url)
    assert deadlocks(own_database) == 0


def take_over(
    base: str, device: str, barrier: threading.Barrier, occupants: list[str], rounds: int
) -> list[str | None]:
    """In each round take over the session of the last round's winner, as all others do; what was given."""
    given: list[str | None] = []
    with Player(base, "a", device) as player:
        for number in range(rounds):
            barrier.wait()
            body = json.dumps({**SETUP, "options": {"takeOver": [occupants[number]]}})
            answer = patiently(partial(player.request, "POST", "/srm/v1/sessions", body))
            given.append(answer.session_id)
            if answer.session_id is not None:
                occupants.append(answer.session_id)
            else:
                assert answer.error_code == "SRM-0006"
            barrier.wait()
    return given


def test_one_of_many_takes_the_place_of_a_session(own_url: str, own_database: Database, tmp_path: Path) -> None:
    devices, rounds = 10, 50
    factory = Factory(own_database)
    make_account(own_database)
    for _ in range(LIMIT - 1):  # that stay
        factory.session("a", "device-15", timeout_seconds=None)
    occupants = [str(factory.session("a", "device-14", timeout_seconds=None))]

    with support.api(own_url, tmp_path / "api.log", workers=4) as (base, _):
        by_device = at_once(devices, lambda i, barrier: take_over(base, DEVICES[i], barrier, occupants, rounds))

    assert [sum(id_ is not None for id_ in given) for given in zip(*by_device, strict=True)] == [1] * rounds
    replaced = support.rows(own_database, "SELECT session_id FROM srm.sessions WHERE end_reason = 'replaced'")
    assert {str(row.session_id) for row in replaced} == set(occupants[:-1])
    support.assert_audit_clean(own_url)
    assert deadlocks(own_database) == 0
