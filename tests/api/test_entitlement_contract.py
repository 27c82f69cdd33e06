"""docs/entitlement-service.json describes the questions that SRM asks, and exactly the answers that SRM accepts."""

import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from flask.testing import FlaskClient
from schemathesis.specs.openapi.definitions import OPENAPI_31

from tests.entitlement_server import entitlement_server, grant
from tests.support import ROOT, Factory, issue_token

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOCUMENT = json.loads((ROOT / "docs/entitlement-service.json").read_text())
CONTENT_TYPES = ("COD", "CU", "TS", "NPVR", "LIVE")

ANSWERS = [
    ({"granted": True}, True),
    ({"granted": False}, True),
    ({"granted": False, "reason": "not in the package", "keepForSeconds": 60}, True),
    ({"granted": False, "reason": None}, True),
    ({"granted": False, "reason": "ü" * 255}, True),
    ({"granted": True, "keepForSeconds": 0, "more": {"x": 1}}, True),
    ({"granted": True, "keepForSeconds": 10**12}, True),
    ({"granted": True, "keepForSeconds": 60.0}, True),
    ({"granted": True, "keepForSeconds": 1e3}, True),
    ({}, False),
    ([], False),
    (None, False),
    ("granted", False),
    ({"granted": "true"}, False),
    ({"granted": 1}, False),
    ({"granted": None}, False),
    ({"Granted": True}, False),
    ({"granted": True, "keepForSeconds": -1}, False),
    ({"granted": True, "keepForSeconds": "60"}, False),
    ({"granted": True, "keepForSeconds": 1.5}, False),
    ({"granted": True, "keepForSeconds": True}, False),
    ({"granted": True, "keepForSeconds": None}, False),
    ({"granted": False, "reason": ""}, False),
    ({"granted": False, "reason": "x" * 256}, False),
    ({"granted": False, "reason": "two\nlines"}, False),
    ({"granted": False, "reason": "nul\0"}, False),
    ({"granted": False, "reason": 7}, False),
]


def schema(name: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        {"$schema": DIALECT, "$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


def test_the_contract_is_valid_openapi_3_1() -> None:
    assert [error.message for error in jsonschema_rs.validator_for(OPENAPI_31).iter_errors(DOCUMENT)] == []
    for described in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": DIALECT, **described})


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("headers", [{}, {"X-Correlation-Id": "!" * 128}, {"X-Correlation-Id": "not sane"}])
def test_the_contract_accepts_every_question_that_srm_asks(
    make_client: Callable[..., FlaskClient], url: str, factory: Factory, content_type: str, headers: dict[str, str]
) -> None:
    with entitlement_server(grant) as server:
        client = make_client(database_url=url, entitlements="http", entitlements_url=server.url)
        client.post(
            "/srm/v1/sessions",
            json={"content": {"contentID": "ü" * 255, "contentType": content_type}},
            headers={"Client-Token": issue_token("ä" * 255, "t v"), **headers},
        )
        (question,) = server.questions

    schema("Question").validate(question.json)
    assert set(question.json) == set(DOCUMENT["components"]["schemas"]["Question"]["required"])
    assert question.line.startswith("POST ")
    assert question.headers["content-type"] in DOCUMENT["paths"]["/"]["post"]["requestBody"]["content"]
    assert question.headers["x-correlation-id"] == question.json["correlationId"]


@pytest.mark.parametrize(("body", "taken"), ANSWERS, ids=lambda value: str(value)[:40])
def test_the_contract_accepts_the_answers_that_srm_accepts_and_no_others(
    make_client: Callable[..., FlaskClient], url: str, factory: Factory, body: Any, taken: bool
) -> None:
    factory.account("a")
    with entitlement_server(lambda call: call.answer(body)) as server:
        client = make_client(database_url=url, entitlements="http", entitlements_url=server.url)
        answer = client.post(
            "/srm/v1/sessions",
            json={"content": {"contentID": "film", "contentType": "COD"}},
            headers={"Client-Token": issue_token("a", "tv")},
        )

    expected = 503
    if taken:
        expected = 200
        assert ("successResponse" in answer.get_json()) is body["granted"]
    assert answer.status_code == expected
    assert schema("Answer").is_valid(body) is taken
