"""Sixteen devices of an account play at once, from several addresses, several contents: no limit is exceeded.

docs/design.md, Invariant 1, for every rule of a profile.
"""

import json
import random
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from srm.db.database import Database
from srm.db.models import AccountProfile, ProfileContentGroup, ProfileDeviceGroup
from srm.playback.limits import Limits
from tests import rules, support
from tests.concurrency.conftest import Service
from tests.concurrency.players import Player, Race, ask_until_deadline, at_once
from tests.support import Factory

CLIENTS = 16
DEVICES = {f"device-{index}": ("tv", "mobile", "computer", "game")[index % 4] for index in range(CLIENTS)}
CONTENTS = {"film": (), "race": ("cars", "sports"), "match": ("sports",)}
ADDRESSES = ("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::")

EACH_ALONE: dict[str, dict[str, Any]] = {
    "max_sessions": {"max_sessions": 3},
    "max_sessions_per_content": {"max_sessions_per_content": 2},
    # One session an address, so that an address is free as soon as its session has ended. Then devices race for it.
    "max_ip_addresses": {"max_ip_addresses": 2, "max_sessions_per_ip": 1},
    "max_sessions_per_ip": {"max_sessions_per_ip": 2},
    "device_group": {"device_group": 2},
    "content_group": {"content_group": 2},
}
ALL_TOGETHER = {
    "max_sessions": 5,
    "max_sessions_per_content": 3,
    "max_ip_addresses": 3,
    "max_sessions_per_ip": 3,
    "device_group": 2,
    "content_group": 3,
}


def make_account(database: Database, limits: dict[str, Any], **profile: Any) -> None:
    """Make the account `a`: `device_group` limits mobile devices, `content_group` sports; games do not count."""
    factory = Factory(database)
    for content in ("race", "match"):
        factory.content(content, groups=CONTENTS[content])
    factory.product("sports", ("COD", "race"), ("COD", "match"))
    factory.account("a", "nothing", max_sessions=None, products=("basic", "sports"))
    for device, group in DEVICES.items():
        factory.device("a", device, group=group)
    of_profile = {"profile_id": "profile of a"}
    of_account = {name: limit for name, limit in limits.items() if name.startswith("max_")}
    factory.change(AccountProfile, of_profile, timeout_seconds=None, **of_account, **profile)
    factory.add(ProfileDeviceGroup, **of_profile, device_group="game", counts=False)
    factory.add(ProfileDeviceGroup, **of_profile, device_group="mobile", max_sessions=limits.get("device_group"))
    factory.add(ProfileContentGroup, **of_profile, content_group="sports", max_sessions=limits.get("content_group"))


def zap(base: str, device: str, barrier: threading.Barrier, race: Race, *, and_tear_down: bool) -> None:
    """Set up random contents from random addresses, again and again. Counts `admitted` and `refused` setups."""
    with Player(base, "a", device) as player:
        barrier.wait()
        while race.goes_on():
            content = {"contentID": random.choice(list(CONTENTS)), "contentType": "COD"}
            address = random.choice(ADDRESSES)
            forwarded = address if address[0] == "1" else f"{address}{random.randrange(1, 0xFFFF):x}"
            ask = partial(player.request, "POST", "/srm/v1/sessions", json.dumps({"content": content}))
            answer = ask_until_deadline(partial(ask, **{"X-Forwarded-For": forwarded}))
            if (session_id := answer.session_id) is None:
                assert answer.error_code == "SRM-0006"
                race.count("refused")
                continue
            race.count("admitted")
            assert ask_until_deadline(partial(player.keep_alive, session_id)).status in (200, 410)
            if and_tear_down:
                time.sleep(random.uniform(0, 0.1))
                assert ask_until_deadline(partial(player.tear_down, session_id)).status in (200, 410)


def play(service: Service, race: Race, *, and_tear_down: bool) -> None:
    """Let all devices zap until the race is over; then check the limits."""
    devices = list(DEVICES)
    work = partial(zap, race=race, and_tear_down=and_tear_down)
    at_once(CLIENTS, lambda i, barrier: work(service.base, devices[i], barrier))
    support.assert_audit_clean(service.url)


@dataclass(frozen=True)
class Played:
    """Session as the database has it afterwards."""

    session_id: str
    device_group: str
    content_id: str
    content_groups: tuple[str, ...]
    address: str
    counts: bool
    started_at: datetime
    ended_at: datetime | None
    end_reason: str | None


def played(database: Database) -> list[Played]:
    """Return all sessions in the order of their setups."""
    found = support.rows(
        database,
        "SELECT session_id, device_group, content_id, content_groups, address, counts, started_at, ended_at, "
        "end_reason FROM srm.sessions ORDER BY started_at",
    )
    return [Played(**{**row._mapping, "content_groups": tuple(row.content_groups or ())}) for row in found]


def limits_of(session: Played, on_limit: str) -> Limits:
    """Return the limits of ALL_TOGETHER that hold for the session."""
    return Limits(
        ALL_TOGETHER["max_sessions"],
        ALL_TOGETHER["max_sessions_per_content"],
        ALL_TOGETHER["max_ip_addresses"],
        ALL_TOGETHER["max_sessions_per_ip"],
        ALL_TOGETHER["device_group"] if session.device_group == "mobile" else None,
        [ALL_TOGETHER["content_group"] if group == "sports" else None for group in session.content_groups],
        on_limit,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("rule", EACH_ALONE)
def test_no_limit_is_ever_exceeded(service: Service, rule: str) -> None:
    make_account(service.database, EACH_ALONE[rule])
    race = Race(admitted=3 * CLIENTS, refused=2 * CLIENTS)

    play(service, race, and_tear_down=True)

    denials = support.rows(service.database, "SELECT rule, count(*) AS count FROM srm.denials GROUP BY rule")
    # There are more records than denials seen, where a setup was denied but answered with 503.
    assert sum(row.count for row in denials) >= race.counts["refused"]
    assert {row.rule.partition(":")[0] for row in denials} == set(EACH_ALONE[rule])


@pytest.mark.parametrize("on_limit", ["evict_oldest", "evict_newest"])
def test_nobody_is_evicted_without_need(service: Service, on_limit: str) -> None:
    """No device tears down: only setups change what is active, so what each setup found is known."""
    make_account(service.database, dict(ALL_TOGETHER), on_limit=on_limit)
    race = Race(admitted=10 * CLIENTS)

    play(service, race, and_tear_down=False)

    assert race.counts["refused"] == 0
    active: list[Played] = []
    for new in played(service.database):
        evicted = {session for session in active if session.ended_at and session.ended_at <= new.started_at}
        assert evicted == set(rules.fewest(limits_of(new, on_limit), active, new) or ())
        active = [*(session for session in active if session not in evicted), new]
    assert [session.end_reason for session in active] == [None] * len(active)
