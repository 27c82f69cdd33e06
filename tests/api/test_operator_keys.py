"""Operator-Keys and roles: what each opens, and that no route answers without a credential."""

import hmac
import re

import pytest
from flask.testing import FlaskClient
from werkzeug.routing import Rule

from srm.db.database import Database
from srm.db.models import Role
from srm.operators import keys
from tests.support import NO_SESSION, Factory, error_of, issue_token, rows

NOT_VALID = (401, "ERROR", "SRM-0003")
NOT_ALLOWED = (403, "ERROR", "SRM-0014")

OPEN = {"/healthz", "/readyz", "/metrics", "/srm/v1/openapi.json", "/srm/openapi.json", "/srm/docs/"}
"""Routes that need no credential: health, metrics and the documentation of the API."""
OPEN_BELOW = "/srm/docs/"

READS = [
    "/accounts",
    "/accounts/a",
    "/accounts/a/devices",
    "/accounts/a/devices/tv",
    "/accounts/a/entitlements",
    "/accounts/a/entitlements/basic",
    "/accounts/a/sessions",
    "/accounts/a/denials",
    "/profiles",
    "/profiles/p",
    "/products",
    "/products/basic",
    "/contents",
    "/contents/film",
    "/operator/sessions",
    "/operator/sessions/count",
    "/operator/audit",
]
ENDS_SESSIONS = [
    ("DELETE", "/accounts/a/sessions"),
    ("DELETE", f"/accounts/a/sessions/{NO_SESSION}"),
    ("DELETE", "/accounts/a/devices/tv/sessions"),
]
CHANGES = [
    (method, path)
    for path in (
        "/accounts/a",
        "/accounts/a/devices/tv",
        "/accounts/a/entitlements/basic",
        "/profiles/p",
        "/products/basic",
        "/contents/film",
    )
    for method in ("PUT", "PATCH", "DELETE")
]
CALLS = [*(("GET", path) for path in READS), *ENDS_SESSIONS, *CHANGES]


def rules(client: FlaskClient) -> list[Rule]:
    return list(client.application.url_map.iter_rules())


def test_this_file_lists_every_call_of_the_operator_api(client: FlaskClient) -> None:
    """So the tests of roles leave no call out."""
    served = {
        (method, rule.rule.removeprefix("/srm/v1"))
        for rule in rules(client)
        if rule.rule.startswith(("/srm/v1/accounts", "/srm/v1/p", "/srm/v1/contents", "/srm/v1/operator"))
        for method in (rule.methods or set()) - {"HEAD"}
    }
    ids = r"(?<=accounts/)a|(?<=devices/)tv|basic|(?<=profiles/)p|film|[0-9a-f-]{36}"
    asked = {(method, re.sub(ids, "<>", path)) for method, path in CALLS}

    assert {(method, re.sub(r"<\w+>", "<>", rule)) for method, rule in served} == asked
    assert len(CALLS) == len(served)


def test_no_route_answers_without_a_credential(client: FlaskClient) -> None:
    asked = 0
    for rule in rules(client):
        if rule.rule in OPEN or rule.rule.startswith(OPEN_BELOW):
            continue
        for method in rule.methods or ():
            path = re.sub(r"<session_id>", NO_SESSION, rule.rule)
            answer = client.open(re.sub(r"<\w+>", "a", path), method=method, json={})
            of_client = rule.rule in {f"{prefix}/sessions" for prefix in ("/srm", "/srm/v1")} or re.fullmatch(
                r"/srm(/v1)?/sessions/<session_id>", rule.rule
            )
            # The published API calls a request without Client-Token malformed.
            assert answer.status_code == (400 if of_client else 401), (method, rule.rule, answer.text)
            if method != "HEAD":
                assert error_of(answer)[2] == ("SRM-0002" if of_client else "SRM-0003")
            asked += 1
    assert asked > 2 * len(CALLS)


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_each_role_may_make_its_calls_and_no_others(
    client: FlaskClient, factory: Factory, method: str, path: str
) -> None:
    factory.account("a", profile=factory.profile("p"))
    allowed: dict[Role, bool] = {
        "viewer": method == "GET",
        "care": method == "GET" or (method, path) in ENDS_SESSIONS,
        "admin": True,
    }

    for role, may in allowed.items():
        answer = client.open(f"/srm/v1{path}", method=method, json=None, headers=factory.operator(role))
        if may:
            assert answer.status_code in ((200,) if method == "GET" else (200, 204, 400, 404, 409)), answer.text
        else:
            assert error_of(answer) == NOT_ALLOWED


