"""Which sessions are in the way, and to take their place."""

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
    def test_it_lists_those_of_all_devices_the_oldest_first(self, client: FlaskClient, factory: Factory) -> None:
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

    def test_it_lists_nothing_that_has_ended_or_lapsed(self, client: FlaskClient, factory: Factory) -> None:
        factory.session("a", "tv", silent_for=31)
        torn_down = admitted(client, "phone")
        client.delete(f"/srm/v1/sessions/{torn_down}", headers={"Client-Token": issue_token("a", "phone")})

        assert listed(client) == []

    def test_it_lists_a_session_whose_device_is_gone(self, client: FlaskClient, factory: Factory) -> None:
        factory.session("a", "sold")

        assert [session["deviceName"] for session in listed(client)] == ["sold"]

    def test_it_lists_sessions_without_keep_alive(self, client: FlaskClient, factory: Factory) -> None:
        factory.session("a", "tv", silent_for=100_000, timeout_seconds=None)

        assert len(listed(client)) == 1

    def test_it_takes_a_token(self, client: FlaskClient) -> None:
        assert error_of(client.get("/srm/v1/sessions"))[2] == "SRM-0002"
        assert error_of(client.get("/srm/v1/sessions", headers={"Client-Token": "x"}))[2] == "SRM-0003"

    @pytest.mark.parametrize(
        ("model", "where", "code"),
        [(Account, {"account_id": "a"}, "SRM-0004"), (Device, {"account_id": "a", "device_id": "tv"}, "SRM-0005")],
    )
    def test_it_refuses_who_is_not_enabled(
        self, client: FlaskClient, factory: Factory, model: type, where: dict[str, Any], code: str
    ) -> None:
        factory.change(model, where, enabled=False)

        answer = client.get("/srm/v1/sessions", headers={"Client-Token": issue_token("a", "tv")})

        assert error_of(answer) == (200, "DENIED", code)

    @pytest.mark.parametrize(("who", "code"), [(("?", "tv"), "SRM-0004"), (("a", "?"), "SRM-0005")])
    def test_it_refuses_who_is_unknown(self, client: FlaskClient, who: tuple[str, str], code: str) -> None:
        answer = client.get("/srm/v1/sessions", headers={"Client-Token": issue_token(*who)})

        assert error_of(answer) == (200, "DENIED", code)

    def test_it_answers_head_without_a_body(self, client: FlaskClient) -> None:
        answer = client.head("/srm/v1/sessions", headers={"Client-Token": issue_token("a", "tv")})

        assert (answer.status_code, answer.data) == (200, b"")


class TestListConflicts:
    def test_it_names_the_rule_and_the_sessions_in_the_way(self, client: FlaskClient) -> None:
        first, second = admitted(client, "tv"), admitted(client, "phone")

        error = ask(client, "tablet", listConflicts=True).json["errorResponse"]

        assert error["errorCode"] == "SRM-0006"
        assert error["rule"] == {"name": "max_sessions", "limit": 2}
        assert [session["sessionId"] for session in error["conflicts"]] == [first, second]
        assert error["conflicts"] == listed(client)

    @pytest.mark.parametrize("options", [{}, {"listConflicts": False}])
    def test_who_does_not_ask_sees_no_difference(self, client: FlaskClient, options: dict[str, Any]) -> None:
        admitted(client, "tv")
        admitted(client, "phone")

        assert error_of(ask(client, "tablet", **options)) == (200, "DENIED", "SRM-0006")

    def test_nothing_is_in_the_way_where_nothing_would_make_room(self, client: FlaskClient, factory: Factory) -> None:
        factory.session("a", "tv")
        factory.change(AccountProfile, {"profile_id": "profile of a"}, max_sessions=0)

        error = ask(client, "tablet", listConflicts=True).json["errorResponse"]

        assert (error["rule"]["limit"], error["conflicts"]) == (0, [])

    def test_it_does_not_name_what_the_setup_would_end_anyway(self, client: FlaskClient, factory: Factory) -> None:
        own = admitted(client, "tv")
        others = [factory.session("a", "phone"), factory.session("a", "tablet")]
        factory.change(AccountProfile, {"profile_id": "profile of a"}, same_device="replace")

        error = ask(client, "tv", listConflicts=True).json["errorResponse"]

        assert {session["sessionId"] for session in error["conflicts"]} == set(map(str, others))
        assert keep_alive(client, "tv", own).status_code == 200

    def test_an_admission_is_the_same(self, client: FlaskClient) -> None:
        assert set(ask(client, "tv", listConflicts=True).json["successResponse"]) == {"sessionId", "timeout"}

    def test_other_refusals_are_the_same(self, client: FlaskClient) -> None:
        assert error_of(ask(client, "?", listConflicts=True)) == (200, "DENIED", "SRM-0005")


class TestTakeOver:
    def test_it_takes_the_place_of_a_session(self, client: FlaskClient, database: Database) -> None:
        first, second = admitted(client, "tv"), admitted(client, "phone")

        third = admitted(client, "tablet", takeOver=[first])

        assert {session["sessionId"] for session in listed(client)} == {second, third}
        answer = keep_alive(client, "tv", first)
        assert (answer.status_code, answer.headers["SRM-End-Reason"]) == (410, "replaced")
        assert answer.json["errorResponse"]["errorMessage"].endswith("replaced by a session on tablet of a")

    def test_it_takes_the_place_of_several(self, client: FlaskClient) -> None:
        first, second = admitted(client, "tv"), admitted(client, "phone")

        third = admitted(client, "tablet", takeOver=[first, second.upper(), first])

        assert [session["sessionId"] for session in listed(client)] == [third]

    def test_it_does_no_harm_that_one_is_gone(self, client: FlaskClient, factory: Factory) -> None:
        gone = admitted(client, "tv")
        client.delete(f"/srm/v1/sessions/{gone}", headers={"Client-Token": issue_token("a", "tv")})
        lapsed = factory.session("a", "phone", silent_for=31)

        third = admitted(client, "tablet", takeOver=[gone, str(lapsed), str(uuid4())])

        assert [session["sessionId"] for session in listed(client)] == [third]
        assert keep_alive(client, "phone", str(lapsed)).headers["SRM-End-Reason"] == "expired"

    def test_it_ends_nothing_when_it_is_refused(self, client: FlaskClient, factory: Factory) -> None:
        first = admitted(client, "tv")
        factory.session("a", "phone")
        factory.change(AccountProfile, {"profile_id": "profile of a"}, max_sessions=1)

        assert error_of(ask(client, "tablet", takeOver=[first]))[2] == "SRM-0006"
        assert len(listed(client)) == 2

    def test_it_touches_no_other_account(self, client: FlaskClient, factory: Factory, database: Database) -> None:
        other = factory.session("b", "tv")

        admitted(client, "tv", takeOver=[str(other)])

        assert rows(database, "SELECT FROM srm.sessions WHERE ended_at IS NOT NULL") == []

    def test_it_ends_a_session_where_there_is_room_too(self, client: FlaskClient, factory: Factory) -> None:
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
def test_options_that_are_not_right_are_malformed(client: FlaskClient, database: Database, options: Any) -> None:
    answer = client.post(
        "/srm/v1/sessions", json={**SETUP, "options": options}, headers={"Client-Token": issue_token("a", "tv")}
    )

    assert error_of(answer) == (400, "ERROR", "SRM-0002")
    assert rows(database, "SELECT FROM srm.sessions") == []


def test_options_that_are_unknown_are_ignored(client: FlaskClient) -> None:
    assert admitted(client, "tv", later=True)
