"""OpenAPI document, and the page that shows it."""

import re
import subprocess
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
from flask.testing import FlaskClient
from schemathesis.specs.openapi.definitions import OPENAPI_31

from srm import version
from srm.api.v1 import openapi
from srm.api.v1.operator.wire import field_name
from tests.support import SETUP, Factory, issue_token

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def test_requests_for_the_version_start_no_process(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    openapi.rendered.cache_clear()

    told = client.get("/srm/v1/openapi.json").get_json()["info"]["version"]
    metrics = client.get("/metrics").get_data(as_text=True)

    assert told == version.build()
    assert f'version="{told}"' in metrics


@pytest.fixture
def document(client: FlaskClient) -> Any:
    return client.get("/srm/v1/openapi.json").get_json()


def answers(document: Any, method: str, path: str) -> jsonschema_rs.Validator:
    """Return the validator of a body that this operation answers with status 200."""
    content = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]
    return jsonschema_rs.validator_for({"$schema": DIALECT, **content["schema"], "components": document["components"]})


def test_the_document_is_under_both_prefixes(client: FlaskClient) -> None:
    pinned, newest = client.get("/srm/v1/openapi.json"), client.get("/srm/openapi.json")

    assert pinned.status_code == newest.status_code == 200
    assert pinned.content_type == "application/json"
    assert pinned.data == newest.data


def test_the_document_is_valid_openapi_3_1(document: Any) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert [error.message for error in jsonschema_rs.validator_for(OPENAPI_31).iter_errors(document)] == []
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": DIALECT, **schema})


def test_all_references_of_the_document_lead_somewhere(document: Any) -> None:
    def references(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(references, node))
        if not isinstance(node, dict):
            return set()
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))

    found = references(document)
    assert found
    for reference in found:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_the_document_has_every_operation_and_no_other(client: FlaskClient, document: Any) -> None:
    described = {
        (method.upper(), path)
        for path, calls in document["paths"].items()
        for method in calls
        if method != "parameters"
    }
    served = {
        (method, re.sub(r"<(\w+)>", lambda part: f"{{{field_name(part[1])}}}", rule.rule.removeprefix("/srm/v1")))
        for rule in client.application.url_map.iter_rules()
        if rule.rule.startswith("/srm/v1/") and rule.rule != "/srm/v1/openapi.json"
        for method in (rule.methods or set()) - {"HEAD"}
    }

    assert described == served
    assert {("POST", "/sessions"), ("PUT", "/sessions/{sessionId}"), ("DELETE", "/sessions/{sessionId}")} < served
    assert {("PATCH", "/accounts/{accountId}/devices/{deviceId}"), ("GET", "/operator/audit")} < served


@pytest.mark.parametrize(
    ("method", "path", "codes"),
    [
        ("post", "/sessions", {1, 2, 3, 4, 5, 6, 7, 10}),
        ("put", "/sessions/{sessionId}", {1, 2, 3, 8, 9, 10}),
        ("delete", "/sessions/{sessionId}", {1, 2, 3, 8, 9, 10}),
    ],
)
def test_the_document_has_every_error_code_of_an_operation(
    document: Any, method: str, path: str, codes: set[int]
) -> None:
    responses = document["paths"][path][method]["responses"]

    assert {int(code) for code in re.findall(r"SRM-(\d{4})", str(responses))} == codes
    statuses = {"200", "400", "401", "413", "500", "503"}
    assert set(responses) == (statuses if path == "/sessions" else statuses | {"404", "410"})
    assert "Retry-After" in responses["503"]["headers"]
    for response in responses.values():
        assert {"X-Correlation-Id", "Cache-Control"} <= set(response["headers"])


def test_every_operation_needs_one_credential(document: Any) -> None:
    for path, calls in document["paths"].items():
        for call in calls.values():
            wanted = "Client-Token" if path.startswith("/sessions") else "Operator-Key"
            credentials = [each for each in call["parameters"] if each["name"] in ("Client-Token", "Operator-Key")]
            assert [(each["name"], each["in"], each["required"]) for each in credentials] == [(wanted, "header", True)]


def test_answers_match_the_document(client: FlaskClient, factory: Factory, document: Any) -> None:
    factory.account("a", max_sessions=1)
    factory.account("b", timeout_seconds=None)
    validator = answers(document, "post", "/sessions")

    for account in ("a", "a", "b", "unknown"):
        answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": issue_token(account, "tv")})
        validator.validate(answer.get_json())


@pytest.mark.parametrize(
    ("body", "valid"),
    [
        (SETUP, True),
        ({**SETUP, "more": 1}, True),
        ({"content": {"contentID": "", "contentType": "COD"}}, False),
        ({"content": {"contentID": "x" * 256, "contentType": "COD"}}, False),
        ({"content": {"contentID": "x\n", "contentType": "COD"}}, False),
        ({"content": {"contentID": "x", "contentType": "VOD"}}, False),
        ({"content": {"contentID": "x"}}, False),
        ({}, False),
    ],
)
def test_accepted_requests_match_the_document(document: Any, body: Any, valid: bool) -> None:
    content = document["paths"]["/sessions"]["post"]["requestBody"]["content"]["application/json"]
    schema = {"$schema": DIALECT, **content["schema"], "components": document["components"]}

    assert jsonschema_rs.validator_for(schema).is_valid(body) is valid


class References(HTMLParser):
    """Collects the addresses that a page loads or links to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src", "action", "srcset", "data")]


@pytest.mark.parametrize("path", ["/srm/docs/", "/srm/docs/index.html"])
def test_the_docs_page_comes_from_the_service_alone(client: FlaskClient, path: str) -> None:
    page = client.get(path, base_url="http://srm.example")

    assert page.status_code == 200
    assert page.mimetype == "text/html"
    references = References(page.text).found
    assert len(references) >= 4
    for reference in references:
        assert reference.startswith("/srm/docs/"), reference
        with client.get(reference) as answer:
            assert answer.status_code == 200, reference
            if answer.mimetype == "text/css":
                assert re.findall(r"@import|url\(\s*['\"]?(?:https?:)?//", answer.get_data(as_text=True)) == []
    assert set(re.findall(r"https?://([^/\"']*)", page.text)) <= {"srm.example"}
    assert re.findall(r"[\"'(]//", page.text) == []


def test_the_docs_page_shows_the_document_and_asks_no_validator(client: FlaskClient) -> None:
    page = client.get("/srm/docs/").text

    assert '"url": "/srm/v1/openapi.json"' in page
    assert '"validatorUrl": null' in page


@pytest.mark.parametrize(
    "path", ["../flask_swagger_ui.py", "%2e%2e/flask_swagger_ui.py", "/etc/passwd", "%2fetc/passwd"]
)
def test_the_docs_serve_no_other_files(client: FlaskClient, path: str) -> None:
    assert client.get(f"/srm/docs/{path}").status_code == 404
