"""SRM_CORS_ORIGINS: pages of these origins may call the client API and read its answers."""

from collections.abc import Callable
from typing import NoReturn

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from srm.api.parts import parts_of
from srm.app import create_app
from srm.config import Settings
from tests.support import NO_SESSION, SECRET, SESSION, SETUP, Factory, error_of, issue_token

PAGE = "https://player.example"
ALLOWED = f"{PAGE},https://tv.example:8443"
CLIENT_PATHS = ["/srm/v1/sessions", "/srm/sessions", SESSION, f"/srm/sessions/{NO_SESSION}"]
CORS = {"Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Access-Control-Allow-Methods"}
CORS |= {"Access-Control-Allow-Headers", "Access-Control-Max-Age", "Vary"}


@pytest.fixture
def client(make_client: Callable[..., FlaskClient], url: str) -> FlaskClient:
    return make_client(database_url=url, cors_origins=ALLOWED)


def preflight(client: FlaskClient, path: str, origin: str = PAGE, method: str = "PUT") -> TestResponse:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "client-token,content-type",
    }
    return client.options(path, headers=headers)


def cors_of(answer: TestResponse) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name in CORS}


def words(header: str) -> set[str]:
    return {word.strip() for word in header.split(",")}


@pytest.mark.parametrize("path", CLIENT_PATHS)
@pytest.mark.parametrize("origin", [PAGE, "https://tv.example:8443"])
def test_a_preflight_from_an_allowed_origin_is_answered(client: FlaskClient, path: str, origin: str) -> None:
    answer = preflight(client, path, origin)

    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert words(answer.headers["Access-Control-Allow-Methods"]) == {"GET", "POST", "PUT", "DELETE"}
    assert words(answer.headers["Access-Control-Allow-Headers"]) == {
        "Client-Token",
        "Content-Type",
        "Idempotency-Key",
        "X-Correlation-Id",
    }
    assert 0 < int(answer.headers["Access-Control-Max-Age"]) <= 7200
    assert answer.headers["Vary"] == "Origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Correlation-Id"]


def test_a_page_of_an_allowed_origin_may_set_up_and_keep_alive(client: FlaskClient, factory: Factory) -> None:
    factory.account()
    headers = {"Client-Token": issue_token("a", "tv"), "Origin": PAGE}

    setup = client.post("/srm/v1/sessions", json=SETUP, headers=headers)
    path = f"/srm/v1/sessions/{setup.get_json()['successResponse']['sessionId']}"
    answers = [setup, client.get("/srm/v1/sessions", headers=headers)]
    answers += [client.put(path, headers=headers), client.delete(path, headers=headers)]

    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers.getlist("Access-Control-Allow-Origin") == [PAGE]
        assert words(answer.headers["Access-Control-Expose-Headers"]) == {
            "X-Correlation-Id",
            "Retry-After",
            "SRM-End-Reason",
        }
        assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_page_may_read_denials(client: FlaskClient, factory: Factory) -> None:
    factory.account(max_sessions=0)
    ended = factory.session(ended_by="phone")
    known = {"Client-Token": issue_token("a", "tv"), "Origin": PAGE}
    factory.age(ended, 60)

    answers = {
        200: client.post("/srm/v1/sessions", json=SETUP, headers=known),
        400: client.post("/srm/v1/sessions", data="?", headers=known),
        401: client.put(SESSION, headers={**known, "Client-Token": "none"}),
        404: client.put(SESSION, headers=known),
        405: client.patch(SESSION, headers=known),
        410: client.put(f"/srm/v1/sessions/{ended}", headers=known),
        413: client.post("/srm/v1/sessions", data="x" * 20_000, headers=known),
    }

    for status, answer in answers.items():
        assert error_of(answer)[0] == status
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answers[410].headers["SRM-End-Reason"] == "expired"


def test_a_page_may_read_that_the_database_is_away(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client(database_url="postgresql://srm@127.0.0.1:1/srm", cors_origins=ALLOWED)

    answer = client.put(SESSION, headers={"Client-Token": issue_token("a", "tv"), "Origin": PAGE})

    assert error_of(answer) == (503, "ERROR", "SRM-0010")
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Retry-After"]


def test_a_page_may_read_an_internal_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(database_url=url, token_secret=SECRET, cors_origins=ALLOWED))

    def crash() -> NoReturn:
        raise RuntimeError("a bug")

    app.view_functions["pinned.get_sessions"] = crash

    answer = app.test_client().get("/srm/v1/sessions", headers={"Origin": PAGE})
    parts_of(app).database.dispose()

    assert error_of(answer) == (500, "ERROR", "SRM-0001")
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE


@pytest.mark.parametrize("origin", ["https://evil.example", "http://player.example", f"{PAGE}:8443", "null", ""])
def test_a_page_of_another_origin_may_read_nothing(client: FlaskClient, origin: str) -> None:
    refused = preflight(client, SESSION, origin)

    assert error_of(refused) == (405, "ERROR", "SRM-0012")
    assert cors_of(refused) == {"Vary": "Origin"}
    assert cors_of(client.put(SESSION, headers={"Origin": origin})) == {"Vary": "Origin"}


def test_caches_learn_that_answers_vary_by_origin(client: FlaskClient) -> None:
    """Also an answer to a player outside browsers, which a cache might give to a page."""
    assert cors_of(client.put(SESSION)) == {"Vary": "Origin"}


def test_a_star_allows_every_origin(make_client: Callable[..., FlaskClient], url: str) -> None:
    client = make_client(database_url=url, cors_origins="*")

    for origin in (PAGE, "null", "file://"):
        assert preflight(client, SESSION, origin).headers["Access-Control-Allow-Origin"] == "*"
        assert client.put(SESSION, headers={"Origin": origin}).headers["Access-Control-Allow-Origin"] == "*"
    assert "Vary" not in client.put(SESSION, headers={"Origin": PAGE}).headers


def test_options_without_a_preflight_is_not_allowed(client: FlaskClient) -> None:
    answer = client.options(SESSION, headers={"Origin": PAGE})

    assert error_of(answer) == (405, "ERROR", "SRM-0012")
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE


def test_without_allowed_origins_answers_have_no_cors_headers(
    make_client: Callable[..., FlaskClient], url: str
) -> None:
    client = make_client(database_url=url)

    assert error_of(preflight(client, SESSION)) == (405, "ERROR", "SRM-0012")
    for answer in (preflight(client, SESSION), client.put(SESSION, headers={"Origin": PAGE})):
        assert cors_of(answer) == {}


def test_the_operator_api_has_no_cors_headers(make_client: Callable[..., FlaskClient], url: str) -> None:
    """Nor has any other path outside the client API, whatever the setting."""
    client = make_client(database_url=url, cors_origins="*")
    app: Flask = client.application
    others = {rule.rule for rule in app.url_map.iter_rules() if "/sessions" not in rule.rule.removeprefix("/srm/v1")}
    others |= {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint.partition(".")[0].endswith("-operator")}
    assert {"/srm/v1/accounts/<account_id>/sessions", "/srm/operator/sessions", "/readyz", "/srm/docs/"} <= others

    for path in others:
        assert preflight(client, path).status_code == 405, path
        for answer in (preflight(client, path), client.get(path, headers={"Origin": PAGE})):
            assert cors_of(answer) == {}, path
