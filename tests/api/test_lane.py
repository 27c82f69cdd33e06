"""The lane in front of Flask beside the Flask view: a client, an operator and the database see no difference."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from srm.api import envelope, telemetry
from srm.api.parts import parts_of
from srm.api.v1.client import lane
from srm.api.v1.client.lane import ON_SESSIONS
from srm.app import create_app
from srm.config import Settings
from srm.db.models import END_REASONS
from srm.metrics import REGISTRY
from tests import support
from tests.support import Factory, issue_token

ID = UUID("0a1b2c3d-4e5f-6789-abcd-ef0123456789")
KNOWN = issue_token("a", "tv")
TOKENS = {
    "known": KNOWN,
    "other device": issue_token("a", "phone"),
    "other account": issue_token("b", "tv"),
    "expired": issue_token("a", "tv", exp=1),
    "garbage": "garbage",
    "none": None,
    "new": "",
}
STATES = ["active", "active", "active", "lapsed", "too old", "no timeout", "missing", *END_REASONS]
PATHS = [
    "/srm/v1/sessions/%s",
    "/srm/v1/sessions/%s",
    "/srm/sessions/%s",
    "/srm/v1//sessions/%s",
    "/srm/v2/sessions/%s",
    "/srm/v1/sessions/%s/",
    "/srm/v1/sessions/%s%%0A",
    "/srm/v1/sessions/%s?again=1",
    "/srm/v1/sessions",
    "/SRM/v1/sessions/%s",
]
FORMS: dict[str, Callable[[UUID], str]] = {
    "lower": str,
    "upper": lambda id_: str(id_).upper(),
    "hex": lambda id_: id_.hex,
    "braces": lambda id_: f"{{{id_}}}",
    "another": lambda _: str(UUID(int=7)),
    "a word": lambda _: "session",
}
HEADERS: list[dict[str, str]] = [
    {},
    {},
    {"X-Correlation-Id": "of the client"},
    {"X-Correlation-Id": "of-the-client"},
    {"Origin": "https://player.example"},
    {"Origin": "https://other.example"},
    {"Upgrade": "websocket", "Connection": "Upgrade"},
    {"Host": "not a host!"},
    {"Content-Type": "application/json"},
]
BODIES: list[dict[str, Any]] = [
    {},
    {},
    {"data": b""},
    {"data": b"{}"},
    {"data": b"x" * (16 * 1024 + 1)},
    {"environ_overrides": {"CONTENT_LENGTH": "0"}},
    {"environ_overrides": {"CONTENT_LENGTH": "x"}},
    {
        "input_stream": BytesIO(b"chunks"),
        "environ_overrides": {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
    },
]


GENERATED = re.compile(rb'(?!0a1b2c3d)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<="startedAt": ")[^"]*')
EFFECTS = (
    "SELECT device_id, content_id, address, counts, device_group, max_sessions, idempotency_key, ended_by, "
    "ended_at IS NULL, end_reason, last_keep_alive_at > statement_timestamp() - interval '5 s', "
    "ended_at = last_keep_alive_at + make_interval(secs => timeout_seconds) FROM srm.sessions ORDER BY started_at",
    "SELECT device_id, error_code, rule, rule_limit, in_the_way, observed, content_id FROM srm.denials",
)
"""Queries for the traces of a request in the tables, without ids and times."""


@dataclass
class Logged:
    """Log lines of requests, without the duration, which differs from one request to the next."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def info(self, event: str, **members: Any) -> None:
        self.lines.append({"event": event, **{name: members[name] for name in members if name != "duration_ms"}})

    warning = error = info


