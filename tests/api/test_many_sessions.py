"""Accounts with thousands of active sessions: a setup that has to end them all is admitted before its deadline.

The deadline of a statement judges, not the clock of the test: a cost that grows with the square of the number of
sessions makes a statement take minutes.
"""

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from srm.db.database import Database
from srm.db.models import AccountProfile
from tests.support import SETUP, Admin, Factory, issue_token, rows

SESSIONS = 3000
"""Enough to fail a setup whose cost grows with the square: 2,000 sessions took it half a minute."""


def set_up(client: FlaskClient, account: str) -> int:
    """Set up a session; return the HTTP status of the answer, or 0 for a denial."""
    answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": issue_token(account, "phone")})
    return answer.status_code if answer.status_code != 200 or "successResponse" in answer.get_json() else 0


def add_sessions(database: Database, account: str, count: int, silent_for: float) -> None:
    """Add sessions that were set up and kept alive `silent_for` seconds ago, one after the other."""
    with database.transaction() as db:
        db.exec_driver_sql(
            "INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds,"
            " started_at, last_keep_alive_at)"
            " SELECT %s, gen_random_uuid(), 'phone', 'COD', 'film', 30, at - make_interval(secs => i * 0.0001), at"
            " FROM generate_series(1, %s) i, (SELECT statement_timestamp() - make_interval(secs => %s) AS at) past",
            (account, count, silent_for),
        )


@pytest.fixture
def many(client: FlaskClient, factory: Factory, database: Database) -> Callable[[dict[str, object], float], None]:
    """Return a function that gives the account `a`, whose profile has these rules, many sessions.

    The function first sets up sessions of a small account with these rules. After a few executions the server keeps one
    plan of a statement for all parameters, and that plan is then made for a few rows.
    """

    def make(rules: dict[str, object], silent_for: float = 0) -> None:
        for account, count in (("small", 2), ("a", SESSIONS)):
            factory.account(account, "phone", "tv", max_sessions=None)
            factory.change(AccountProfile, {"profile_id": f"profile of {account}"}, **rules)
            for _ in range(8 if account == "small" else 1):
                add_sessions(database, account, count, silent_for)
                if account == "small":
                    assert set_up(client, account) == 200

    return make


@pytest.mark.parametrize(
    ("rules", "silent_for", "reason"),
    [
        ({"max_sessions": 3, "on_limit": "evict_oldest"}, 0, "evicted"),
        ({"max_sessions": 3, "on_limit": "evict_newest"}, 0, "evicted"),
        ({"same_device": "replace"}, 0, "replaced"),
        ({"max_sessions": 100}, 600, "expired"),
    ],
)
def test_a_setup_that_ends_thousands_of_sessions_is_admitted(
    client: FlaskClient,
    database: Database,
    many: Callable[[dict[str, object], float], None],
    rules: dict[str, object],
    silent_for: float,
    reason: str,
) -> None:
    many(rules, silent_for)

    assert set_up(client, "a") == 200

    counted = "SELECT end_reason, count(*) FROM srm.sessions WHERE account_id = 'a' GROUP BY end_reason"
    kept = 3 if reason == "evicted" else 1
    assert dict(map(tuple, rows(database, counted))) == {None: kept, reason: SESSIONS + 1 - kept}


def test_an_operator_ends_thousands_of_sessions(
    client: FlaskClient, factory: Factory, database: Database, many: Callable[[dict[str, object], float], None]
) -> None:
    admin = Admin(client, factory.operator("care"))
    many({"same_device": "count"}, 0)

    answer = admin("DELETE", "accounts/a/sessions")

    assert answer.status_code == 200, answer.text
    assert rows(database, "SELECT count(*) FROM srm.sessions WHERE account_id = 'a' AND ended_at IS NULL")[0][0] == 0
