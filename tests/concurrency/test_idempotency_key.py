"""The same setup, repeated at the same instant: one session, and everybody gets it."""

import threading
from functools import partial

from tests import support
from tests.concurrency.conftest import Service
from tests.concurrency.players import Player, at_once, patiently
from tests.support import Factory

CLIENTS = 20
ROUNDS = 20


def repeat(base: str, barrier: threading.Barrier) -> list[str | None]:
    """Set up with the key of the round, at the same instant as all others; what was given."""
    given = []
    with Player(base, "a", "tv") as player:
        for number in range(ROUNDS):
            barrier.wait()
            given.append(patiently(partial(player.set_up, **{"Idempotency-Key": f"round-{number}"})))
            barrier.wait()
            if (session_id := given[-1].session_id) is not None:
                assert patiently(partial(player.tear_down, session_id)).status == 200
    return [answer.session_id for answer in given]


def test_one_session_for_all_repeats(service: Service) -> None:
    Factory(service.database).account("a", "tv", max_sessions=1)

    by_client = at_once(CLIENTS, lambda _, barrier: repeat(service.base, barrier))

    by_round = [set(given) for given in zip(*by_client, strict=True)]
    assert all(len(given) == 1 and None not in given for given in by_round)
    assert len(set.union(*by_round)) == ROUNDS
    assert support.session_count(service.database) == ROUNDS
    support.assert_audit_clean(service.url)
