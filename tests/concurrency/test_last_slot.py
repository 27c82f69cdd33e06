"""Many devices of an account want its last slots at one instant: as many get one as there are slots.

docs/design.md, Invariant 1: over HTTP against several processes, and against `playback` itself on many connections. Red
when the account is not locked.
"""

import threading
from functools import partial

import pytest

from srm.db.database import Database
from srm.playback.model import Principal
from srm.playback.teardown import tear_down_or_explain
from tests import support
from tests.concurrency.conftest import Service
from tests.concurrency.players import Answer, Player, ask_until_deadline, at_once, connections, set_up
from tests.support import Factory

CLIENTS = 32
DEVICES = [f"device-{index}" for index in range(CLIENTS)]


def make_account(database: Database, *, free: int, taken: int) -> None:
    """Make the account `a` with `free` slots beside `taken` ones."""
    factory = Factory(database)
    factory.account("a", *DEVICES, max_sessions=free + taken)
    for _ in range(taken):
        factory.session("a", DEVICES[0], timeout_seconds=None, max_sessions=free + taken)


def race(base: str, device: str, barrier: threading.Barrier, rounds: int) -> list[Answer]:
    """Set up at the instant of all others, tear down if admitted, and repeat; return the answers to the setups."""
    answers = []
    with Player(base, "a", device) as player:
        for _ in range(rounds):
            barrier.wait()
            answer = ask_until_deadline(player.set_up)
            answers.append(answer)
            barrier.wait()
            if (session_id := answer.session_id) is not None:
                assert ask_until_deadline(partial(player.tear_down, session_id)).status == 200
    return answers


@pytest.mark.parametrize(
    ("free", "taken", "rounds"), [(1, 2, 40), (5, 0, 10), pytest.param(1, 2, 1000, marks=pytest.mark.long(120))]
)
def test_as_many_setups_are_admitted_as_there_are_slots(service: Service, free: int, taken: int, rounds: int) -> None:
    make_account(service.database, free=free, taken=taken)

    by_client = at_once(CLIENTS, lambda i, barrier: race(service.base, DEVICES[i], barrier, rounds))

    for answers in zip(*by_client, strict=True):
        assert len([answer for answer in answers if answer.session_id]) == free
        assert [answer.error_code for answer in answers if not answer.session_id] == ["SRM-0006"] * (CLIENTS - free)
    support.assert_audit_clean(service.url)
    assert support.session_count(service.database) == taken + free * rounds


def race_directly(url: str, device: str, barrier: threading.Barrier, rounds: int) -> list[bool]:
    admitted = []
    with connections(url) as database:
        for _ in range(rounds):
            barrier.wait()
            session_id = set_up(database, "a", device)
            admitted.append(session_id is not None)
            barrier.wait()
            if session_id is not None:
                with database.request() as db:
                    assert tear_down_or_explain(db, Principal("a", device), session_id).outcome is True
    return admitted


def test_as_many_setups_are_admitted_as_there_are_slots_on_direct_connections(
    own_url: str, own_database: Database
) -> None:
    make_account(own_database, free=1, taken=2)

    by_client = at_once(CLIENTS, lambda i, barrier: race_directly(own_url, DEVICES[i], barrier, rounds=20))

    assert [sum(admitted) for admitted in zip(*by_client, strict=True)] == [1] * 20
    support.assert_audit_clean(own_url)