def test_calls_without_a_version_answer_as_v1(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    key = factory.operator("viewer")
    paths = [path for path in READS if path != "/profiles/p"]

    assert [client.get(f"/srm{path}", headers=key).data for path in paths] == [
        client.get(f"/srm/v1{path}", headers=key).data for path in paths
    ]
    assert error_of(client.delete("/srm/accounts/a", headers=key)) == NOT_ALLOWED


@pytest.mark.parametrize("role", ["viewer", "care"])
def test_a_refused_change_changes_nothing(
    client: FlaskClient, factory: Factory, database: Database, role: Role
) -> None:
    factory.account("a", profile=factory.profile("p"))
    headers = factory.operator(role)
    before = rows(database, "SELECT to_jsonb(a) FROM srm.accounts a")

    for method in ("PUT", "PATCH", "DELETE"):
        body = {"profileId": "p", "enabled": False}
        client.open("/srm/v1/accounts/a", method=method, json=body, headers=headers)

    assert rows(database, "SELECT to_jsonb(a) FROM srm.accounts a") == before


@pytest.mark.parametrize(
    "key",
    [
        "",
        "admin",
        "admin.",
        ".secret",
        "admin.wrong",
        "nobody.secret",
        "admin.{secret}x",
        "Admin.{secret}",
        "{secret}",
        "admin..{secret}",
        " ",
        "admin.\xff",
        "x" * 5000,
        "a" * 300 + ".{secret}",
    ],
)
def test_a_wrong_key_is_refused(client: FlaskClient, factory: Factory, key: str) -> None:
    secret = factory.operator("admin")["Operator-Key"].rpartition(".")[2]

    answer = client.get("/srm/v1/accounts", headers={"Operator-Key": key.format(secret=secret)})

    assert error_of(answer) == NOT_VALID


def test_neither_credential_opens_the_other_api(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    token, key = issue_token("a", "tv"), factory.operator("admin")["Operator-Key"]

    for headers in ({"Client-Token": token}, {"Client-Token": key}, {"Operator-Key": token}):
        assert error_of(client.get("/srm/v1/accounts", headers=headers)) == NOT_VALID
    assert error_of(client.get("/srm/v1/sessions", headers={"Operator-Key": key})) == (400, "ERROR", "SRM-0002")
    for token_of_client in (key, ""):
        answer = client.get("/srm/v1/sessions", headers={"Client-Token": token_of_client, "Operator-Key": key})
        assert error_of(answer)[2] == ("SRM-0003" if token_of_client else "SRM-0002")


def test_a_revoked_key_stops_working_at_once(client: FlaskClient, factory: Factory, database: Database) -> None:
    headers = factory.operator("viewer", "joe")
    assert client.get("/srm/v1/accounts", headers=headers).status_code == 200

    with database.transaction() as db:
        keys.revoke(db, "tests", "joe")
    assert error_of(client.get("/srm/v1/accounts", headers=headers)) == NOT_VALID
    again = factory.operator("viewer", "joe")

    assert client.get("/srm/v1/accounts", headers=again).status_code == 200
    assert error_of(client.get("/srm/v1/accounts", headers=headers)) == NOT_VALID


def test_only_the_hash_of_a_key_is_stored(factory: Factory, database: Database) -> None:
    secret = factory.operator("admin")["Operator-Key"].rpartition(".")[2]

    ((kept,),) = rows(database, "SELECT to_jsonb(o)::text || encode(key_hash, 'escape') FROM srm.operators o")

    assert secret not in kept
    assert len(secret) >= 43  # 256 bits


def test_every_key_is_compared_in_constant_time(
    client: FlaskClient, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of an unknown name too."""
    compared = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (factory.operator("admin")["Operator-Key"], "admin.wrong", "nobody.wrong"):
        client.get("/srm/v1/accounts", headers={"Operator-Key": key})

    assert compared == [(32, 32)] * 3


def test_the_refusal_of_a_call_names_the_needed_role(client: FlaskClient, factory: Factory) -> None:
    answer = client.delete("/srm/v1/accounts/a", headers=factory.operator("care"))

    assert answer.get_json()["errorResponse"]["errorMessage"] == "Not allowed: needs the role admin"


def test_no_log_line_has_the_secret_of_a_key(
    client: FlaskClient, factory: Factory, capfd: pytest.CaptureFixture[str]
) -> None:
    headers = factory.operator("viewer", "joe")

    client.get("/srm/v1/accounts/nobody", headers=headers)
    client.get("/srm/v1/accounts/nobody", headers={"Operator-Key": headers["Operator-Key"] + "x"})

    log = capfd.readouterr().err
    assert headers["Operator-Key"].rpartition(".")[2] not in log
    assert "joe" in log


@pytest.mark.parametrize(("method", "path"), [("PUT", "/srm/v1/accounts"), ("POST", "/srm/v1/accounts/a")])
def test_a_method_that_a_path_does_not_have_gets_405_in_the_envelope(
    client: FlaskClient, factory: Factory, method: str, path: str
) -> None:
    answer = client.open(path, method=method, json={}, headers=factory.operator("admin"))

    assert error_of(answer) == (405, "ERROR", "SRM-0012")
    assert "GET" in answer.headers["Allow"]
