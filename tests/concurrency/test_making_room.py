"""Setups that end other sessions meet, with keep-alives and teardowns among them.

No limit is exceeded, nobody is evicted without need, and nobody waits in a circle.
"""

import json
import random
import threading
import time
from pathlib import Path

import pytest

from srm.database import Database
from srm.models import AccountProfile
from tests import support
from tests.concurrency.players import Player, at_once, deadlocks, patiently
from tests.support import SETUP, Factory

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


def take_over(base: str, device: str, barrier: threading.Barrier, session_ids: list[str]) -> list[str | None]:
    """In each round take over the same session as all others, at the same instant; what was given."""
    given: list[str | None] = []
    with Player(base, "a", device) as player:
        for session_id in session_ids:
            barrier.wait()
            body = json.dumps({**SETUP, "options": {"takeOver": [session_id]}})
            answer = patiently(lambda: player.request("POST", "/srm/v1/sessions", body))  # noqa: B023 at once
            given.append(answer.session_id)
            barrier.wait()
            if (own := given[-1]) is not None:
                assert patiently(lambda: player.tear_down(own)).status == 200
    return given


def test_one_of_many_takes_the_place_of_a_session(own_url: str, own_database: Database, tmp_path: Path) -> None:
    devices, rounds = 10, 20
    factory = Factory(own_database)
    make_account(own_database)
    for _ in range(LIMIT - 1):  # two that stay, and one in each round to take over
        factory.session("a", "device-15", timeout_seconds=None)
    in_the_way = str(factory.session("a", "device-14", timeout_seconds=None))

    with support.api(own_url, tmp_path / "api.log", workers=4) as (base, _):
        by_device = at_once(devices, lambda i, barrier: take_over(base, DEVICES[i], barrier, [in_the_way] * rounds))

    # The first round has a session to take the place of; in the others it is gone, and one slot is free.
    assert [sum(id_ is not None for id_ in given) for given in zip(*by_device, strict=True)] == [1] * rounds
    (ended,) = support.rows(
        own_database, "SELECT end_reason, ended_by FROM srm.sessions WHERE session_id = :id", id=in_the_way
    )
    assert ended.end_reason == "replaced"
    support.assert_audit_clean(own_url)
    assert deadlocks(own_database) == 0
