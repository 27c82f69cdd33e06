"""POST /srm/v1/sessions.

docs/design.md, "Wire contract", and docs/design.md, Invariant 5: times are those of the database.
"""

import json
from datetime import timedelta
from io import BytesIO
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, literal, select
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from werkzeug.test import TestResponse

from srm.db import models
from srm.db.connection import BoundedConnection, conninfo
from srm.db.database import Database
from srm.playback import entitlements
from tests.support import SETUP, Factory, error_of, issue_token, rows, session_count, session_row

URL = "/srm/v1/sessions"
LIMIT = 16 * 1024
MALFORMED = (400, "ERROR", "SRM-0002")
ACCOUNT_DENIED = (200, "DENIED", "SRM-0004")
DEVICE_DENIED = (200, "DENIED", "SRM-0005")
LIMIT_REACHED = (200, "DENIED", "SRM-0006")
CONTENT_DENIED = (200, "DENIED", "SRM-0007")


def set_up(client: FlaskClient, account: str = "a", device: str = "tv", **options: Any) -> TestResponse:
    """Ask for a setup that is right, unless the options say otherwise."""
    options.setdefault("headers", {"Client-Token": issue_token(account, device)})
    if "data" not in options:
        options.setdefault("json", SETUP)
    return client.post(URL, **options)


def play(content_id: Any, content_type: Any = "COD") -> dict[str, Any]:
    return {"content": {"contentID": content_id, "contentType": content_type}}


def success_of(answer: TestResponse) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.get_json()["successResponse"]


@pytest.mark.parametrize("prefix", ["/srm/v1", "/srm"])
def test_setup_takes_a_slot(client: FlaskClient, factory: Factory, database: Database, prefix: str) -> None:
    factory.account("a", max_sessions=3, timeout_seconds=30)

    answer = client.post(f"{prefix}/sessions", json=SETUP, headers={"Client-Token": issue_token("a", "tv")})

    assert answer.status_code == 200
    success = answer.get_json()["successResponse"]
    assert success.keys() == {"sessionId", "timeout"}
    assert success["timeout"] == 30
    row = session_row(database, UUID(success["sessionId"]))
    assert (row.account_id, row.device_id, row.content_type, row.content_id) == ("a", "tv", "COD", "film")
    assert (row.timeout_seconds, row.max_sessions, row.ended_at) == (30, 3, None)


