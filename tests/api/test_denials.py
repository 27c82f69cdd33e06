"""Records of setups that were denied, or that enforced limits would have denied."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask.testing import FlaskClient

from srm.db.database import Database
from srm.db.models import Account, AccountProfile, Device
from tests.support import SETUP, Factory, error_of, issue_token, rows, wait_until

ADDRESS = "192.0.2.1"

WAITS_FOR_DENIALS = """
    SELECT count(*) FROM pg_locks WHERE relation = 'srm.denials'::regclass AND NOT granted
"""


@pytest.fixture(autouse=True)
def account(factory: Factory) -> None:
    factory.account("a", "tv", "phone", max_sessions=1)


def set_up(client: FlaskClient, device: str = "tv", account: str = "a", content: str = "film", **headers: str) -> Any:
    return client.post(
        "/srm/v1/sessions",
        json={"content": {"contentID": content, "contentType": "COD"}},
        headers={"Client-Token": issue_token(account, device), **headers},
        environ_overrides={"REMOTE_ADDR": ADDRESS},
    )


def denials(database: Database) -> list[dict[str, Any]]:
    """Return all records, the oldest first, without their times and ids."""
    found = [row._asdict() for row in rows(database, "SELECT * FROM srm.denials ORDER BY denied_at")]
    return [{name: row[name] for name in row if name not in ("denied_at", "denial_id")} for row in found]


def denial(**columns: Any) -> dict[str, Any]:
    """Record of a denied setup of the film on `tv` of the account `a`."""
    facts = {
        "account_id": "a",
        "device_id": "tv",
        "content_type": "COD",
        "content_id": "film",
        "address": ADDRESS,
        "rule": None,
        "rule_limit": None,
        "in_the_way": None,
        "observed": False,
        "reason": None,
    }
    return {**facts, **columns}


def test_a_denial_by_a_limit_is_recorded(client: FlaskClient, database: Database) -> None:
    first = set_up(client, "phone").json["successResponse"]["sessionId"]

    assert error_of(set_up(client, "tv"))[2] == "SRM-0006"

    assert denials(database) == [
        denial(error_code="SRM-0006", rule="max_sessions", rule_limit=1, in_the_way=[UUID(first)])
    ]
    ((age,),) = rows(database, "SELECT extract(epoch FROM statement_timestamp() - denied_at) FROM srm.denials")
    assert 0 <= age < 60


@pytest.mark.parametrize(
    ("setup", "code"),
    [
        ({"account": "unknown"}, "SRM-0004"),
        ({"device": "unknown"}, "SRM-0005"),
        ({"content": "unknown"}, "SRM-0007"),
        ({"content": "ümlaut %s {x}"}, "SRM-0007"),
    ],
)
def test_any_other_denial_is_recorded(
    client: FlaskClient, database: Database, setup: dict[str, str], code: str
) -> None:
    assert error_of(set_up(client, **setup)) == (200, "DENIED", code)

    columns = {f"{name}_id": value for name, value in setup.items()}
    assert denials(database) == [denial(error_code=code, **columns)]


@pytest.mark.parametrize(
    ("model", "where", "code"),
    [(Account, {"account_id": "a"}, "SRM-0004"), (Device, {"account_id": "a", "device_id": "tv"}, "SRM-0005")],
)
def test_a_denial_of_a_disabled_account_or_device_is_recorded(
    client: FlaskClient, factory: Factory, database: Database, model: type, where: dict[str, Any], code: str
) -> None:
    factory.change(model, where, enabled=False)

    set_up(client)

    assert denials(database) == [denial(error_code=code)]


def test_an_observed_denial_is_recorded(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.change(AccountProfile, {"profile_id": "profile of a"}, mode="observe")
    first = set_up(client, "phone").json["successResponse"]["sessionId"]
    assert denials(database) == []

    assert "successResponse" in set_up(client, "tv").json

    assert denials(database) == [
        denial(error_code="SRM-0006", rule="max_sessions", rule_limit=1, in_the_way=[UUID(first)], observed=True)
    ]


def test_an_admission_is_not_recorded(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.change(AccountProfile, {"profile_id": "profile of a"}, on_limit="evict_oldest")
    set_up(client, "phone")
    set_up(client, "tv")

    assert denials(database) == []


def test_an_error_that_is_no_denial_is_not_recorded(client: FlaskClient, database: Database) -> None:
    set_up(client, **{"Client-Token": "x"})
    set_up(client, content="")
    session = set_up(client, **{"Idempotency-Key": "k"}).json["successResponse"]["sessionId"]
    set_up(client, content="other", **{"Idempotency-Key": "k"})
    client.put(f"/srm/v1/sessions/{session}", headers={"Client-Token": issue_token("a", "phone")})
    client.get("/srm/v1/sessions", headers={"Client-Token": issue_token("unknown", "tv")})

    assert [row["error_code"] for row in denials(database)] == ["SRM-0007"]  # Content access is checked before the key.


def test_a_denial_that_lists_conflicts_is_recorded_once(client: FlaskClient, database: Database) -> None:
    set_up(client, "phone")

    client.post(
        "/srm/v1/sessions",
        json={**SETUP, "options": {"listConflicts": True}},
        headers={"Client-Token": issue_token("a", "tv")},
    )

    assert len(denials(database)) == 1


@pytest.mark.parametrize("trouble", ["DROP TABLE srm.denials", "DROP TABLE srm.denials_default, srm.denials_{month}"])
def test_the_answer_does_not_depend_on_the_record(
    make_client: Callable[..., FlaskClient], clone: Callable[[], str], outside: Callable[[str], str], trouble: str
) -> None:
    """The table of denials is gone, or its partition."""
    url = clone()
    database = Database(outside(url), application_name="srm-tests")
    Factory(database).account("a", max_sessions=0)
    ((month,),) = rows(database, "SELECT to_char(statement_timestamp() AT TIME ZONE 'UTC', 'YYYY_MM')")
    with database.transaction() as db:
        db.exec_driver_sql(trouble.format(month=month))
    database.dispose()

    answer = set_up(make_client(database_url=url))

    assert error_of(answer) == (200, "DENIED", "SRM-0006")


def test_the_answer_does_not_wait_for_the_disk(
    client: FlaskClient, database: Database, url: str, outside: Callable[[str], str]
) -> None:
    set_up(client, "phone")
    with psycopg.connect(outside(url), autocommit=True) as db:
        db.execute("ALTER TABLE srm.denials ADD COLUMN commits text DEFAULT current_setting('synchronous_commit')")

    set_up(client, "tv")

    seen = rows(database, "SELECT commits FROM srm.denials")
    with psycopg.connect(outside(url), autocommit=True) as db:
        db.execute("ALTER TABLE srm.denials DROP COLUMN commits")
    assert seen == [("off",)]


def test_other_setups_of_the_account_do_not_wait_for_the_record(
    client: FlaskClient, url: str, factory: Factory, outside: Callable[[str], str]
) -> None:
    """The account is not locked while the record is written."""
    factory.change(Account, {"account_id": "a"}, max_sessions=0)

    def look() -> bool:
        """Lock the account while the record waits for its table; fails if the account is locked."""
        with psycopg.connect(outside(url), autocommit=True) as somebody:
            wait_until(lambda: somebody.execute(WAITS_FOR_DENIALS).fetchone() == (1,))
            somebody.execute("SELECT FROM srm.accounts WHERE account_id = 'a' FOR UPDATE NOWAIT")
        return True

    with ThreadPoolExecutor(1) as threads, psycopg.connect(outside(url)) as somebody:
        somebody.execute("LOCK TABLE srm.denials IN ACCESS EXCLUSIVE MODE")
        looked = threads.submit(look)
        began_at = time.monotonic()
        answer = set_up(client)
        took = time.monotonic() - began_at

    assert looked.result()
    assert took < 1  # Other statements wait longer for a lock.
    assert error_of(answer) == (200, "DENIED", "SRM-0006")
