"""Setups that end sessions, at once with other setups, keep-alives and teardowns.

docs/design.md, Invariant 1: no limit is exceeded. Nobody is evicted without need, and nobody waits in a circle
(docs/design.md, "Locks in one order").
"""

import json
import random
import threading
import time
from functools import partial

import pytest

from srm.db.database import Database
from srm.db.models import AccountProfile
from tests import support
from tests.concurrency.conftest import Service
from tests.concurrency.players import Player, Race, ask_until_deadline, at_once
from tests.support import SETUP, Factory

CLIENTS = 16
LIMIT = 3
DEVICES = [f"device-{index}" for index in range(CLIENTS)]


def make_account(database: Database, **profile: str) -> None:
    """Make the account `a`, whose profile has these rules. Its sessions never lapse."""
    factory = Factory(database)
    factory.account("a", *DEVICES, max_sessions=LIMIT, timeout_seconds=None)
    if profile:
        factory.change(AccountProfile, {"profile_id": "profile of a"}, **profile)


def zap(base: str, device: str, barrier: threading.Barrier, race: Race) -> None:
    """Set up again and again, and keep the last session alive. Counts `admitted` and `refused` setups."""
    with Player(base, "a", device) as player:
        barrier.wait()
        while race.goes_on():
            answer = ask_until_deadline(player.set_up)
            if answer.session_id is None:
                assert answer.error_code == "SRM-0006"
                race.count("refused")
                continue
            race.count("admitted")
            session_id = answer.session_id
            for _ in range(random.randint(0, 2)):
                assert ask_until_deadline(lambda: player.keep_alive(session_id)).status in (200, 410)  # noqa: B023 at once


@pytest.mark.parametrize("on_limit", ["evict_oldest", "evict_newest"])
def test_concurrent_evictions_keep_the_limit(service: Service, on_limit: str) -> None:
    make_account(service.database, on_limit=on_limit)
    race = Race(admitted=20 * CLIENTS)

    at_once(CLIENTS, lambda i, barrier: zap(service.base, DEVICES[i], barrier, race))

    assert race.counts["refused"] == 0
    admitted = race.counts["admitted"]
    (ended,) = support.rows(
        service.database,
        "SELECT count(*) AS sessions, count(*) FILTER (WHERE end_reason = 'evicted') AS evicted,"
        " count(*) FILTER (WHERE ended_at IS NULL) AS active FROM srm.sessions",
    )
    assert (ended.sessions, ended.evicted, ended.active) == (admitted, admitted - LIMIT, LIMIT)
    support.assert_audit_clean(service.url)


def test_devices_that_zap_leave_no_slots_behind(service: Service) -> None:
    make_account(service.database, same_device="replace")
    race = Race(admitted=10 * CLIENTS, refused=10 * CLIENTS)

    at_once(CLIENTS, lambda i, barrier: zap(service.base, DEVICES[i], barrier, race))

    admitted = race.counts["admitted"]
    (ended,) = support.rows(
        service.database,
        "SELECT count(*) FILTER (WHERE end_reason = 'replaced') AS replaced,"
        " count(*) FILTER (WHERE ended_at IS NULL) AS active,"
        " count(DISTINCT device_id) FILTER (WHERE ended_at IS NULL) AS devices FROM srm.sessions",
    )
    assert (ended.replaced, ended.active, ended.devices) == (admitted - LIMIT, LIMIT, LIMIT)
    support.assert_audit_clean(service.url)


def zap_and_tear_down(base: str, device: str, barrier: threading.Barrier, race: Race) -> None:
    """Set up and tear down at random moments, again and again. Counts the answers to teardowns."""
    with Player(base, "a", device) as player:
        barrier.wait()
        while race.goes_on():
            time.sleep(random.uniform(0, 0.01))  # Long enough for others to tear down.
            answer = ask_until_deadline(player.set_up)
            if (session_id := answer.session_id) is None:
                assert answer.error_code == "SRM-0006"
                continue
            time.sleep(random.uniform(0, 0.03))  # Long enough for the setups of others to find no room.
            if random.random() < 0.8:
                answer = ask_until_deadline(partial(player.tear_down, session_id))
                assert answer.status in (200, 410)
                race.count({200: "torn_down", 410: "too_late"}[answer.status])


@pytest.mark.parametrize(
    "profile",
    [{"on_limit": "evict_oldest"}, {"on_limit": "evict_newest"}, {"same_device": "replace"}],
    ids=lambda profile: "-".join(profile.values()),
)
def test_a_teardown_and_an_eviction_of_one_session_do_not_deadlock(service: Service, profile: dict[str, str]) -> None:
    """Two players share a device: one may tear down the session that the other's setup is about to end."""
    make_account(service.database, **profile)
    race = Race(torn_down=3 * CLIENTS, too_late=CLIENTS)

    at_once(2 * LIMIT, lambda i, barrier: zap_and_tear_down(service.base, DEVICES[i // 2], barrier, race))

    ended = support.rows(service.database, "SELECT end_reason, count(*) FROM srm.sessions GROUP BY end_reason")
    counts = {reason: count for reason, count in ended if reason}
    assert counts.keys() == {"teardown", "replaced" if "same_device" in profile else "evicted"}
    assert min(counts.values()) > CLIENTS
    support.assert_audit_clean(service.url)


def take_over(
    base: str, device: str, barrier: threading.Barrier, occupants: list[str], rounds: int
) -> list[str | None]:
    """Take over, at once with all others, the session of the last round's winner; return the session ids."""
    given: list[str | None] = []
    with Player(base, "a", device) as player:
        for number in range(rounds):
            barrier.wait()
            body = json.dumps({**SETUP, "options": {"takeOver": [occupants[number]]}})
            answer = ask_until_deadline(partial(player.request, "POST", "/srm/v1/sessions", body))
            given.append(answer.session_id)
            if answer.session_id is not None:
                occupants.append(answer.session_id)
            else:
                assert answer.error_code == "SRM-0006"
            barrier.wait()
    return given


def test_one_of_many_setups_takes_over_the_place_of_a_session(service: Service) -> None:
    devices, rounds = 10, 30
    factory = Factory(service.database)
    make_account(service.database)
    for _ in range(LIMIT - 1):  # Sessions that stay.
        factory.session("a", "device-15", timeout_seconds=None)
    occupants = [str(factory.session("a", "device-14", timeout_seconds=None))]

    by_device = at_once(devices, lambda i, barrier: take_over(service.base, DEVICES[i], barrier, occupants, rounds))

    assert [sum(id_ is not None for id_ in given) for given in zip(*by_device, strict=True)] == [1] * rounds
    replaced = support.rows(service.database, "SELECT session_id FROM srm.sessions WHERE end_reason = 'replaced'")
    assert {str(row.session_id) for row in replaced} == set(occupants[:-1])
    support.assert_audit_clean(service.url)