def test_setup_answers_with_the_documented_members_only(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")

    answer = set_up(client)

    assert answer.content_type == "application/json"
    assert list(answer.get_json()) == ["successResponse"]
    session_id = answer.get_json()["successResponse"]["sessionId"]
    assert str(UUID(session_id)) == session_id


def test_setup_leaves_the_timeout_out_when_keep_alive_is_disabled(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("a", timeout_seconds=None)

    success = success_of(set_up(client))

    assert list(success) == ["sessionId"]
    assert session_row(database, success["sessionId"]).timeout_seconds is None


def test_setup_stamps_the_session_with_the_clock_of_the_database(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("a")
    (before,) = rows(database, "SELECT statement_timestamp()")[0]

    row = session_row(database, success_of(set_up(client))["sessionId"])

    (after,) = rows(database, "SELECT statement_timestamp()")[0]
    assert before < row.started_at == row.last_keep_alive_at < after


# Malformed requests

BODIES = {
    "empty": b"",
    "not JSON": b"<content/>",
    "cut off": b'{"content": {"contentID": "film"',
    "two documents": json.dumps(SETUP).encode() * 2,
    "not UTF-8": b'{"content": {"contentID": "\xff\xfe", "contentType": "COD"}}',
    "UTF-16": json.dumps(SETUP).encode("utf-16"),
    "list": b"[]",
    "string": b'"content"',
    "number": b"1",
    "null": b"null",
    "no content": b"{}",
    "content null": b'{"content": null}',
    "content list": b'{"content": ["film", "COD"]}',
    "content string": b'{"content": "film"}',
    "content number": b'{"content": 1}',
    "no contentID": b'{"content": {"contentType": "COD"}}',
    "no contentType": b'{"content": {"contentID": "film"}}',
    "members of other case": b'{"content": {"contentId": "film", "contenttype": "COD"}}',
    "100,000 brackets": b"[" * 100_000,
    "8,000 brackets": b"[" * 8_000 + b"]" * 8_000,
    "8,000 objects": b'{"":' * 4_000,
    "brackets in an unknown member": b'{"x": ' + b"[" * 8_000 + b"]" * 8_000 + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_malformed_body_is_rejected(client: FlaskClient, factory: Factory, database: Database, body: bytes) -> None:
    factory.account("a")

    answer = set_up(client, data=body, content_type="application/json")

    expected = MALFORMED if len(body) <= LIMIT else (413, "ERROR", "SRM-0002")
    assert error_of(answer) == expected
    assert session_count(database) == 0


def test_a_setup_without_a_body_is_rejected(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a")

    answer = set_up(client, data=None)

    assert error_of(answer) == MALFORMED
    assert answer.get_json()["errorResponse"] == {
        "code": "400",
        "status": "ERROR",
        "errorCode": "SRM-0002",
        "errorMessage": "Malformed request or mandatory parameters missing from request",
    }
    assert session_count(database) == 0


WRONG = {
    "null": "null",
    "number": "5",
    "true": "true",
    "list": '["film"]',
    "object": "{}",
    "empty": '""',
    "256 characters": json.dumps("x" * 256),
    "256 characters that are not ASCII": json.dumps("é" * 256, ensure_ascii=False),
    "NUL": '"film\\u0000"',
    "newline": '"fi\\nlm"',
    "newline at the end": '"film\\n"',
    "bare newline": '"fi\nlm"',
    "DEL": '"film\x7f"',
    "C1 control character": '"film\\u0085"',
    "last C1 control character": '"film\x9f"',
    "lone surrogate": '"\\ud800"',
    "surrogates in the wrong order": '"\\udc00\\ud800"',
}
WRONG_TYPES = {
    **WRONG,
    "unknown": '"VOD"',
    "lower case": '"cod"',
    "space": '"COD "',
    "two": '"COD,LIVE"',
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_content_id_is_rejected(client: FlaskClient, factory: Factory, database: Database, value: str) -> None:
    factory.account("a")

    answer = set_up(client, data=f'{{"content": {{"contentID": {value}, "contentType": "COD"}}}}'.encode())

    assert error_of(answer) == MALFORMED
    assert session_count(database) == 0


@pytest.mark.parametrize("value", WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
def test_a_wrong_content_type_is_rejected(
    client: FlaskClient, factory: Factory, database: Database, value: str
) -> None:
    factory.account("a")

    answer = set_up(client, data=f'{{"content": {{"contentID": "film", "contentType": {value}}}}}'.encode())

    assert error_of(answer) == MALFORMED
    assert session_count(database) == 0


@pytest.mark.parametrize("content_id", ["x" * 255, "é" * 255, "🎬" * 255, " a/b?c=%00&d ", "'; DROP TABLE x; --"])
def test_a_content_id_may_have_any_other_characters(
    client: FlaskClient, factory: Factory, database: Database, content_id: str
) -> None:
    factory.content(content_id)
    factory.product("odd", ("COD", content_id))
    factory.account("a", products=("odd",))

    success = success_of(set_up(client, json=play(content_id)))

    assert session_row(database, success["sessionId"]).content_id == content_id


def padded(size: int) -> bytes:
    """Body of a setup of so many bytes, filled up with an unknown member."""
    body = json.dumps({**SETUP, "padding": ""})
    return json.dumps({**SETUP, "padding": "x" * (size - len(body))}).encode()


def test_a_body_of_16_kib_is_accepted(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    body = padded(LIMIT)
    assert len(body) == LIMIT

    assert success_of(set_up(client, data=body))


@pytest.mark.parametrize("size", [LIMIT + 1, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_16_kib_is_rejected(
    client: FlaskClient, factory: Factory, database: Database, size: int, chunked: bool
) -> None:
    factory.account("a")
    # Gunicorn passes a chunked body on like this: without a length, as a stream that ends by itself.
    options: dict[str, Any] = {"data": padded(size)}
    if chunked:
        environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
        options = {"json": None, "input_stream": BytesIO(padded(size)), "environ_overrides": environ}

    answer = set_up(client, **options)

    assert error_of(answer) == (413, "ERROR", "SRM-0002")
    assert answer.get_json()["errorResponse"]["code"] == "413"
    assert session_count(database) == 0


def test_unknown_members_are_ignored(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    content = {**SETUP["content"], "contentid": 1, "bitrate": {"max": [1, 2.5e300]}}

    assert success_of(set_up(client, json={"content": content, "device": None, "accountId": "b"}))


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/xml", "multipart/form-data", "garbage; =;", "é"]
)
def test_the_body_is_json_whatever_the_content_type_says(
    client: FlaskClient, factory: Factory, content_type: str | None
) -> None:
    factory.account("a")

    assert success_of(set_up(client, data=json.dumps(SETUP), content_type=content_type))


# Order of the checks. Each test breaks two neighbours at once; the first of them has to be the answer.


@pytest.mark.parametrize("token", [None, "", "garbage"])
def test_the_request_is_checked_before_the_token(client: FlaskClient, token: str | None) -> None:
    headers = {} if token is None else {"Client-Token": token}

    assert error_of(set_up(client, data=b"{}", headers=headers)) == MALFORMED


def test_the_token_is_checked_before_the_account(client: FlaskClient) -> None:
    token = issue_token("unknown", "tv", exp=1)

    assert error_of(set_up(client, headers={"Client-Token": token})) == (401, "ERROR", "SRM-0003")


def test_the_account_is_checked_before_the_device(client: FlaskClient, factory: Factory) -> None:
    factory.account("a", enabled=False)

    assert error_of(set_up(client, device="unknown")) == ACCOUNT_DENIED


def test_the_device_is_checked_before_the_content(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")

    assert error_of(set_up(client, device="unknown", json=play("unknown"))) == DEVICE_DENIED


def test_the_content_is_checked_before_the_limits(client: FlaskClient, factory: Factory) -> None:
    factory.account("a", max_sessions=0)

    assert error_of(set_up(client, json=play("unknown"))) == CONTENT_DENIED


# Account and device


@pytest.mark.parametrize("state", ["unknown", "disabled"])
def test_an_unknown_or_disabled_account_is_denied(
    client: FlaskClient, factory: Factory, database: Database, state: str
) -> None:
    if state == "disabled":
        factory.account("a", enabled=False)

    assert error_of(set_up(client)) == ACCOUNT_DENIED
    assert session_count(database) == 0


@pytest.mark.parametrize("state", ["unknown", "disabled", "of another account"])
def test_an_unknown_or_disabled_device_is_denied(
    client: FlaskClient, factory: Factory, database: Database, state: str
) -> None:
    factory.account("a")
    factory.account("b", "device of b")
    if state == "disabled":
        factory.device("a", "disabled", enabled=False)
    device = "device of b" if state == "of another account" else state

    assert error_of(set_up(client, device=device)) == DEVICE_DENIED
    assert session_count(database) == 0


def test_each_setup_asks_the_database_whether_account_and_device_are_enabled(
    client: FlaskClient, factory: Factory
) -> None:
    factory.account("a")
    success_of(set_up(client))

    factory.change(models.Device, {"device_id": "tv"}, enabled=False)
    assert error_of(set_up(client)) == DEVICE_DENIED

    factory.change(models.Account, {"account_id": "a"}, enabled=False)
    assert error_of(set_up(client)) == ACCOUNT_DENIED


# Content access


@pytest.mark.parametrize("content", [play("film", "LIVE"), play("other"), play("unknown"), play("FILM")])
def test_content_outside_the_products_of_the_account_is_denied(
    client: FlaskClient, factory: Factory, database: Database, content: dict[str, Any]
) -> None:
    factory.content("other")
    factory.product("not sold", ("COD", "other"))
    factory.account("a")
    factory.account("b", products=("not sold",))

    assert error_of(set_up(client, json=content)) == CONTENT_DENIED
    assert session_count(database) == 0


def test_an_account_without_entitlements_is_denied(client: FlaskClient, factory: Factory) -> None:
    factory.account("a", products=())

    assert error_of(set_up(client)) == CONTENT_DENIED


@pytest.mark.parametrize(
    ("valid_from", "valid_until", "granted"),
    [
        (-60, None, True),
        (-60, 60, True),
        (60, None, False),
        (-60, -1, False),
        (-60, 0, False),
    ],
)
def test_an_entitlement_grants_access_while_it_is_valid(
    client: FlaskClient, factory: Factory, valid_from: int, valid_until: int | None, granted: bool
) -> None:
    factory.account("a")

    def seconds_from_now(count: int) -> Any:
        return func.statement_timestamp() + timedelta(seconds=count)

    until = None if valid_until is None else seconds_from_now(valid_until)
    factory.change(models.Entitlement, {"account_id": "a"}, valid_from=seconds_from_now(valid_from), valid_until=until)

    answer = set_up(client)

    assert ("successResponse" in answer.get_json()) is granted
    assert granted or error_of(answer) == CONTENT_DENIED


@pytest.mark.parametrize(
    ("valid_from", "valid_until", "granted"),
    [("now", None, True), ("now + 1 µs", None, False), (None, "now", False), (None, "now + 1 µs", True)],
)
def test_an_entitlement_is_valid_from_its_start_to_just_before_its_end(
    factory: Factory, database: Database, valid_from: str | None, valid_until: str | None, granted: bool
) -> None:
    factory.account("a")
    sql = {
        None: "NULL",
        "now": "statement_timestamp()",
        "now + 1 µs": "statement_timestamp() + interval '1 microsecond'",
    }
    asked = select(entitlements.is_granted(literal("a"), literal("COD"), literal("film"))).compile(
        dialect=PGDialect_psycopg(),  # type: ignore[no-untyped-call]
        compile_kwargs={"literal_binds": True},
    )

    # Statements sent together share one statement_timestamp().
    with psycopg.connect(conninfo(database.url)) as connection:
        cursor = connection.execute(
            f"UPDATE srm.entitlements SET valid_until = {sql[valid_until]}, "
            f"valid_from = coalesce({sql[valid_from]}, valid_from); {asked}".encode()
        )
        cursor.nextset()

        assert cursor.fetchone() == (granted,)


EVENTS = {
    "LIVE of a channel": ("LIVE", "channel", "LIVE", "channel", True),
    "TS of a channel": ("TS", "channel", "TS", "channel", True),
    "CU by the channel of the event": ("CU", "channel", "CU", "event", True),
    "NPVR by the channel of the event": ("NPVR", "channel", "NPVR", "event", True),
    "CU of the event itself": ("CU", "event", "CU", "event", True),
    "NPVR of the event itself": ("NPVR", "event", "NPVR", "event", True),
    "LIVE of an event": ("LIVE", "channel", "LIVE", "event", False),
    "COD of an event": ("COD", "channel", "COD", "event", False),
    "TS of an event": ("TS", "channel", "TS", "event", False),
    "LIVE gives no TS": ("LIVE", "channel", "TS", "channel", False),
    "LIVE gives no CU": ("LIVE", "channel", "CU", "event", False),
    "LIVE gives no NPVR": ("LIVE", "channel", "NPVR", "event", False),
    "CU gives no NPVR": ("CU", "channel", "NPVR", "event", False),
    "CU gives no LIVE": ("CU", "channel", "LIVE", "channel", False),
    "an event gives no other of its channel": ("CU", "event", "CU", "next event", False),
    "an event gives no channel": ("CU", "event", "CU", "channel", False),
    "a channel gives no event of another": ("CU", "channel", "CU", "event elsewhere", False),
    "a channel gives no unknown event": ("CU", "channel", "CU", "unknown", False),
}


@pytest.mark.parametrize("case", EVENTS.values(), ids=EVENTS.keys())
def test_a_product_with_a_channel_grants_the_events_of_the_channel(
    client: FlaskClient, factory: Factory, case: tuple[str, str, str, str, bool]
) -> None:
    sold_type, sold_id, content_type, content_id, granted = case
    factory.content("channel")
    factory.content("channel elsewhere")
    factory.content("event", channel_id="channel")
    factory.content("next event", channel_id="channel")
    factory.content("event elsewhere", channel_id="channel elsewhere")
    factory.product("package", (sold_type, sold_id))
    factory.account("a", products=("package",))

    answer = set_up(client, json=play(content_id, content_type))

    assert ("successResponse" in answer.get_json()) is granted
    assert granted or error_of(answer) == CONTENT_DENIED


# Limits


def test_one_session_beyond_the_limit_is_denied(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a", "tv", "phone", max_sessions=2)
    success_of(set_up(client, device="tv"))
    success_of(set_up(client, device="phone"))

    answer = set_up(client, device="phone")

    assert answer.status_code == 200
    assert answer.get_json() == {
        "errorResponse": {
            "code": "200",
            "status": "DENIED",
            "errorCode": "SRM-0006",
            "errorMessage": "Session Limit Reached",
        }
    }
    assert session_count(database) == 2


def test_each_account_has_a_limit_of_its_own(client: FlaskClient, factory: Factory) -> None:
    profile = factory.profile("of both", max_sessions=1)
    factory.account("a", profile=profile)
    factory.account("b", profile=profile)
    success_of(set_up(client, "a"))

    assert success_of(set_up(client, "b"))


@pytest.mark.parametrize(
    ("max_sessions", "commit"), [(1, b"COMMIT"), (0, b"SET LOCAL synchronous_commit = off; COMMIT")]
)
def test_only_an_admission_waits_for_the_disk(
    client: FlaskClient, factory: Factory, monkeypatch: pytest.MonkeyPatch, max_sessions: int, commit: bytes
) -> None:
    sent: list[bytes] = []
    command = BoundedConnection.command

    def record(self: BoundedConnection, commands: bytes) -> None:
        sent.append(commands)
        command(self, commands)

    monkeypatch.setattr(BoundedConnection, "command", record)
    factory.account("a", max_sessions=max_sessions)

    set_up(client)

    assert sent == [b"BEGIN", commit]


def test_a_limit_of_zero_admits_nobody(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a", max_sessions=0)

    assert error_of(set_up(client)) == LIMIT_REACHED
    assert session_count(database) == 0


def test_without_a_limit_every_setup_is_admitted(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a", max_sessions=None)

    for _ in range(10):
        success = success_of(set_up(client))

    assert session_count(database) == 10
    assert session_row(database, success["sessionId"]).max_sessions is None


def test_a_lowered_limit_holds_for_the_next_setup(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a", max_sessions=2)
    first = success_of(set_up(client))["sessionId"]

    factory.change(models.AccountProfile, {"profile_id": "profile of a"}, max_sessions=1)

    assert error_of(set_up(client)) == LIMIT_REACHED
    assert session_row(database, first).max_sessions == 2


def test_setup_ends_lapsed_sessions_as_of_the_instant_of_their_lapse(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("a", max_sessions=1)
    lapsed = factory.session("a", silent_for=31)

    success_of(set_up(client))

    row = session_row(database, lapsed)
    assert row.end_reason == "expired"
    assert row.ended_at == row.last_keep_alive_at + timedelta(seconds=30)


def test_setup_leaves_lapsed_sessions_of_other_accounts_alone(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("a")
    factory.account("b")
    lapsed = factory.session("b", silent_for=31)

    success_of(set_up(client, "a"))

    assert session_row(database, lapsed).ended_at is None


def test_a_session_counts_until_it_lapses(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a", max_sessions=1)
    alive = factory.session("a", silent_for=25)

    assert error_of(set_up(client)) == LIMIT_REACHED
    assert session_row(database, alive).ended_at is None


def test_an_ended_session_does_not_count(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a", max_sessions=1)
    ended = factory.session("a")
    factory.change(
        models.PlaybackSession,
        {"session_id": ended},
        ended_at=func.statement_timestamp(),
        end_reason="operator",
    )

    assert success_of(set_up(client))
    assert session_row(database, ended).end_reason == "operator"


def test_a_session_without_timeout_counts_however_old_it_is(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("a", max_sessions=1)
    old = factory.session("a", silent_for=365 * 86400, timeout_seconds=None)

    assert error_of(set_up(client)) == LIMIT_REACHED
    assert session_row(database, old).ended_at is None


def test_the_timeout_that_a_session_was_set_up_with_decides_when_it_lapses(
    client: FlaskClient, factory: Factory
) -> None:
    factory.account("a", max_sessions=1, timeout_seconds=30)
    factory.session("a", silent_for=40, timeout_seconds=60)

    assert error_of(set_up(client)) == LIMIT_REACHED
