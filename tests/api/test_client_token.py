"""Header Client-Token, on every route that needs it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from flask.testing import FlaskClient
from jwt.algorithms import RSAAlgorithm

from srm.db.database import Database
from tests.support import SETUP, Factory, error_of, issue_token, session_count, sign

LATER = int(time.time()) + 3600
RIGHT = {"accountId": "a", "deviceId": "tv", "exp": LATER}
WRONG_IDS = {
    "integer": 1,
    "float": 1.5,
    "list": ["a"],
    "object": {"a": "tv"},
    "null": None,
    "true": True,
    "empty": "",
    "NUL": "a\0",
    "newline": "a\n",
    "256 characters": "x" * 256,
    "lone surrogate": "\ud800",
}
WRONG_TIMES = {
    "string": f'"{LATER}"',
    "word": '"tomorrow"',
    "list": f"[{LATER}]",
    "object": "{}",
    "null": "null",
    "true": "true",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "NaN": "NaN",
    "too large for a float": "1e999",
    "too large for an int": "9" * 5000,
    "past": str(int(time.time()) - 1),
    "zero": "0",
    "negative": "-1",
}
TOKENS = {
    "garbage": "garbage",
    "dots": "..",
    "three words": "a.b.c",
    "a space": " ",
    "not ASCII": "\xff\xfe.\xe9.\xe9",
    "two tokens": f"{sign(RIGHT)}, {sign(RIGHT)}",
    "signature cut off": sign(RIGHT)[:-2],
    "no signature": sign(RIGHT).rpartition(".")[0] + ".",
    "another key": sign(RIGHT, secret="another secret, also long enough for it"),
    "alg none": sign(RIGHT, {"alg": "none"}).rpartition(".")[0] + ".",
    "alg None": sign(RIGHT, {"alg": "None"}).rpartition(".")[0] + ".",
    "alg none, signed": sign(RIGHT, {"alg": "none"}),
    "alg RS256": sign(RIGHT, {"alg": "RS256"}),
    "alg HS512": sign(RIGHT, {"alg": "HS512"}),
    "alg missing": sign(RIGHT, {"typ": "JWT"}),
    "alg not a string": sign(RIGHT, {"alg": ["HS256"]}),
    "critical extension": sign(RIGHT, {"alg": "HS256", "crit": ["x"], "x": 1}),
    "header not an object": sign(RIGHT, "[]"),
    "header of brackets": sign(RIGHT, "[" * 3000),
    # Deeper than any Python parses; 3.13 parses thousands of levels.
    "header with brackets in it": sign(RIGHT, '{"alg": "HS256", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "claims not JSON": sign("claims"),
    "claims not an object": sign("[1]"),
    "claims of brackets": sign("[" * 3000),
    "not valid yet": sign({**RIGHT, "nbf": LATER}),
    "no account": sign({"deviceId": "tv", "exp": LATER}),
    "no device": sign({"accountId": "a", "exp": LATER}),
    "no expiry": sign({"accountId": "a", "deviceId": "tv"}),
    **{
        f"{name} is {what}": sign({**RIGHT, name: value})
        for what, value in WRONG_IDS.items()
        for name in ("accountId", "deviceId")
    },
    **{
        f"exp is {what}": sign(f'{{"accountId": "a", "deviceId": "tv", "exp": {value}}}')
        for what, value in WRONG_TIMES.items()
    },
}
ROUTES = {
    "set up": ("POST", "/srm/v1/sessions", SETUP),
    "keep alive": ("PUT", f"/srm/v1/sessions/{uuid4()}", None),
    "tear down": ("DELETE", f"/srm/v1/sessions/{uuid4()}", None),
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS.keys())
def test_an_invalid_token_is_rejected(client: FlaskClient, factory: Factory, database: Database, token: str) -> None:
    factory.account("a")

    answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": token})

    assert error_of(answer) == (401, "ERROR", "SRM-0003")
    assert session_count(database) == 0


def test_the_invalid_tokens_are_wrong_in_one_thing_only(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")

    answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": sign(RIGHT)})

    assert "successResponse" in answer.get_json()


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({}, (400, "ERROR", "SRM-0002")),
        ({"Client-Token": ""}, (400, "ERROR", "SRM-0002")),
        ({"Authorization": f"Bearer {sign(RIGHT)}"}, (400, "ERROR", "SRM-0002")),
        ({"Client-Token": "garbage"}, (401, "ERROR", "SRM-0003")),
        ({"Client-Token": issue_token("a", "tv", exp=1)}, (401, "ERROR", "SRM-0003")),
    ],
    ids=["missing", "empty", "elsewhere", "garbage", "expired"],
)
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
def test_every_route_needs_a_token(
    client: FlaskClient,
    factory: Factory,
    database: Database,
    route: tuple[str, str, object],
    headers: dict[str, str],
    refusal: tuple[int, str, str],
) -> None:
    factory.account("a")
    method, path, body = route

    answer = client.open(path, method=method, json=body, headers=headers)

    assert error_of(answer) == refusal
    assert session_count(database) == 0


@pytest.mark.parametrize(
    ("claims", "accepted"),
    [
        ({"iss": "operator", "aud": "srm"}, True),
        ({"iss": "operator", "aud": ["portal", "srm"]}, True),
        ({"aud": "srm"}, False),
        ({"iss": "other", "aud": "srm"}, False),
        ({"iss": ["operator"], "aud": "srm"}, False),
        ({"iss": "operator"}, False),
        ({"iss": "operator", "aud": "portal"}, False),
        ({"iss": "operator", "aud": 1}, False),
    ],
)
def test_issuer_and_audience_are_checked_when_configured(
    make_client: Callable[..., FlaskClient], url: str, factory: Factory, claims: dict[str, object], accepted: bool
) -> None:
    factory.account("a")
    client = make_client(database_url=url, token_issuer="operator", token_audience="srm")

    answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": sign({**RIGHT, **claims})})

    assert ("successResponse" in answer.get_json()) is accepted
    assert accepted or error_of(answer) == (401, "ERROR", "SRM-0003")


def test_issuer_and_audience_are_ignored_when_not_configured(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    token = sign({**RIGHT, "iss": "anyone", "aud": "anything", "iat": LATER})

    answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": token})

    assert "successResponse" in answer.get_json()


def test_account_and_device_come_from_the_configured_claims(
    make_client: Callable[..., FlaskClient], url: str, factory: Factory
) -> None:
    factory.account("a")
    client = make_client(database_url=url, token_account_claim="sub", token_device_claim="dev")

    def code(claims: dict[str, object]) -> int:
        token = sign({**claims, "exp": LATER})
        return client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": token}).status_code

    assert code({"sub": "a", "dev": "tv"}) == 200
    assert code({"accountId": "a", "deviceId": "tv"}) == 401


def test_a_public_key_is_never_used_as_a_secret(
    make_client: Callable[..., FlaskClient], url: str, factory: Factory, tmp_path: Path
) -> None:
    factory.account("a")
    public = rsa.generate_private_key(65537, 2048).public_key()
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [{**RSAAlgorithm.to_jwk(public, as_dict=True), "kid": "k"}]}))
    client = make_client(database_url=url, token_jwks=str(jwks))
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    for secret in (pem, pem.strip()):
        token = sign(RIGHT, {"alg": "HS256", "kid": "k"}, secret)
        answer = client.post("/srm/v1/sessions", json=SETUP, headers={"Client-Token": token})

        assert error_of(answer) == (401, "ERROR", "SRM-0003")