@dataclass
class Seen:
    """All that a request leads to."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes
    counted: dict[str, float]
    lines: list[dict[str, Any]]
    effects: Any


class Place:
    """A database with one session, and the application with and without the lane on it."""

    def __init__(self, superuser: psycopg.Connection, apps: dict[str, Flask], logged: Logged) -> None:
        self._superuser = superuser
        self._apps = apps
        self._logged = logged

    def see(self, app: str, state: str, method: str, path: str, **options: Any) -> Seen:
        """Put the session into the state, send the request, and return its effects."""
        self._reset(state)
        return self._see(app, method, path, **options)

    def see_setup(self, app: str, account: dict[str, Any], path: str, **options: Any) -> Seen:
        """Put the account into a state, send a setup, and return its effects."""
        self._reset(account["session"])
        columns = ("max_sessions", "on_limit", "same_device", "mode")
        self._superuser.execute(
            f"UPDATE srm.account_profiles SET ({', '.join(columns)}) = (%s, %s, %s, %s) "
            "WHERE profile_id = 'profile of a'",
            [account[name] for name in columns],
        )
        self._superuser.execute("UPDATE srm.accounts SET enabled = %s WHERE account_id = 'a'", [account["enabled"]])
        self._superuser.execute("DELETE FROM srm.denials")
        return self._see(app, "POST", path, **options)

    def send(self, app: str, method: str, path: str, **options: Any) -> TestResponse:
        """Send a request only."""
        return self._apps[app].test_client().open(path, method=method, **options)

    def _see(self, app: str, method: str, path: str, **options: Any) -> Seen:
        client = self._apps[app].test_client()
        client.put(f"/srm/v1/sessions/{UUID(int=9)}", headers={"Client-Token": KNOWN})  # Now the token is known.
        self._logged.lines.clear()
        before = counters()
        answer = client.open(path, method=method, **options)
        counted = {name: value - before.get(name, 0) for name, value in counters().items()}
        headers = [(name, value) for name, value in answer.headers if not is_generated(name, value, options)]
        return Seen(
            answer.status,
            sorted(headers),
            GENERATED.sub(b"an id", answer.data) if method == "POST" else answer.data,
            {name: value for name, value in counted.items() if value},
            [without_new_id(line) for line in self._logged.lines],
            [self._superuser.execute(query).fetchall() for query in EFFECTS],
        )

    def _reset(self, state: str) -> None:
        silent_for = {"lapsed": 31, "no timeout": 1000}.get(state, 10)
        row: dict[str, object] = {"id": ID, "timeout": None if state == "no timeout" else 30, "silent": silent_for}
        row |= {"oldest": 9 if state == "too old" else None, "reason": state if state in END_REASONS else None}
        self._superuser.execute("DELETE FROM srm.sessions")
        if state != "missing":
            self._superuser.execute(
                "INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, max_sessions, "
                "timeout_seconds, max_session_seconds, started_at, last_keep_alive_at, ended_at, end_reason) "
                "SELECT 'a', %(id)s, 'tv', 'COD', 'film', 3, %(timeout)s::int, %(oldest)s::int, at, at, "
                "CASE WHEN %(reason)s::text IS NOT NULL THEN at END, %(reason)s::text "
                "FROM (SELECT statement_timestamp() - make_interval(secs => %(silent)s) AS at) t",
                row,
            )


def counters() -> dict[str, float]:
    """Return counts of everything but connections and batches, by name and labels."""
    return {
        f"{sample.name} {sorted(sample.labels.items())}": sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.endswith(("_count", "_total")) and not sample.name.startswith("srm_database")
    }


def without_new_id(line: dict[str, Any]) -> dict[str, Any]:
    """Return a log line without the id of a session that was set up just now."""
    return (
        {**line, "session": line.get("session") == str(ID)} if (line.get("route") or "").endswith("sessions") else line
    )


def is_generated(name: str, value: str, options: dict[str, Any]) -> bool:
    return name == "X-Correlation-Id" and value != options["headers"].get(name)


@pytest.fixture
def place(
    url: str, factory: Factory, outside: Callable[[str], str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    logged = Logged()
    monkeypatch.setattr(telemetry, "log", logged)
    monkeypatch.setattr(envelope, "log", logged)
    factory.account("a", "tv", "phone")
    factory.account("b", "tv")
    all_settings = Settings(
        database_url=url,
        token_secret=support.SECRET,
        data_dir=tmp_path,
        access_log_sample=1,
        cors_origins="https://player.example",
    )
    apps = {"with lane": create_app(all_settings)}
    with monkeypatch.context() as without:
        without.setattr(lane, "with_lanes", lambda application, _: application)
        apps["without lane"] = create_app(all_settings)
        parts_of(apps["without lane"]).lanes.close()  # Nothing is batched: the ordinary way defines the behaviour.
    with psycopg.connect(outside(url), autocommit=True) as superuser:
        yield Place(superuser, apps, logged)
    for app in apps.values():
        parts_of(app).database.dispose()
        parts_of(app).lanes.close()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(STATES),
    st.sampled_from(["PUT", "PUT", "PUT", "DELETE", "DELETE", "GET", "POST", "OPTIONS", "HEAD"]),
    st.sampled_from(PATHS),
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(sorted(TOKENS)),
    st.sampled_from(HEADERS),
    st.sampled_from(BODIES),
)
@example("active", "PUT", PATHS[0], "upper", "known", HEADERS[3], BODIES[0])
@example("active", "DELETE", PATHS[2], "lower", "known", HEADERS[4], BODIES[0])
@example("active", "PUT", PATHS[0], "lower", "other device", HEADERS[0], BODIES[0])
@example("active", "DELETE", PATHS[0], "lower", "other account", HEADERS[0], BODIES[0])
@example("active", "PUT", PATHS[0], "lower", "known", HEADERS[6], BODIES[0])
@example("active", "PUT", PATHS[0], "lower", "known", HEADERS[0], BODIES[4])
@example("active", "PUT", PATHS[0], "lower", "known", HEADERS[0], BODIES[7])
@example("lapsed", "PUT", PATHS[0], "lower", "known", HEADERS[0], BODIES[0])
@example("lapsed", "DELETE", PATHS[0], "lower", "known", HEADERS[0], BODIES[0])
@example("teardown", "DELETE", PATHS[0], "lower", "known", HEADERS[0], BODIES[0])
@example("too old", "PUT", PATHS[0], "lower", "known", HEADERS[0], BODIES[0])
def test_the_lane_and_the_view_answer_alike(
    place: Place,
    state: str,
    method: str,
    path: str,
    form: str,
    token: str,
    headers: dict[str, str],
    body: dict[str, Any],
) -> None:
    path = path % FORMS[form](ID) if "%s" in path else path
    value = issue_token("a", "tv", jti=str(uuid4())) if token == "new" else TOKENS[token]
    headers = headers if value is None else {**headers, "Client-Token": value}

    with_lane = place.see("with lane", state, method, path, headers=headers, **body)
    without_lane = place.see("without lane", state, method, path, headers=headers, **body)

    assert with_lane == without_lane


FILM = {"content": {"contentID": "film", "contentType": "COD"}}
ACCOUNTS = st.fixed_dictionaries(
    {
        "session": st.sampled_from(["missing", "active", "active", "active", "lapsed", "teardown"]),
        "max_sessions": st.sampled_from([None, 0, 1, 1, 1, 2]),
        "on_limit": st.sampled_from(["deny", "deny", "evict_oldest"]),
        "same_device": st.sampled_from(["count", "count", "replace"]),
        "mode": st.sampled_from(["enforce", "enforce", "observe"]),
        "enabled": st.sampled_from([True, True, True, False]),
    }
)
SETUP_BODIES: list[dict[str, Any]] = [
    *[{"data": json.dumps(FILM)}] * 3,
    {"data": json.dumps({**FILM, "options": {"listConflicts": True}})},
    {"data": json.dumps({**FILM, "options": {"takeOver": [str(ID)]}})},
    {"data": json.dumps({**FILM, "unknown": 1})},
    {"data": json.dumps({"content": {"contentID": "unknown", "contentType": "COD"}})},
    {"data": json.dumps({"content": {"contentID": "film", "contentType": "odd"}})},
    {"data": b"{"},
    {"data": b""},
    {"data": b"\xff"},
    {"data": json.dumps(FILM).ljust(16 * 1024)},
    {"data": json.dumps(FILM).ljust(16 * 1024 + 1)},
    {"data": json.dumps(FILM), "environ_overrides": {"CONTENT_LENGTH": "1000"}},
    {"data": json.dumps(FILM), "environ_overrides": {"CONTENT_LENGTH": "-1"}},
    {"data": json.dumps(FILM), "environ_overrides": {"CONTENT_LENGTH": "10"}},
    {"data": json.dumps(FILM), "environ_overrides": {"HTTP_TRANSFER_ENCODING": "chunked"}},
]
SETUP_HEADERS: list[dict[str, str]] = [
    *HEADERS,
    {"Idempotency-Key": "once"},
    {"Idempotency-Key": "not \x7f"},
    {"X-Forwarded-For": "192.0.2.7"},
]
ORDINARY = {
    "session": "missing",
    "max_sessions": 1,
    "on_limit": "deny",
    "same_device": "count",
    "mode": "enforce",
    "enabled": True,
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ACCOUNTS,
    st.sampled_from(["/srm/v1/sessions", "/srm/v1/sessions", "/srm/sessions", "/srm/v1/sessions/", "/srm/v1/session"]),
    st.sampled_from(sorted(TOKENS)),
    st.sampled_from(SETUP_HEADERS),
    st.sampled_from(SETUP_BODIES),
)
@example(ORDINARY, "/srm/v1/sessions", "known", {}, SETUP_BODIES[0])
@example({**ORDINARY, "session": "active"}, "/srm/sessions", "known", HEADERS[3], SETUP_BODIES[0])
@example({**ORDINARY, "session": "active"}, "/srm/v1/sessions", "known", {}, SETUP_BODIES[3])
@example({**ORDINARY, "session": "active"}, "/srm/v1/sessions", "known", {}, SETUP_BODIES[4])
@example({**ORDINARY, "session": "active", "mode": "observe"}, "/srm/v1/sessions", "known", {}, SETUP_BODIES[0])
@example({**ORDINARY, "session": "lapsed"}, "/srm/v1/sessions", "known", {}, SETUP_BODIES[0])
@example({**ORDINARY, "session": "active", "on_limit": "evict_oldest"}, ON_SESSIONS[0], "known", {}, SETUP_BODIES[0])
@example({**ORDINARY, "session": "active", "same_device": "replace"}, ON_SESSIONS[0], "known", {}, SETUP_BODIES[0])
@example({**ORDINARY, "enabled": False}, "/srm/v1/sessions", "known", {}, SETUP_BODIES[0])
def test_the_lane_and_the_view_answer_setups_alike(
    place: Place, account: dict[str, Any], path: str, token: str, headers: dict[str, str], body: dict[str, Any]
) -> None:
    value = issue_token("a", "tv", jti=str(uuid4())) if token == "new" else TOKENS[token]
    headers = headers if value is None else {**headers, "Client-Token": value}

    with_lane = place.see_setup("with lane", account, path, headers=headers, **body)
    without_lane = place.see_setup("without lane", account, path, headers=headers, **body)

    assert with_lane == without_lane


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", f"/srm/v1/sessions/{ID}", None),
        ("DELETE", f"/srm/sessions/{ID}", None),
        ("POST", "/srm/v1/sessions", FILM),
    ],
)
def test_flask_does_not_see_a_plain_request(
    place: Place, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: object
) -> None:
    place.see("with lane", "active", "PUT", f"/srm/v1/sessions/{ID}", headers={"Client-Token": KNOWN})
    monkeypatch.setattr(Flask, "full_dispatch_request", None)

    assert place.send("with lane", method, path, json=body, headers={"Client-Token": KNOWN}).status_code == 200
