"""Sessions in the way of a setup: listed on request, and taken over."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient

from srm.db.database import Database
from srm.db.models import Account, AccountProfile, Device
from tests.support import SETUP, Factory, error_of, issue_token, rows


@pytest.fixture(autouse=True)
def account(factory: Factory) -> None:
    factory.account("a", "tv", "phone", "tablet", max_sessions=2)
    factory.account("b", "tv")


def ask(client: FlaskClient, device: str = "tv", account: str = "a", **options: Any) -> Any:
    body = {**SETUP, "options": options} if options else SETUP
    return client.post("/srm/v1/sessions", json=body, headers={"Client-Token": issue_token(account, device)})


def admitted(client: FlaskClient, device: str = "tv", **options: Any) -> str:
    session_id: str = ask(client, device, **options).json["successResponse"]["sessionId"]
    return session_id


def listed(client: FlaskClient, device: str = "tv", account: str = "a") -> Any:
    answer = client.get("/srm/v1/sessions", headers={"Client-Token": issue_token(account, device)})
    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    return answer.get_json()["successResponse"]["sessions"]


def keep_alive(client: FlaskClient, device: str, session_id: str) -> Any:
    return client.put(f"/srm/v1/sessions/{session_id}", headers={"Client-Token": issue_token("a", device)})


class TestListSessions:
    def test_the_list_has_the_sessions_of_all_devices_the_oldest_first(
        self, client: FlaskClient, factory: Factory
    ) -> None:
        first, second = admitted(client, "tv"), admitted(client, "phone")
        factory.session("b", "tv")

        sessions = listed(client, "tablet")

        assert [session["sessionId"] for session in sessions] == [first, second]
        started_at = datetime.fromisoformat(sessions[1].pop("startedAt"))
        assert abs(datetime.now(UTC) - started_at) < timedelta(minutes=1)
        assert sessions[1] == {
            "sessionId": second,
            "deviceName": "phone of a",
            "contentID": "film",
            "contentType": "COD",
        }

    def test_the_list_has_no_ended_or_lapsed_sessions(self, client: FlaskClient, factory: Factory) -> None:
        factory.session("a", "tv", silent_for=31)
        torn_down = admitted(client, "phone")
        client.delete(f"/srm/v1/sessions/{torn_down}", headers={"Client-Token": issue_token("a", "phone")})

        assert listed(client) == []

    def test_the_list_has_sessions_whose_device_is_gone(self, client: FlaskClient, factory: Factory) -> None:
        factory.session("a", "sold")

        assert [session["deviceName"] for session in listed(client)] == ["sold"]

    def test_the_list_has_sessions_without_keep_alive(self, client: FlaskClient, factory: Factory) -> None:
        factory.session("a", "tv", silent_for=100_000, timeout_seconds=None)

        assert len(listed(client)) == 1

    def test_the_list_needs_a_token(self, client: FlaskClient) -> None:
        assert error_of(client.get("/srm/v1/sessions"))[2] == "SRM-0002"
        assert error_of(client.get("/srm/v1/sessions", headers={"Client-Token": "x"}))[2] == "SRM-0003"

    @pytest.mark.parametrize(
        ("model", "where", "code"),
        [(Account, {"account_id": "a"}, "SRM-0004"), (Device, {"account_id": "a", "device_id": "tv"}, "SRM-0005")],
    )
    def test_a_disabled_account_or_device_gets_no_list(
        self, client: FlaskClient, factory: Factory, model: type, where: dict[str, Any], code: str
    ) -> None:
        factory.change(model, where, enabled=False)

        answer = client.get("/srm/v1/sessions", headers={"Client-Token": issue_token("a", "tv")})

        assert error_of(answer) == (200, "DENIED", code)

    @pytest.mark.parametrize(("who", "code"), [(("?", "tv"), "SRM-0004"), (("a", "?"), "SRM-0005")])
    def test_an_unknown_account_or_device_gets_no_list(
        self, client: FlaskClient, who: tuple[str, str], code: str
    ) -> None:
        answer = client.get("/srm/v1/sessions", headers={"Client-Token": issue_token(*who)})

        assert error_of(answer) == (200, "DENIED", code)

    def test_head_is_answered_without_a_body(self, client: FlaskClient) -> None:
        answer = client.head("/srm/v1/sessions", headers={"Client-Token": issue_token("a", "tv")})

        assert (answer.status_code, answer.data) == (200, b"")


class TestListConflicts:
    def test_a_denial_names_the_rule_and_the_sessions_in_the_way(self, client: FlaskClient) -> None:
        first, second = admitted(client, "tv"), admitted(client, "phone")

        error = ask(client, "tablet", listConflicts=True).json["errorResponse"]

        assert error["errorCode"] == "SRM-0006"
        assert error["rule"] == {"name": "max_sessions", "limit": 2}
        assert [session["sessionId"] for session in error["conflicts"]] == [first, second]
        assert error["conflicts"] == listed(client)

    @pytest.mark.parametrize("options", [{}, {"listConflicts": False}])
    def test_without_the_option_a_denial_names_no_sessions(self, client: FlaskClient, options: dict[str, Any]) -> None:
        admitted(client, "tv")
        admitted(client, "phone")

        assert error_of(ask(client, "tablet", **options)) == (200, "DENIED", "SRM-0006")

    def test_no_session_is_in_the_way_when_no_end_makes_room(self, client: FlaskClient, factory: Factory) -> None:
        factory.session("a", "tv")
        factory.change(AccountProfile, {"profile_id": "profile of a"}, max_sessions=0)

        error = ask(client, "tablet", listConflicts=True).json["errorResponse"]

        assert (error["rule"]["limit"], error["conflicts"]) == (0, [])

    def test_sessions_that_the_setup_would_replace_are_not_in_the_way(
        self, client: FlaskClient, factory: Factory
    ) -> None:
        own = admitted(client, "tv")
        others = [factory.session("a", "phone"), factory.session("a", "tablet")]
        factory.change(AccountProfile, {"profile_id": "profile of a"}, same_device="replace")

        error = ask(client, "tv", listConflicts=True).json["errorResponse"]

        assert {session["sessionId"] for session in error["conflicts"]} == set(map(str, others))
        assert keep_alive(client, "tv", own).status_code == 200

    def test_the_option_does_not_change_an_admission(self, client: FlaskClient) -> None:
        assert set(ask(client, "tv", listConflicts=True).json["successResponse"]) == {"sessionId", "timeout"}

    def test_the_option_does_not_change_other_denials(self, client: FlaskClient) -> None:
        assert error_of(ask(client, "?", listConflicts=True)) == (200, "DENIED", "SRM-0005")


class TestTakeOver:
    def test_a_setup_takes_over_the_place_of_a_session(self, client: FlaskClient, database: Database) -> None:
        first, second = admitted(client, "tv"), admitted(client, "phone")

        third = admitted(client, "tablet", takeOver=[first])

        assert {session["sessionId"] for session in listed(client)} == {second, third}
        answer = keep_alive(client, "tv", first)
        assert (answer.status_code, answer.headers["SRM-End-Reason"]) == (410, "replaced")
        assert answer.json["errorResponse"]["errorMessage"].endswith("replaced by a session on tablet of a")

    def test_a_setup_takes_over_the_places_of_several_sessions(self, client: FlaskClient) -> None:
        first, second = admitted(client, "tv"), admitted(client, "phone")

        third = admitted(client, "tablet", takeOver=[first, second.upper(), first])

        assert [session["sessionId"] for session in listed(client)] == [third]

    def test_a_session_that_is_gone_does_not_hinder_a_take_over(self, client: FlaskClient, factory: Factory) -> None:
        gone = admitted(client, "tv")
        client.delete(f"/srm/v1/sessions/{gone}", headers={"Client-Token": issue_token("a", "tv")})
        lapsed = factory.session("a", "phone", silent_for=31)

        third = admitted(client, "tablet", takeOver=[gone, str(lapsed), str(uuid4())])

        assert [session["sessionId"] for session in listed(client)] == [third]
        assert keep_alive(client, "phone", str(lapsed)).headers["SRM-End-Reason"] == "expired"

    def test_a_denied_setup_takes_over_nothing(self, client: FlaskClient, factory: Factory) -> None:
        first = admitted(client, "tv")
        factory.session("a", "phone")
        factory.change(AccountProfile, {"profile_id": "profile of a"}, max_sessions=1)

        assert error_of(ask(client, "tablet", takeOver=[first]))[2] == "SRM-0006"
        assert len(listed(client)) == 2

    def test_a_setup_takes_over_no_session_of_another_account(
        self, client: FlaskClient, factory: Factory, database: Database
    ) -> None:
        other = factory.session("b", "tv")

        admitted(client, "tv", takeOver=[str(other)])

        assert rows(database, "SELECT FROM srm.sessions WHERE ended_at IS NOT NULL") == []

    def test_a_take_over_ends_the_session_even_when_there_is_room(self, client: FlaskClient, factory: Factory) -> None:
        factory.change(AccountProfile, {"profile_id": "profile of a"}, max_sessions=None)
        first = admitted(client, "tv")

        second = admitted(client, "phone", takeOver=[first])

        assert [session["sessionId"] for session in listed(client)] == [second]


@pytest.mark.parametrize(
    "options",
    [
        None,
        [],
        "x",
        {"listConflicts": 1},
        {"listConflicts": "true"},
        {"listConflicts": None},
        {"takeOver": None},
        {"takeOver": "3c7a2f4e-52c5-4a4b-9f3e-0d7a5f8b9c11"},
        {"takeOver": ["x"]},
        {"takeOver": [1]},
        {"takeOver": [None]},
        {"takeOver": [str(uuid4()) for _ in range(101)]},
    ],
)
def test_malformed_options_are_rejected(client: FlaskClient, database: Database, options: Any) -> None:
    answer = client.post(
        "/srm/v1/sessions", json={**SETUP, "options": options}, headers={"Client-Token": issue_token("a", "tv")}
    )

    assert error_of(answer) == (400, "ERROR", "SRM-0002")
    assert rows(database, "SELECT FROM srm.sessions") == []


def test_unknown_options_are_ignored(client: FlaskClient) -> None:
    assert admitted(client, "tv", later=True)
