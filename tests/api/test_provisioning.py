"""Accounts, devices, entitlements, profiles, products and contents in the operator API."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from srm.api.v1.operator.bodies import merge_patch
from srm.db.database import Database
from tests.support import SETUP, Admin, Factory, error_of, issue_token, rows

MALFORMED = (400, "ERROR", "SRM-0002")
NOT_FOUND = (404, "ERROR", "SRM-0011")
CONFLICT = (409, "ERROR", "SRM-0015")
CHANGED_SINCE = (412, "ERROR", "SRM-0015")

PROFILE: dict[str, Any] = {
    "profileId": "new",
    "maxSessions": None,
    "timeoutSeconds": None,
    "maxSessionSeconds": None,
    "maxSessionsPerContent": None,
    "maxIpAddresses": None,
    "maxSessionsPerIp": None,
    "onLimit": "deny",
    "sameDevice": "count",
    "mode": "enforce",
    "deviceGroups": {},
    "contentGroups": {},
}
RESOURCES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "accounts/new": (
        {"profileId": "p"},
        {"accountId": "new", "profileId": "p", "enabled": True, "maxSessions": None},
        {"maxSessions": 5, "enabled": False},
        {"accountId": "new", "profileId": "p", "enabled": False, "maxSessions": 5},
    ),
    "accounts/a/devices/new": (
        {"deviceGroup": "tv", "name": "Wohnzimmer, Größe L"},
        {
            "accountId": "a",
            "deviceId": "new",
            "deviceGroup": "tv",
            "name": "Wohnzimmer, Größe L",
            "enabled": True,
        },
        {"name": "Kitchen"},
        {"accountId": "a", "deviceId": "new", "deviceGroup": "tv", "name": "Kitchen", "enabled": True},
    ),
    "accounts/a/entitlements/other": (
        {"validFrom": "2026-01-01T00:00:00Z"},
        {"accountId": "a", "productId": "other", "validFrom": "2026-01-01T00:00:00Z", "validUntil": None},
        {"validUntil": "2027-01-01T01:00:00+01:00"},
        {
            "accountId": "a",
            "productId": "other",
            "validFrom": "2026-01-01T00:00:00Z",
            "validUntil": "2027-01-01T00:00:00Z",
        },
    ),
    "profiles/new": (
        {"maxSessions": 2, "deviceGroups": {"mobile": {"maxSessions": 1, "counts": False}, "tv": {}}},
        {
            **PROFILE,
            "maxSessions": 2,
            "deviceGroups": {
                "mobile": {"maxSessions": 1, "counts": False},
                "tv": {"maxSessions": None, "counts": True},
            },
        },
        {
            "timeoutSeconds": 30,
            "onLimit": "evict_oldest",
            "deviceGroups": {"tv": None, "mobile": {"counts": True}},
            "contentGroups": {"sports": {"maxSessions": 1}},
        },
        {
            **PROFILE,
            "maxSessions": 2,
            "timeoutSeconds": 30,
            "onLimit": "evict_oldest",
            "deviceGroups": {"mobile": {"maxSessions": 1, "counts": True}},
            "contentGroups": {"sports": {"maxSessions": 1, "counts": True}},
        },
    ),
    "products/new": (
        {"name": "New", "contents": [{"contentType": "LIVE", "contentID": "film"}]},
        {"productId": "new", "name": "New", "contents": [{"contentType": "LIVE", "contentID": "film"}]},
        {"contents": [{"contentType": "LIVE", "contentID": "film"}, {"contentType": "COD", "contentID": "film"}]},
        {
            "productId": "new",
            "name": "New",
            "contents": [{"contentType": "COD", "contentID": "film"}, {"contentType": "LIVE", "contentID": "film"}],
        },
    ),
    "contents/new": (
        {"channelID": "film", "groups": ["sports", "cars"]},
        {"contentID": "new", "channelID": "film", "title": None, "groups": ["cars", "sports"]},
        {"channelID": None, "title": "The race", "groups": ["sports", "motors"]},
        {"contentID": "new", "channelID": None, "title": "The race", "groups": ["motors", "sports"]},
    ),
}
"""By path: the body of a PUT, the resource after it, the body of a PATCH, and the resource after that."""
PATHS = list(RESOURCES)


@pytest.fixture
def admin(client: FlaskClient, factory: Factory) -> Admin:
    factory.account("a", profile=factory.profile("p"))
    factory.product("other")
    return Admin(client, factory.operator())


@pytest.mark.parametrize("path", PATHS)
def test_a_resource_is_created_read_replaced_patched_and_deleted(admin: Admin, path: str) -> None:
    put, created, patch, patched = RESOURCES[path]
    assert error_of(admin("GET", path)) == NOT_FOUND
    assert error_of(admin("PATCH", path, patch)) == NOT_FOUND
    assert error_of(admin("DELETE", path)) == NOT_FOUND

    first = admin("PUT", path, put)
    assert (first.status_code, first.get_json()) == (201, created)
    assert admin.get(path) == created
    again = admin("PUT", path, put)
    assert (again.status_code, again.get_json(), again.headers["ETag"]) == (200, created, first.headers["ETag"])
    changed = admin("PATCH", path, patch)
    assert (changed.status_code, changed.get_json()) == (200, patched)
    assert admin.get(path) == patched
    back = admin("PUT", path, created)  # a resource as it was read
    assert (back.status_code, back.get_json()) == (200, created)
    removed = admin("DELETE", path)
    assert (removed.status_code, removed.data) == (204, b"")
    assert error_of(admin("GET", path)) == NOT_FOUND


@pytest.mark.parametrize("path", PATHS)
def test_a_request_for_another_state_is_refused_with_412(admin: Admin, path: str) -> None:
    put, created, patch, patched = RESOURCES[path]
    assert error_of(admin("PUT", path, put, If_Match="*")) == CHANGED_SINCE
    assert error_of(admin("GET", path)) == NOT_FOUND
    etag = admin("PUT", path, put, If_None_Match="*").headers["ETag"]
    assert error_of(admin("PUT", path, put, If_None_Match="*")) == CHANGED_SINCE
    assert admin("GET", path).headers["ETag"] == etag

    newer = admin("PATCH", path, patch, If_Match=etag).headers["ETag"]

    assert newer != etag
    for method, body in (("PATCH", patch), ("PUT", put), ("DELETE", None)):
        for stale in (etag, '"no"', f"W/{newer}", newer.strip('"') + "x", ""):
            assert error_of(admin(method, path, body, If_Match=stale)) == CHANGED_SINCE, (method, stale)
    assert admin.get(path) == patched
    assert admin("PUT", path, put, If_Match=f'"other", {newer}').get_json() == created
    assert admin("DELETE", path, If_Match="*").status_code == 204


UNREADABLE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"{} x",
    b"\xff",
    b'{"unknownMember": 1}',
    b"[" * 100_000,
    b'{"a": NaN}',
    b'{"name": "\\ud800"}',
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_an_unreadable_body_changes_nothing(admin: Admin, path: str, method: str) -> None:
    put, created, *_ = RESOURCES[path]
    admin("PUT", path, put)

    for body in UNREADABLE:
        assert error_of(admin(method, path, body)) == MALFORMED, body
    assert admin.get(path) == created


@pytest.mark.parametrize(
    ("path", "member", "value"),
    [
        ("accounts/new", "profileId", None),
        ("accounts/new", "profileId", 5),
        ("accounts/new", "profileId", ""),
        ("accounts/new", "profileId", "x" * 256),
        ("accounts/new", "profileId", "a\nb"),
        ("accounts/new", "profileId", "a\x00b"),
        ("accounts/new", "accountId", "other"),
        ("accounts/new", "enabled", "true"),
        ("accounts/new", "enabled", 1),
        ("accounts/new", "maxSessions", -1),
        ("accounts/new", "maxSessions", 1.5),
        ("accounts/new", "maxSessions", "3"),
        ("accounts/new", "maxSessions", 2**31),
        ("accounts/new", "maxsessions", 3),
        ("accounts/a/devices/new", "name", "x" * 256),
        ("accounts/a/devices/new", "deviceGroup", None),
        ("accounts/a/devices/new", "accountId", "b"),
        ("accounts/a/entitlements/other", "validUntil", "tomorrow"),
        ("accounts/a/entitlements/other", "validUntil", "2026-01-01T00:00:00"),
        ("accounts/a/entitlements/other", "validUntil", "9999-12-31T23:59:59-14:00"),
        ("accounts/a/entitlements/other", "validFrom", 5),
        ("accounts/a/entitlements/other", "validFrom", "2024"),
        ("accounts/a/entitlements/other", "validFrom", "2026-01-01"),
        ("accounts/a/entitlements/other", "validFrom", "2026-02-30T00:00:00Z"),
        ("accounts/a/entitlements/other", "validUntil", "0001-01-01T00:00:00+01:00"),
        ("profiles/new", "timeoutSeconds", 0),
        ("profiles/new", "maxSessionSeconds", 0),
        ("profiles/new", "onLimit", "evict"),
        ("profiles/new", "sameDevice", "Replace"),
        ("profiles/new", "mode", ""),
        ("profiles/new", "deviceGroups", {"": {}}),
        ("profiles/new", "deviceGroups", {"tv": {"maxSessions": -1}}),
        ("profiles/new", "deviceGroups", {"tv": {"max": 1}}),
        ("profiles/new", "deviceGroups", ["tv"]),
        ("products/new", "contents", [{"contentType": "VOD", "contentID": "film"}]),
        ("products/new", "contents", [{"contentType": "COD"}]),
        ("products/new", "contents", {}),
        ("contents/new", "groups", "sports"),
        ("contents/new", "groups", [""]),
        ("contents/new", "groups", [["a"]]),
        ("contents/new", "channelID", 5),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_wrong_value_changes_nothing_and_the_answer_names_its_member(
    admin: Admin, method: str, path: str, member: str, value: object
) -> None:
    put, created, *_ = RESOURCES[path]
    admin("PUT", path, put)
    body = {**put, member: value} if method == "PUT" else {member: value}

    answer = admin(method, path, body)

    assert error_of(answer) == MALFORMED
    assert member in answer.get_json()["errorResponse"]["errorMessage"]
    assert admin.get(path) == created


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_repeated_items_of_a_list_are_stored_once(admin: Admin, method: str) -> None:
    admin("PUT", "products/new", {"name": "New"})
    admin("PUT", "contents/new", {})
    film = {"contentType": "COD", "contentID": "film"}

    product = admin(method, "products/new", {"name": "New", "contents": [film, film]}).get_json()
    content = admin(method, "contents/new", {"groups": ["b", "a", "b"]}).get_json()

    assert product["contents"] == [film]
    assert content["groups"] == ["a", "b"]


@pytest.mark.parametrize("count", [2_000, pytest.param(18_000, marks=pytest.mark.long(10))])
def test_a_product_with_thousands_of_contents_is_handled_and_a_larger_body_gets_413(
    admin: Admin, database: Database, count: int
) -> None:
    """18,000 contents nearly fill a body. They are put, put again, replaced, listed and deleted."""
    with database.transaction() as db:
        db.exec_driver_sql(f"INSERT INTO srm.contents SELECT 'c-' || n FROM generate_series(1, {2 * count}) n")
    contents, other_contents = (
        [{"contentType": "LIVE", "contentID": f"c-{first + n}"} for n in range(count)] for first in (1, count + 1)
    )
    one, other = ({"name": "x", "contents": each} for each in (contents, other_contents))

    assert [admin("PUT", "products/new", package).status_code for package in (one, one, other)] == [201, 200, 200]
    assert {each["contentID"] for each in admin.get("products/new")["contents"]} == {
        each["contentID"] for each in other_contents
    }
    assert len(admin.get("products?after=basic")["products"][0]["contents"]) == count
    assert admin("DELETE", "products/new").status_code == 204
    assert error_of(admin("PUT", "products/new", {"name": "x" * 2**20})) == (413, "ERROR", "SRM-0002")


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.long(5))])
def test_a_page_of_products_with_500_contents_each_is_listed(admin: Admin, url: str, count: int) -> None:
    with_long_timeout = Database(url, application_name="srm-tests", statement_timeout_seconds=30)
    with with_long_timeout.transaction() as db:
        db.exec_driver_sql("INSERT INTO srm.contents SELECT 'c-' || n FROM generate_series(1, 500) n")
        db.exec_driver_sql(
            f"INSERT INTO srm.products SELECT 'p-' || lpad(n::text, 3, '0'), 'x' FROM generate_series(1, {count}) n"
        )
        db.exec_driver_sql(
            "INSERT INTO srm.product_contents SELECT product_id, 'LIVE', content_id FROM srm.products, srm.contents "
            "WHERE product_id LIKE 'p-%%' AND content_id LIKE 'c-%%'"
        )
    with_long_timeout.dispose()

    page = admin("GET", "products?after=other")

    assert page.status_code == 200
    assert [len(product["contents"]) for product in page.get_json()["products"]] == [500] * count


@pytest.mark.parametrize(
    ("path", "body", "missing"),
    [
        ("accounts/new", {"profileId": "nowhere"}, "profile"),
        ("accounts/a/entitlements/nowhere", {}, "product"),
        ("products/new", {"name": "N", "contents": [{"contentType": "COD", "contentID": "nowhere"}]}, "content"),
        ("contents/new", {"channelID": "nowhere"}, "channel"),
    ],
)
def test_a_reference_to_a_missing_resource_is_a_conflict(
    admin: Admin, path: str, body: dict[str, Any], missing: str
) -> None:
    answer = admin("PUT", path, body)

    assert error_of(answer) == CONFLICT
    assert f"no such {missing}" in answer.get_json()["errorResponse"]["errorMessage"]
    assert error_of(admin("GET", path)) == NOT_FOUND


@pytest.mark.parametrize("kind", ["devices", "entitlements"])
def test_devices_and_entitlements_of_a_missing_account_are_not_found(admin: Admin, kind: str) -> None:
    body = {"deviceGroup": "tv", "name": "TV"} if kind == "devices" else {}

    assert error_of(admin("GET", f"accounts/nobody/{kind}")) == NOT_FOUND
    assert error_of(admin("PUT", f"accounts/nobody/{kind}/basic", body)) == NOT_FOUND
    assert error_of(admin("PATCH", f"accounts/nobody/{kind}/basic", {})) == NOT_FOUND
    assert error_of(admin("DELETE", f"accounts/nobody/{kind}/basic")) == NOT_FOUND


@pytest.mark.parametrize("path", ["profiles/p", "products/basic", "contents/film"])
def test_a_resource_in_use_is_not_deleted(admin: Admin, path: str) -> None:
    before = admin.get(path)

    answer = admin("DELETE", path)

    assert error_of(answer) == CONFLICT
    assert "in use" in answer.get_json()["errorResponse"]["errorMessage"]
    assert admin.get(path) == before


def test_deleting_an_account_deletes_and_records_its_devices_and_entitlements(admin: Admin, database: Database) -> None:
    assert admin("DELETE", "accounts/a").status_code == 204

    assert rows(database, "SELECT 1 FROM srm.devices UNION ALL SELECT 1 FROM srm.entitlements") == []
    gone = {each["resource"]: each["before"] for each in admin.get("operator/audit?accountId=a")["changes"]}
    assert set(gone) == {"accounts/a", "accounts/a/devices/tv", "accounts/a/entitlements/basic"}
    assert gone["accounts/a/devices/tv"]["name"] == "tv of a"


@pytest.mark.parametrize("changes", [{"maxSesions": None}, {"deviceGroups": {"tv": {"maxSesions": None}}}])
def test_a_patch_with_a_misspelt_null_member_is_malformed(admin: Admin, changes: dict[str, Any]) -> None:
    before = admin.get("profiles/p")

    answer = admin("PATCH", "profiles/p", changes)

    assert error_of(answer) == MALFORMED
    assert "maxSesions" in answer.get_json()["errorResponse"]["errorMessage"]
    assert admin.get("profiles/p") == before


def test_a_patch_may_remove_a_group_that_does_not_exist(admin: Admin) -> None:
    before = admin.get("profiles/p")

    assert admin("PATCH", "profiles/p", {"deviceGroups": {"gone": None}}).get_json() == before


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_patches_merge_as_in_the_examples_of_rfc_7396(target: object, patch: object, result: object) -> None:
    before = repr(target)

    assert merge_patch(target, patch) == result
    assert repr(target) == before


def test_null_in_a_patch_restores_the_default(admin: Admin) -> None:
    admin("PUT", "accounts/new", {"profileId": "p", "enabled": False, "maxSessions": 3})

    patched = admin("PATCH", "accounts/new", {"enabled": None, "maxSessions": None}).get_json()

    assert patched == {"accountId": "new", "profileId": "p", "enabled": True, "maxSessions": None}


def test_a_new_entitlement_holds_from_now_on_and_later_keeps_its_start(admin: Admin, client: FlaskClient) -> None:
    admin("DELETE", "accounts/a/entitlements/basic")
    token = {"Client-Token": issue_token("a", "tv")}
    assert error_of(client.post("/srm/v1/sessions", json=SETUP, headers=token))[2] == "SRM-0007"

    first = admin("PUT", "accounts/a/entitlements/basic", {}).get_json()

    assert "successResponse" in client.post("/srm/v1/sessions", json=SETUP, headers=token).get_json()
    assert first["validFrom"] is not None
    assert admin("PUT", "accounts/a/entitlements/basic", {}).get_json() == first
    assert admin("PATCH", "accounts/a/entitlements/basic", {"validFrom": None}).get_json() == first


def test_a_list_goes_on_behind_its_cursor_while_rows_come_and_go(admin: Admin, database: Database) -> None:
    with database.transaction() as db:
        db.exec_driver_sql(
            "INSERT INTO srm.accounts SELECT 'n-' || lpad(n::text, 3, '0'), 'p' FROM generate_series(1, 250) n"
        )
    seen: list[str] = []
    path: str | None = "accounts?limit=100"
    pages = 0
    while path:
        page = admin.get(path)
        seen += [each["accountId"] for each in page["accounts"]]
        path = f"accounts?limit=100&after={page['next']}" if "next" in page else None
        pages += 1
        assert pages <= 3
        if pages == 1:  # rows that come and go must not make the list skip one
            admin("DELETE", "accounts/n-001")
            admin("PUT", "accounts/n-000", {"profileId": "p"})

    assert pages == 3
    assert seen == ["a", *(f"n-{number:03}" for number in range(1, 251))]
    assert admin.get("accounts?limit=3&after=n-248") == {
        "accounts": [admin.get("accounts/n-249"), admin.get("accounts/n-250")]
    }
    assert len(admin.get("accounts")["accounts"]) == 100
    assert "next" not in admin.get("accounts?limit=1000")


def test_lists_of_an_account_show_only_its_resources(admin: Admin, factory: Factory) -> None:
    factory.account("b", "phone", "tablet", profile="p", products=("basic", "other"))

    assert [each["deviceId"] for each in admin.get("accounts/b/devices")["devices"]] == ["phone", "tablet"]
    assert [each["deviceId"] for each in admin.get("accounts/b/devices?after=phone")["devices"]] == ["tablet"]
    assert [each["productId"] for each in admin.get("accounts/b/entitlements?limit=1")["entitlements"]] == ["basic"]
    assert admin.get("accounts/b/entitlements?limit=1")["next"] == "basic"
    assert [each["profileId"] for each in admin.get("profiles")["profiles"]] == ["p"]
    assert [each["contentID"] for each in admin.get("contents")["contents"]] == ["film"]
    assert [each["productId"] for each in admin.get("products?after=basic")["products"]] == ["other"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "limit=1e2", "after=%00", "after="]
)
def test_a_wrong_query_of_a_list_is_malformed(admin: Admin, query: str) -> None:
    assert error_of(admin("GET", f"accounts?{query}")) == MALFORMED


@pytest.mark.parametrize(
    ("name", "read"), [("%00", MALFORMED), ("M%FCller", MALFORMED), ("a%0Ab", NOT_FOUND), ("x" * 256, NOT_FOUND)]
)
def test_an_id_that_no_resource_can_have_is_not_found_or_malformed(
    admin: Admin, name: str, read: tuple[int, str, str]
) -> None:
    """Bytes that are not UTF-8 would all become U+FFFD, and different ids one."""
    assert error_of(admin("GET", f"accounts/{name}")) == read
    assert error_of(admin("PUT", f"accounts/{name}", {"profileId": "p"})) == MALFORMED


def test_ids_may_have_spaces_umlauts_and_reserved_characters(admin: Admin) -> None:
    for name, in_path in {"ä b": "%C3%A4%20b", "a+b": "a+b", "a?b": "a%3Fb", "100%": "100%25"}.items():
        assert admin("PUT", f"accounts/{in_path}", {"profileId": "p"}).get_json()["accountId"] == name
        assert admin.get(f"accounts/{in_path}")["accountId"] == name


def test_values_that_psql_wrote_are_shown_though_the_api_would_refuse_them(admin: Admin, factory: Factory) -> None:
    with factory.database.transaction() as db:
        db.exec_driver_sql("INSERT INTO srm.devices VALUES ('a', E'odd\\nid', 'tv', '')")
        db.exec_driver_sql("UPDATE srm.entitlements SET valid_until = 'infinity'")

    assert {"odd\nid", "tv"} == {each["deviceId"] for each in admin.get("accounts/a/devices")["devices"]}
    first = admin.get("accounts/a/devices?limit=1")
    following = admin.client.get(
        "/srm/v1/accounts/a/devices", query_string={"after": first["next"]}, headers=admin.key
    ).get_json()
    assert {each["deviceId"] for page in (first, following) for each in page["devices"]} == {"odd\nid", "tv"}
    assert admin.get("accounts/a/entitlements/basic")["validUntil"].startswith("9999-12-31")


def test_a_resource_with_values_that_psql_wrote_can_be_patched(admin: Admin, factory: Factory) -> None:
    with factory.database.transaction() as db:
        db.exec_driver_sql("INSERT INTO srm.devices VALUES ('a', E'odd\nid', 'tv', '')")
        db.exec_driver_sql("UPDATE srm.entitlements SET valid_until = 'infinity'")

    assert admin("PATCH", "accounts/a/devices/odd%0Aid", {"enabled": False}).get_json()["enabled"] is False
    assert error_of(admin("PATCH", "accounts/a/devices/odd%0Aid", {"name": "a\nb"})) == MALFORMED
    changed = admin("PATCH", "accounts/a/entitlements/basic", {"validFrom": "2026-01-01T00:00:00Z"})
    assert changed.get_json()["validFrom"] == "2026-01-01T00:00:00Z"
    assert admin("DELETE", "accounts/a/devices/odd%0Aid").status_code == 204


@pytest.mark.parametrize("instant", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
def test_instants_at_the_ends_of_the_calendar_can_be_put_back_as_shown(admin: Admin, instant: str) -> None:
    """An instant outside the years 1 to 9999 in UTC could not be shown, so it is refused."""
    path = "accounts/a/entitlements/other"
    assert error_of(admin("PUT", path, {"validFrom": instant})) == MALFORMED

    for taken in ("9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z", "2026-01-01T00:00:00.5-14:00"):
        shown = admin("PUT", path, {"validFrom": taken}).get_json()
        assert admin("PUT", path, shown).get_json() == shown


def test_a_changed_limit_holds_from_the_next_setup_on(admin: Admin, client: FlaskClient) -> None:
    token = {"Client-Token": issue_token("a", "tv")}
    admin("PATCH", "profiles/p", {"maxSessions": 1})
    answers = [client.post("/srm/v1/sessions", json=SETUP, headers=token).get_json() for _ in range(2)]
    assert "successResponse" in answers[0]
    assert answers[1]["errorResponse"]["errorCode"] == "SRM-0006"

    admin("PATCH", "profiles/p", {"maxSessions": 2})

    assert "successResponse" in client.post("/srm/v1/sessions", json=SETUP, headers=token).get_json()


def test_every_change_is_in_the_change_log_with_before_and_after(admin: Admin) -> None:
    path = "accounts/a/devices/new"
    put, created, patch, patched = RESOURCES[path]
    admin("PUT", path, put, X_Correlation_Id="one")
    admin("PUT", path, put)  # changes nothing
    admin("PATCH", path, patch)
    admin("PATCH", path, {"name": ""})  # malformed
    admin("DELETE", path)

    changes = admin.get("operator/audit")["changes"]

    assert [(each["action"], each["before"], each["after"]) for each in changes[:3]] == [
        ("delete", patched, None),
        ("update", created, patched),
        ("create", None, created),
    ]
    assert {(each["operator"], each["resource"], each["accountId"]) for each in changes[:3]} == {("admin", path, "a")}
    assert changes[2]["correlationId"] == "one"
    assert [each["action"] for each in changes[3:]] == ["create"]  # the operator


def test_the_change_log_goes_on_behind_its_cursor_and_filters(admin: Admin, factory: Factory) -> None:
    for number in range(5):
        admin("PUT", f"accounts/n-{number}", {"profileId": "p"})
    admin("PUT", "profiles/q", {})

    seen, path = [], "operator/audit?limit=2"
    while path:
        page = admin.get(path)
        seen += [each["resource"] for each in page["changes"]]
        assert len(seen) <= 7
        path = f"operator/audit?limit=2&after={page['next']}" if "next" in page else ""

    assert seen == ["profiles/q", *(f"accounts/n-{number}" for number in range(4, -1, -1)), "operators/admin"]
    assert [each["resource"] for each in admin.get("operator/audit?accountId=n-3")["changes"]] == ["accounts/n-3"]
    assert [each["resource"] for each in admin.get("operator/audit?operator=tests")["changes"]] == ["operators/admin"]
    assert admin.get("operator/audit?operator=nobody") == {"changes": []}
    for wrong in ("x", "2026-11-22T10:00:00Z", f"{'0' * 8}-0000-0000-0000-{'0' * 12}_yesterday"):
        assert error_of(admin("GET", f"operator/audit?after={wrong}")) == MALFORMED
