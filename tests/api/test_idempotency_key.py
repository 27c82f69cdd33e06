"""Idempotency-Key: a repeated setup, whose answer got lost, takes no second slot."""

from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient

from srm.db.connection import Cursor
from srm.db.database import Database
from srm.db.models import Account, AccountProfile, Device
from srm.playback import setup
from srm.playback.keep_alive import keep_alive
from srm.playback.model import Admission, ContentRef, Principal
from srm.playback.setup import SetupRequest
from srm.playback.teardown import tear_down
from tests.support import SETUP, Factory, error_of, issue_token, rows

OTHER_CONTENT = {"content": {"contentID": "film", "contentType": "NPVR"}}


def set_up(client: FlaskClient, key: str | None, device: str = "tv", account: str = "a", body: Any = SETUP) -> Any:
    headers = {"Client-Token": issue_token(account, device)}
    if key is not None:
        headers["Idempotency-Key"] = key
    return client.post("/srm/v1/sessions", json=body, headers=headers)


def admitted(client: FlaskClient, key: str | None, device: str = "tv", account: str = "a") -> str:
    session_id: str = set_up(client, key, device, account).json["successResponse"]["sessionId"]
    return session_id


def count(database: Database) -> int:
    return len(rows(database, "SELECT FROM srm.sessions"))


@pytest.fixture(autouse=True)
def account(factory: Factory) -> None:
    factory.account("a", "tv", "phone", max_sessions=2)


def test_a_repeat_gets_the_session_of_the_first_setup(client: FlaskClient, database: Database) -> None:
    first, *repeats = (set_up(client, "key") for _ in range(4))

    assert [(answer.status_code, answer.json) for answer in repeats] == [(200, first.json)] * 3
    assert count(database) == 1


def test_a_repeat_at_the_limit_gets_its_session_and_is_not_denied(client: FlaskClient, factory: Factory) -> None:
    factory.session("a", "phone")
    first = admitted(client, "key")

    assert admitted(client, "key") == first
    assert error_of(set_up(client, "other"))[2] == "SRM-0006"


def test_a_repeat_replaces_and_evicts_nothing(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.change(AccountProfile, {"profile_id": "profile of a"}, same_device="replace", on_limit="evict_oldest")
    factory.session("a", "phone")
    first = admitted(client, "key")

    assert admitted(client, "key") == first
    assert rows(database, "SELECT FROM srm.sessions WHERE ended_at IS NOT NULL") == []


def test_a_repeat_restarts_the_timeout(client: FlaskClient, factory: Factory, database: Database) -> None:
    first = admitted(client, "key")
    factory.age(first, 20)

    assert admitted(client, "key") == first
    (session,) = rows(
        database, "SELECT statement_timestamp() - last_keep_alive_at < interval '10 s' AS fresh FROM srm.sessions"
    )
    assert session.fresh


def test_a_repeat_answers_with_the_timeout_of_the_session(client: FlaskClient, factory: Factory) -> None:
    first = set_up(client, "key").json
    factory.change(AccountProfile, {"profile_id": "profile of a"}, timeout_seconds=77)

    assert set_up(client, "key").json == first


def test_without_a_key_every_setup_makes_a_session(client: FlaskClient, database: Database) -> None:
    assert admitted(client, None) != admitted(client, None)


@pytest.mark.parametrize("silent_for", [31, 10_000])
def test_the_key_of_a_lapsed_session_may_be_used_again(client: FlaskClient, factory: Factory, silent_for: int) -> None:
    first = admitted(client, "key")
    factory.age(first, silent_for)

    second = admitted(client, "key")

    assert second != first
    assert admitted(client, "key") == second


def test_the_key_of_a_torn_down_session_may_be_used_again(client: FlaskClient) -> None:
    first = admitted(client, "key")
    client.delete(f"/srm/v1/sessions/{first}", headers={"Client-Token": issue_token("a", "tv")})

    assert admitted(client, "key") != first


def test_a_repeat_whose_session_ends_meanwhile_gets_a_new_session(
    client: FlaskClient, factory: Factory, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session ends between the list and the keep-alive of the repeat; then the repeat starts again."""
    first = UUID(admitted(client, "key"))
    lapsed = factory.session("a", "phone", silent_for=60)

    def tear_down_first(db: Cursor, principal: Principal, session_id: UUID) -> bool:
        monkeypatch.undo()
        assert session_id == first
        assert tear_down(db, principal, session_id)
        return keep_alive(db, principal, session_id)

    monkeypatch.setattr(setup, "keep_alive", tear_down_first)
    with database.request() as db:
        request = SetupRequest(Principal("a", "tv"), ContentRef("COD", "film"), idempotency_key="key")
        result = setup.set_up(db, request)

    assert isinstance(result.outcome, Admission)
    assert result.outcome.session_id != first
    assert [(session.session_id, session.end_reason) for session in result.ended] == [(lapsed, "expired")]
    assert admitted(client, "key") == str(result.outcome.session_id)


def test_devices_may_use_the_same_key_for_different_sessions(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("b", "tv")

    ids = {admitted(client, "key", device, account) for account, device in (("a", "tv"), ("a", "phone"), ("b", "tv"))}

    assert len(ids) == 3


def test_a_key_used_for_another_content_is_rejected(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.product("recordings", ("NPVR", "film"))
    factory.entitlement("a", "recordings")
    first = admitted(client, "key")

    answer = set_up(client, "key", body=OTHER_CONTENT)

    assert error_of(answer) == (400, "ERROR", "SRM-0002")
    assert "Idempotency-Key" in answer.json["errorResponse"]["errorMessage"]
    assert count(database) == 1
    assert admitted(client, "key") == first


def test_a_repeat_from_a_disabled_account_or_device_is_denied(client: FlaskClient, factory: Factory) -> None:
    admitted(client, "key")

    factory.change(Device, {"account_id": "a", "device_id": "tv"}, enabled=False)
    assert error_of(set_up(client, "key"))[2] == "SRM-0005"
    factory.change(Account, {"account_id": "a"}, enabled=False)
    assert error_of(set_up(client, "key"))[2] == "SRM-0004"


@pytest.mark.parametrize("key", ["", " ", "two words", "x" * 256, "é", "\x7f", "tab\t.", "x" * 5000])
def test_an_invisible_or_too_long_key_is_rejected(client: FlaskClient, database: Database, key: str) -> None:
    answer = client.post(
        "/srm/v1/sessions",
        json=SETUP,
        headers={"Client-Token": issue_token("a", "tv")},
        environ_overrides={"HTTP_IDEMPOTENCY_KEY": key},
    )

    assert error_of(answer) == (400, "ERROR", "SRM-0002")
    assert count(database) == 0


@pytest.mark.parametrize("key", ["x", '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "!~%s{}'", "x" * 255])
def test_a_key_may_have_any_visible_characters(client: FlaskClient, key: str) -> None:
    assert admitted(client, key) == admitted(client, key)


def test_the_key_is_checked_before_the_token(client: FlaskClient) -> None:
    answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": "x", "Idempotency-Key": " "})

    assert error_of(answer) == (400, "ERROR", "SRM-0002")
