"""One setup sent many times at one instant: all get one session."""

import threading
from functools import partial

from tests import support
from tests.concurrency.conftest import Service
from tests.concurrency.players import Player, ask_until_deadline, at_once
from tests.support import Factory

CLIENTS = 20
ROUNDS = 20


def repeat(base: str, barrier: threading.Barrier) -> list[str | None]:
    """Set up in each round with the key of the round, at the instant of all others; return the session ids."""
    given = []
    with Player(base, "a", "tv") as player:
        for number in range(ROUNDS):
            barrier.wait()
            given.append(ask_until_deadline(partial(player.set_up, **{"Idempotency-Key": f"round-{number}"})))
            barrier.wait()
            if (session_id := given[-1].session_id) is not None:
                assert ask_until_deadline(partial(player.tear_down, session_id)).status == 200
    return [answer.session_id for answer in given]


def test_repeats_at_one_instant_get_one_session(service: Service) -> None:
    Factory(service.database).account("a", "tv", max_sessions=1)

    by_client = at_once(CLIENTS, lambda _, barrier: repeat(service.base, barrier))

    by_round = [set(given) for given in zip(*by_client, strict=True)]
    assert all(len(given) == 1 and None not in given for given in by_round)
    assert len(set.union(*by_round)) == ROUNDS
    assert support.session_count(service.database) == ROUNDS
    support.assert_audit_clean(service.url)
