"""Setups that end other sessions: evicted at the limit, or replaced on the requesting device."""

from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient

from srm.db.database import Database
from srm.db.models import Account, AccountProfile, Device
from tests.support import SETUP, Factory, error_of, issue_token, rows

DEVICES = ("tv", "phone", "tablet", "laptop")


def account(factory: Factory, max_sessions: int | None = 2, **profile: str) -> None:
    """Make the account `a`, whose profile has these rules."""
    factory.account("a", *DEVICES, max_sessions=max_sessions)
    if profile:
        factory.change(AccountProfile, {"profile_id": "profile of a"}, **profile)


def set_up(client: FlaskClient, device: str) -> Any:
    return client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": issue_token("a", device)})


def admitted(client: FlaskClient, device: str) -> str:
    """Set up a session, which has to be admitted; return its id."""
    session_id: str = set_up(client, device).json["successResponse"]["sessionId"]
    return session_id


def keep_alive(client: FlaskClient, device: str, session_id: object) -> Any:
    return client.put(f"/srm/v1/sessions/{session_id}", headers={"Client-Token": issue_token("a", device)})


def message(answer: Any) -> str:
    text: str = answer.json["errorResponse"]["errorMessage"]
    return text


def active(database: Database) -> set[str]:
    """Ids of the sessions that are not ended."""
    return {str(row.session_id) for row in rows(database, "SELECT session_id FROM srm.sessions WHERE ended_at IS NULL")}


def test_evict_oldest_ends_the_oldest_session(client: FlaskClient, factory: Factory, database: Database) -> None:
    account(factory, on_limit="evict_oldest")
    first, second = admitted(client, "tv"), admitted(client, "phone")

    third = admitted(client, "tablet")

    assert active(database) == {second, third}
    assert keep_alive(client, "phone", second).status_code == 200
    answer = keep_alive(client, "tv", first)
    assert answer.status_code == 410
    assert answer.headers["SRM-End-Reason"] == "evicted"
    assert message(answer) == ("Session has ended: stopped to make room for a session on tablet of a")


def test_evict_newest_ends_the_newest_session(client: FlaskClient, factory: Factory, database: Database) -> None:
    account(factory, on_limit="evict_newest")
    first, second = admitted(client, "tv"), admitted(client, "phone")

    third = admitted(client, "tablet")

    assert active(database) == {first, third}
    assert keep_alive(client, "phone", second).headers["SRM-End-Reason"] == "evicted"


def test_a_lapsed_session_expires_instead_of_being_evicted(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    account(factory, on_limit="evict_oldest")
    first = admitted(client, "tv")
    lapsed = factory.session("a", "phone", silent_for=31)

    second = admitted(client, "tablet")

    assert active(database) == {first, second}
    assert keep_alive(client, "phone", lapsed).headers["SRM-End-Reason"] == "expired"


def test_a_lowered_limit_evicts_as_many_sessions_as_needed(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    account(factory, max_sessions=3, on_limit="evict_oldest")
    _, _, third = (admitted(client, device) for device in ("tv", "phone", "tablet"))
    factory.change(AccountProfile, {"profile_id": "profile of a"}, max_sessions=2)

    fourth = admitted(client, "laptop")

    assert active(database) == {third, fourth}


@pytest.mark.parametrize("on_limit", ["evict_oldest", "evict_newest"])
def test_a_setup_is_denied_when_no_eviction_makes_room(client: FlaskClient, factory: Factory, on_limit: str) -> None:
    account(factory, max_sessions=0, on_limit=on_limit)

    assert error_of(set_up(client, "tv"))[2] == "SRM-0006"


def test_a_setup_replaces_the_session_of_its_own_device(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    account(factory, same_device="replace")
    channels = [admitted(client, "tv") for _ in range(5)]  # The player zaps and never tears down.
    phone = admitted(client, "phone")

    assert active(database) == {channels[-1], phone}
    answer = keep_alive(client, "tv", channels[0])
    assert answer.status_code == 410
    assert answer.headers["SRM-End-Reason"] == "replaced"
    assert message(answer) == "Session has ended: replaced by a session on tv of a"


def test_sessions_of_the_requesting_device_count_by_default(client: FlaskClient, factory: Factory) -> None:
    account(factory)

    assert [("successResponse" in set_up(client, "tv").json) for _ in range(3)] == [True, True, False]


def test_a_denied_setup_ends_no_session(client: FlaskClient, factory: Factory, database: Database) -> None:
    account(factory, max_sessions=3, same_device="replace")
    sessions = {admitted(client, device) for device in ("tv", "phone", "tablet")}
    factory.change(AccountProfile, {"profile_id": "profile of a"}, max_sessions=2)

    assert error_of(set_up(client, "tv"))[2] == "SRM-0006"
    assert active(database) == sessions


def test_a_teardown_of_an_evicted_session_says_that_it_was_evicted(client: FlaskClient, factory: Factory) -> None:
    account(factory, max_sessions=1, on_limit="evict_oldest")
    first = admitted(client, "tv")
    admitted(client, "phone")

    answer = client.delete(f"/srm/v1/sessions/{first}", headers={"Client-Token": issue_token("a", "tv")})

    assert (answer.status_code, answer.headers["SRM-End-Reason"]) == (410, "evicted")


def test_an_eviction_leaves_other_accounts_alone(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("b", "tv")
    other = factory.session("b", "tv")
    account(factory, max_sessions=1, on_limit="evict_oldest", same_device="replace")
    admitted(client, "tv")
    last = admitted(client, "tv")

    assert active(database) == {str(other), last}


def test_the_message_survives_any_name_of_a_device(client: FlaskClient, factory: Factory) -> None:
    account(factory, max_sessions=1, on_limit="evict_oldest")
    factory.change(Device, {"device_id": "phone"}, name="{Fernseher} im „Wohnzimmer“ %s")
    first = admitted(client, "tv")
    admitted(client, "phone")

    assert message(keep_alive(client, "tv", first)).endswith(
        "make room for a session on {Fernseher} im „Wohnzimmer“ %s"
    )


@pytest.mark.parametrize(("of_profile", "of_account", "admits"), [(1, 3, 3), (3, 1, 1), (2, 0, 0), (None, 2, 2)])
def test_the_limit_of_an_account_overrides_the_limit_of_its_profile(
    client: FlaskClient, factory: Factory, database: Database, of_profile: int | None, of_account: int, admits: int
) -> None:
    account(factory, max_sessions=of_profile)
    factory.change(Account, {"account_id": "a"}, max_sessions=of_account)

    answers = [set_up(client, device) for device in DEVICES]

    assert ["successResponse" in answer.json for answer in answers] == [n < admits for n in range(len(DEVICES))]
    (usage,) = rows(database, "SELECT max_sessions FROM srm.account_usage")
    assert usage.max_sessions == of_account
    kept = {row.max_sessions for row in rows(database, "SELECT max_sessions FROM srm.sessions")}
    assert kept <= {of_account}


def test_the_row_says_why_and_for_whom_a_session_ended(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    account(factory, max_sessions=1, on_limit="evict_oldest")
    first = UUID(admitted(client, "tv"))
    admitted(client, "phone")

    (session,) = rows(database, "SELECT end_reason, ended_by FROM srm.sessions WHERE session_id = :id", id=first)
    assert (session.end_reason, session.ended_by) == ("evicted", "phone of a")
