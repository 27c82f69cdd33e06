"""Sessions and denials in the operator API; the sessions that end when an account or device is disabled."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from flask.testing import FlaskClient

from srm.db.database import Database
from srm.reaper.runner import Reaper
from tests.support import SETUP, Admin, Factory, error_of, issue_token, rows, session_row

MALFORMED = (400, "ERROR", "SRM-0002")
NOT_FOUND = (404, "ERROR", "SRM-0011")


@pytest.fixture
def care(client: FlaskClient, factory: Factory) -> Admin:
    return Admin(client, factory.operator("care"))


@pytest.fixture
def admin(client: FlaskClient, factory: Factory) -> Admin:
    return Admin(client, factory.operator("admin"))


def set_up(client: FlaskClient, account: str = "a", device: str = "tv", content: str = "film") -> str:
    body = {"content": {"contentID": content, "contentType": "COD"}}
    answer = client.post("/srm/v1/sessions", json=body, headers={"Client-Token": issue_token(account, device)})
    id_: str = answer.get_json()["successResponse"]["sessionId"]
    return id_


def keep_alive(client: FlaskClient, session: str, account: str = "a", device: str = "tv") -> tuple[int, str | None]:
    """HTTP status of a keep-alive, and the end reason if the session has ended."""
    answer = client.put(f"/srm/v1/sessions/{session}", headers={"Client-Token": issue_token(account, device)})
    return answer.status_code, answer.headers.get("SRM-End-Reason")


def session_ids(found: Any) -> list[str]:
    return [each["sessionId"] for each in found["sessions"]]


def test_active_and_ended_sessions_of_an_account_are_listed(care: Admin, client: FlaskClient, factory: Factory) -> None:
    factory.account("a", "tv", "phone", max_sessions=None)
    factory.account("b")
    set_up(client, "b")
    first, second, third = set_up(client), set_up(client, device="phone"), set_up(client)
    client.delete(f"/srm/v1/sessions/{second}", headers={"Client-Token": issue_token("a", "phone")})
    factory.age(third, 31, "last_keep_alive_at")  # lapsed, and not ended by a reaper

    active, ended = care.get("accounts/a/sessions"), care.get("accounts/a/sessions?state=ended")

    assert session_ids(active) == [first]
    assert active == care.get("accounts/a/sessions?state=active")
    assert session_ids(ended) == [third, second]
    assert session_ids(care.get("accounts/a/sessions?state=all")) == [third, second, first]
    assert [each["endReason"] for each in ended["sessions"]] == ["expired", "teardown"]
    assert ended["sessions"][0]["endedAt"] > ended["sessions"][0]["lastKeepAliveAt"]
    (seen,) = active["sessions"]
    assert {name: value for name, value in seen.items() if not name.endswith("At")} == {
        "accountId": "a",
        "sessionId": first,
        "deviceId": "tv",
        "deviceGroup": "tv",
        "contentType": "COD",
        "contentID": "film",
        "address": "127.0.0.1",
        "timeoutSeconds": 30,
        "endReason": None,
        "endedBy": None,
    }
    assert seen["endedAt"] is None


def test_sessions_and_history_of_an_account_are_listed_page_by_page(
    care: Admin, client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("a", max_sessions=None)
    sessions = [set_up(client) for _ in range(7)]
    for session in sessions[:4]:
        client.delete(f"/srm/v1/sessions/{session}", headers={"Client-Token": issue_token("a", "tv")})
    Reaper(database, ended_retention_seconds=0, history_retention_days=90).archive()
    assert len(rows(database, "SELECT 1 FROM srm.session_history")) == 4

    for state, expected in {"all": sessions, "ended": sessions[:4], "active": sessions[4:]}.items():
        seen: list[str] = []
        path = f"accounts/a/sessions?state={state}&limit=2"
        while path:
            page = care.get(path)
            assert len(page["sessions"]) <= 2
            seen += session_ids(page)
            assert len(seen) <= len(expected)
            path = f"accounts/a/sessions?state={state}&limit=2&after={page['next']}" if "next" in page else ""
        assert seen == expected[::-1]


def test_a_deleted_account_still_has_its_history(
    care: Admin, admin: Admin, client: FlaskClient, factory: Factory
) -> None:
    factory.account("a")
    session = set_up(client)
    admin("DELETE", "accounts/a")

    assert session_ids(care.get("accounts/a/sessions?state=all")) == [session]
    assert error_of(care("GET", "accounts/nobody/sessions")) == NOT_FOUND
    assert error_of(care("GET", "accounts/nobody/denials")) == NOT_FOUND
    for method, path in (("DELETE", "sessions"), ("DELETE", f"sessions/{session}"), ("DELETE", "devices/tv/sessions")):
        assert error_of(care(method, f"accounts/nobody/{path}")) == NOT_FOUND


def test_denials_of_an_account_are_listed_with_rule_and_conflicting_sessions(
    care: Admin, client: FlaskClient, factory: Factory
) -> None:
    factory.account("a", max_sessions=1)
    session = set_up(client)
    for content in ("film", "nothing", "film"):
        body = {"content": {"contentID": content, "contentType": "COD"}}
        client.post("/srm/v1/sessions", json=body, headers={"Client-Token": issue_token("a", "tv")})

    first = care.get("accounts/a/denials?limit=2")
    rest = care.get(f"accounts/a/denials?limit=2&after={first['next']}")

    denials = first["denials"] + rest["denials"]
    assert "next" not in rest
    assert [(each["errorCode"], each["rule"], each["ruleLimit"], each["inTheWay"]) for each in denials] == [
        ("SRM-0006", "max_sessions", 1, [session]),
        ("SRM-0007", None, None, None),
        ("SRM-0006", "max_sessions", 1, [session]),
    ]
    assert denials[1]["contentID"] == "nothing"
    assert care.get("accounts/a/denials?limit=3") == {"denials": denials}


def test_an_operator_ends_one_session_those_of_a_device_or_all_of_an_account(
    care: Admin, client: FlaskClient, factory: Factory
) -> None:
    factory.account("a", "tv", "phone", max_sessions=None)
    factory.account("b")
    other, one, two, three, four = (
        set_up(client, "b"),
        set_up(client),
        set_up(client),
        set_up(client, device="phone"),
        set_up(client),
    )

    assert care("DELETE", f"accounts/a/sessions/{one}").get_json() == {"ended": 1}
    assert keep_alive(client, one) == (410, "operator")
    assert care("DELETE", f"accounts/a/sessions/{one}").get_json() == {"ended": 0}
    assert care("DELETE", "accounts/a/devices/phone/sessions").get_json() == {"ended": 1}
    assert keep_alive(client, three, device="phone") == (410, "operator")
    assert keep_alive(client, two) == keep_alive(client, four) == (200, None)
    assert care("DELETE", "accounts/a/sessions").get_json() == {"ended": 2}
    assert keep_alive(client, two) == keep_alive(client, four) == (410, "operator")
    assert care("DELETE", "accounts/a/sessions").get_json() == {"ended": 0}
    assert keep_alive(client, other, "b") == (200, None)
    assert (
        "successResponse"
        in client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": issue_token("a", "tv")}).get_json()
    ), "the account is still enabled"


def test_no_session_of_another_account_is_ended(care: Admin, client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    factory.account("b")
    session = set_up(client, "b")

    for unknown in (session, str(uuid4())):
        assert error_of(care("DELETE", f"accounts/a/sessions/{unknown}")) == (404, "ERROR", "SRM-0008")
    assert error_of(care("DELETE", "accounts/a/sessions/1")) == MALFORMED
    assert error_of(care("DELETE", "accounts/a/devices/misspelt/sessions")) == NOT_FOUND
    assert care("DELETE", "accounts/a/devices/tv/sessions").get_json() == {"ended": 0}
    assert keep_alive(client, session, "b") == (200, None)


def test_ending_a_lapsed_session_records_it_as_expired(
    care: Admin, client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("a")
    session = set_up(client)
    factory.age(session, 40)

    assert care("DELETE", "accounts/a/sessions").get_json() == {"ended": 0}

    row = session_row(database, session)
    assert row.end_reason == "expired"
    assert (row.ended_at - row.last_keep_alive_at).total_seconds() == 30
    assert rows(database, "SELECT 1 FROM srm.operator_audit WHERE action = 'end'") == []


@pytest.mark.parametrize(
    ("method", "path", "body", "reason"),
    [
        ("PATCH", "accounts/a", {"enabled": False}, "account_disabled"),
        ("PUT", "accounts/a", {"profileId": "profile of a", "enabled": False}, "account_disabled"),
        ("DELETE", "accounts/a", None, "account_disabled"),
        ("PATCH", "accounts/a/devices/tv", {"enabled": False}, "device_disabled"),
        ("PUT", "accounts/a/devices/tv", {"deviceGroup": "tv", "name": "TV", "enabled": False}, "device_disabled"),
        ("DELETE", "accounts/a/devices/tv", None, "device_disabled"),
    ],
)
def test_disabling_or_deleting_an_account_or_device_ends_its_sessions(
    admin: Admin, client: FlaskClient, factory: Factory, method: str, path: str, body: Any, reason: str
) -> None:
    factory.account("a", "tv", "phone", max_sessions=None)
    factory.account("b")
    of_tv, of_phone, of_other = set_up(client), set_up(client, device="phone"), set_up(client, "b")

    assert admin(method, path, body).status_code in (200, 204)

    assert keep_alive(client, of_tv) == (410, reason)
    expected = (410, reason) if reason == "account_disabled" else (200, None)
    assert keep_alive(client, of_phone, device="phone") == expected
    assert keep_alive(client, of_other, "b") == (200, None)
    denied = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": issue_token("a", "tv")})
    assert error_of(denied)[2] == ("SRM-0004" if reason == "account_disabled" else "SRM-0005")
    ended = [each for each in admin.get("operator/audit?accountId=a")["changes"] if each["action"] == "end"]
    both = {of_tv, of_phone} if reason == "account_disabled" else {of_tv}
    assert {each["resource"] for each in ended} == {f"accounts/a/sessions/{session}" for session in both}
    assert {each["operator"] for each in ended} == {"admin"}
    assert {each["after"]["endReason"] for each in ended} == {reason}
    assert ended[0]["before"]["contentID"] == "film"


def test_changes_that_disable_nothing_end_no_session(admin: Admin, client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    session = set_up(client)

    admin("PATCH", "accounts/a", {"maxSessions": 0})
    admin("PATCH", "accounts/a/devices/tv", {"name": "x"})
    admin("PATCH", "profiles/profile of a", {"maxSessions": 0})

    assert keep_alive(client, session) == (200, None)


def test_deleting_an_entitlement_ends_no_session(admin: Admin, client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    session = set_up(client)

    assert admin("DELETE", "accounts/a/entitlements/basic").status_code == 204

    assert keep_alive(client, session) == (200, None)


def test_deleting_an_entitlement_with_end_sessions_ends_what_no_other_entitlement_allows(
    admin: Admin, client: FlaskClient, factory: Factory
) -> None:
    for content in ("race", "match"):
        factory.content(content)
    factory.product("sports", ("COD", "race"), ("COD", "match"))
    factory.product("races", ("COD", "race"))
    factory.account("a", max_sessions=None, products=("basic", "sports", "races"))
    film, race, match = (set_up(client, content=content) for content in ("film", "race", "match"))
    assert error_of(admin("DELETE", "accounts/a/entitlements/sports?endSessions=yes")) == MALFORMED

    assert admin("DELETE", "accounts/a/entitlements/sports?endSessions=true").status_code == 204

    assert keep_alive(client, match) == (410, "operator")
    assert keep_alive(client, race) == keep_alive(client, film) == (200, None)


def test_deleting_an_entitlement_to_a_channel_with_end_sessions_ends_its_events_too(
    admin: Admin, client: FlaskClient, factory: Factory
) -> None:
    factory.content("channel")
    factory.content("event", "channel")
    factory.product("sports", ("CU", "channel"))
    factory.account("a", products=("sports",))
    session = factory.session("a", content_type="CU", content_id="event")

    admin("DELETE", "accounts/a/entitlements/sports?endSessions=true")

    assert keep_alive(client, str(session)) == (410, "operator")


def make_sessions(factory: Factory) -> dict[str, UUID]:
    """Make sessions of several accounts; return their ids by name."""
    return {
        "old live": factory.session("a", silent_for=20, content_type="LIVE", content_id="news", device_group="tv"),
        "live": factory.session("b", content_type="LIVE", content_id="news", device_group="mobile"),
        "film": factory.session("c", content_id="film", device_group="mobile"),
        "lapsed": factory.session("d", silent_for=31, content_type="LIVE", content_id="news"),
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"old live", "live", "film"}),
        ("contentID=news", {"old live", "live"}),
        ("contentType=COD", {"film"}),
        ("deviceGroup=mobile", {"live", "film"}),
        ("contentType=LIVE&deviceGroup=mobile", {"live"}),
        ("contentID=nothing", set()),
    ],
)
def test_active_sessions_of_all_accounts_are_listed_and_counted_by_filter(
    care: Admin, factory: Factory, query: str, expected: set[str]
) -> None:
    made = make_sessions(factory)

    assert set(session_ids(care.get(f"operator/sessions?{query}"))) == {str(made[name]) for name in expected}
    assert care.get(f"operator/sessions/count?{query}") == {"count": len(expected)}


def test_active_sessions_started_before_an_instant_are_listed(
    care: Admin, factory: Factory, database: Database
) -> None:
    made = make_sessions(factory)
    ((before,),) = rows(
        database, "SELECT to_char(statement_timestamp() - interval '10 s', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
    )

    assert session_ids(care.get(f"operator/sessions?startedBefore={before}")) == [str(made["old live"])]
    assert care.get(f"operator/sessions/count?startedBefore={before}") == {"count": 1}


def test_the_list_of_all_sessions_goes_on_behind_its_cursor(care: Admin, factory: Factory) -> None:
    made = {str(factory.session(account)) for account in ("a_b", "a", "ö x", "b", "x" * 255) for _ in range(3)}

    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = care.client.get("/srm/v1/operator/sessions", query_string={"limit": 2, **after}, headers=care.key)
        seen += session_ids(page.get_json())
        assert len(seen) <= len(made)
        if "next" not in page.get_json():
            break
        after = {"after": page.get_json()["next"]}

    assert len(seen) == len(made) == len(set(seen))
    assert set(seen) == made


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("accounts/a/sessions", "state=lapsed"),
        ("accounts/a/sessions", "after=x"),
        ("accounts/a/sessions", "limit=1001"),
        ("accounts/a/denials", "after=1_2"),
        ("operator/sessions", "contentType=VOD"),
        ("operator/sessions", "startedBefore=yesterday"),
        ("operator/sessions", "startedBefore=2026-02-30T00:00:00Z"),
        ("operator/sessions", "startedBefore=2026-02-03"),
        ("operator/sessions", "startedBefore=5"),
        ("operator/sessions", "contentID="),
        ("operator/sessions", "deviceGroup=%00"),
        ("operator/sessions", "after=a"),
        ("operator/sessions/count", "contentType="),
    ],
)
def test_a_wrong_query_is_malformed(care: Admin, factory: Factory, path: str, query: str) -> None:
    factory.account("a")

    assert error_of(care("GET", f"{path}?{query}")) == MALFORMED


def test_each_session_that_an_operator_ends_is_in_the_change_log(
    care: Admin, client: FlaskClient, factory: Factory
) -> None:
    factory.account("a")
    session = set_up(client)

    care("DELETE", "accounts/a/sessions", X_Correlation_Id="case-17")

    (change,) = care.get("operator/audit?operator=care")["changes"]
    assert (change["action"], change["resource"]) == ("end", f"accounts/a/sessions/{session}")
    assert (change["correlationId"], change["after"]["endReason"]) == ("case-17", "operator")


def test_a_change_that_cannot_be_recorded_is_rolled_back(
    admin: Admin, client: FlaskClient, factory: Factory, database: Database, url: str, outside: Callable[[str], str]
) -> None:
    """The constraint makes the entry of the ended session fail, in the transaction that disables the account."""
    factory.account("a")
    session = set_up(client)
    with psycopg.connect(outside(url), autocommit=True) as db:
        db.execute("ALTER TABLE srm.operator_audit ADD CONSTRAINT no CHECK (action <> 'end')")
    try:
        assert error_of(admin("PATCH", "accounts/a", {"enabled": False}))[0] == 500
    finally:
        with psycopg.connect(outside(url), autocommit=True) as db:
            db.execute("ALTER TABLE srm.operator_audit DROP CONSTRAINT no")

    assert keep_alive(client, session) == (200, None)
    assert rows(database, "SELECT enabled FROM srm.accounts") == [(True,)]
