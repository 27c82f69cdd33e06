"""Disabling a device or account while it sets up sessions (docs/design.md, Invariant 8).

Once the disabling is acknowledged, no session of the device or account is active. A setup that came before is ended; a
setup that comes after is denied.
"""

import random
import threading
import time
from dataclasses import dataclass

import httpx
import pytest

from srm.db.database import Database
from tests import support
from tests.concurrency.conftest import Service
from tests.concurrency.players import Player, ask_until_deadline, at_once
from tests.support import Factory, rows

PLAYERS = 6
ROUNDS = 10

ACTIVE = "SELECT count(*) FROM srm.sessions WHERE account_id = :account AND ended_at IS NULL"
ENDED = "SELECT end_reason, count(*) FROM srm.sessions WHERE account_id = :account GROUP BY end_reason"


@dataclass(frozen=True)
class Disabling:
    """A call that disables. Setups after it get `error_code`; sessions that it ended have `reason`."""

    method: str
    path: str
    body: dict[str, bool] | None
    error_code: str
    reason: str


OFF = {"enabled": False}
DISABLING = [
    Disabling("PATCH", "accounts/{account}/devices/tv", OFF, "SRM-0005", "device_disabled"),
    Disabling("DELETE", "accounts/{account}/devices/tv", None, "SRM-0005", "device_disabled"),
    Disabling("PATCH", "accounts/{account}", OFF, "SRM-0004", "account_disabled"),
    Disabling("DELETE", "accounts/{account}", None, "SRM-0004", "account_disabled"),
]


class Round:
    """An account whose device sets up sessions as fast as it can, until it is disabled."""

    def __init__(self, base: str, account: str) -> None:
        self._base = base
        self._account = account
        self._is_disabled = threading.Event()

    def disable(self, barrier: threading.Barrier, call: Disabling, key: dict[str, str], database: Database) -> int:
        """Disable the device or account; return how many of its sessions are active once that is acknowledged."""
        with httpx.Client(verify=False, base_url=f"{self._base}/srm/v1/", headers=key, timeout=10) as operator:
            operator.get("operator/audit?limit=1")  # opens the connection
            barrier.wait()
            time.sleep(random.uniform(0, 0.03))
            answer = operator.request(call.method, call.path.format(account=self._account), json=call.body)
        assert answer.is_success, answer.text
        active: int = rows(database, ACTIVE, account=self._account)[0][0]
        self._is_disabled.set()
        return active

    def play(self, barrier: threading.Barrier, call: Disabling) -> int:
        """Set up sessions until one setup began after the disabling; return how many were admitted."""
        admitted = 0
        with Player(self._base, self._account, "tv") as player:
            barrier.wait()
            while True:
                is_last = self._is_disabled.is_set()
                answer = ask_until_deadline(player.set_up)
                admitted += answer.session_id is not None
                if is_last:
                    assert answer.error_code == call.error_code, answer.body
                    return admitted


@pytest.mark.parametrize("call", DISABLING)
def test_no_session_is_active_once_its_account_or_device_is_disabled(service: Service, call: Disabling) -> None:
    database = service.database
    factory = Factory(database)
    accounts = [factory.account(f"a{number}", max_sessions=None, timeout_seconds=None) for number in range(ROUNDS)]
    key = factory.operator("admin")
    admitted = 0

    for account in accounts:
        round_ = Round(service.base, account)

        def work(index: int, barrier: threading.Barrier, round_: Round = round_) -> int:
            return round_.play(barrier, call) if index else round_.disable(barrier, call, key, database)

        active, *counts = at_once(1 + PLAYERS, work)
        assert active == 0
        assert rows(database, ACTIVE, account=account)[0][0] == 0
        ended = rows(database, ENDED, account=account)
        assert ended == ([(call.reason, sum(counts))] if sum(counts) else [])
        admitted += sum(counts)

    assert admitted > ROUNDS
    assert rows(database, "SELECT count(*) FROM srm.operator_audit WHERE action = 'end'") == [(admitted,)]
    support.assert_audit_clean(service.url)
