"""PUT /srm/v1/sessions/{sessionId}.

docs/design.md, "Wire contract", and docs/design.md, Invariant 2: a lapsed session never comes back.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from flask.testing import FlaskClient
from sqlalchemy import func
from werkzeug.test import TestResponse

from srm.db import models
from srm.db.connection import conninfo
from srm.db.database import Database
from srm.playback import keep_alive as rules
from srm.playback import statements
from srm.playback.ending import end_lapsed, find_lapsed
from srm.playback.model import Principal
from tests.support import SETUP, Factory, error_of, issue_token, rows, session_row, wait_until

NOT_FOUND = (404, "ERROR", "SRM-0008")
ENDED = (410, "ERROR", "SRM-0009")
WHY = {
    "teardown": "torn down",
    "expired": "timed out",
    "operator": "operator",
    "evicted": "make room",
    "replaced": "replaced by a session on another device",
    "account_disabled": "account was disabled",
    "device_disabled": "device was disabled",
}


def keep_alive(
    client: FlaskClient, session_id: UUID | str, account: str = "a", device: str = "tv", **options: Any
) -> TestResponse:
    headers = {"Client-Token": issue_token(account, device)}
    return client.put(f"/srm/v1/sessions/{session_id}", headers=headers, **options)


def reap(database: Database) -> None:
    """End lapsed sessions as the reaper does."""
    with database.request() as db:
        end_lapsed(db, find_lapsed(db))


@pytest.mark.parametrize("prefix", ["/srm/v1", "/srm"])
def test_keep_alive_restarts_the_timeout(
    client: FlaskClient, factory: Factory, database: Database, prefix: str
) -> None:
    factory.account("a")
    session = factory.session(silent_for=20)
    before = session_row(database, session)

    answer = client.put(f"{prefix}/sessions/{session}", headers={"Client-Token": issue_token("a", "tv")})

    assert (answer.status_code, answer.data) == (200, b"")
    assert "Content-Type" not in answer.headers
    row = session_row(database, session)
    (age,) = rows(database, "SELECT extract(epoch FROM statement_timestamp() - :at)", at=row.last_keep_alive_at)[0]
    assert 0 < age < 5
    assert (row.started_at, row.ended_at) == (before.started_at, None)


def test_a_new_session_can_be_kept_alive_again_and_again(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    token = {"Client-Token": issue_token("a", "tv")}
    session_id = client.post("/srm/v1/sessions", json=SETUP, headers=token).get_json()["successResponse"]["sessionId"]

    for _ in range(3):
        assert keep_alive(client, session_id).status_code == 200


def test_keep_alive_changes_no_other_session(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a")
    session, other = factory.session(silent_for=20), factory.session(silent_for=20)
    before = session_row(database, other)

    keep_alive(client, session)

    assert session_row(database, other) == before


def test_a_session_id_may_be_in_upper_case(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    session = factory.session()

    assert keep_alive(client, str(session).upper()).status_code == 200


UNLIKE_A_UUID = {
    "a word": "session",
    "a number": "1",
    "braces": "{%s}",
    "URN": "urn:uuid:%s",
    "newline at the end": "%s%%0A",
    "space in front": "%%20%s",
    "NUL at the end": "%s%%00",
    "a digit too many": "%s0",
    "wide digits": "%EF%BC%91" * 8 + "-1111-1111-1111-111111111111",
}


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("form", UNLIKE_A_UUID.values(), ids=UNLIKE_A_UUID.keys())
def test_a_session_id_that_is_not_a_uuid_is_rejected(
    client: FlaskClient, factory: Factory, database: Database, form: str, method: str
) -> None:
    factory.account("a")
    session = factory.session(silent_for=20)
    before = session_row(database, session)
    path = form % session if "%s" in form else form

    answer = client.open(f"/srm/v1/sessions/{path}", method=method, headers={"Client-Token": issue_token("a", "tv")})

    assert error_of(answer) == (400, "ERROR", "SRM-0002")
    assert session_row(database, session) == before


def test_a_uuid_without_hyphens_is_rejected(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")

    assert error_of(keep_alive(client, factory.session().hex)) == (400, "ERROR", "SRM-0002")


def test_the_session_id_is_checked_before_the_token(client: FlaskClient) -> None:
    answer = client.put("/srm/v1/sessions/1", headers={"Client-Token": "garbage"})

    assert error_of(answer) == (400, "ERROR", "SRM-0002")


def test_a_path_without_a_session_id_is_not_found(client: FlaskClient) -> None:
    assert error_of(keep_alive(client, "")) == (404, "ERROR", "SRM-0011")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("state", ["active", "lapsed", "ended"])
def test_another_device_gets_no_hint_that_the_session_exists(
    client: FlaskClient, factory: Factory, database: Database, state: str, method: str
) -> None:
    factory.account("a", "tv", "phone")
    factory.account("b", "tv")
    session = factory.session("a", "tv", silent_for=100 if state == "lapsed" else 0)
    if state == "ended":
        end(factory, session, "operator")
    before = session_row(database, session)

    def call(session_id: UUID, account: str, device: str) -> TestResponse:
        token = {"Client-Token": issue_token(account, device), "X-Correlation-Id": "same"}
        return client.open(f"/srm/v1/sessions/{session_id}", method=method, headers=token)

    unknown = call(uuid4(), "a", "tv")
    assert error_of(unknown) == NOT_FOUND
    for account, device in (("a", "phone"), ("b", "tv"), ("unknown", "tv")):
        answer = call(session, account, device)
        assert (answer.status_code, answer.data) == (unknown.status_code, unknown.data)
        assert dict(answer.headers) == dict(unknown.headers)
    assert session_row(database, session) == before


def test_a_lapsed_session_stays_lapsed_before_and_after_the_reaper(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("a")
    before, after = factory.session(silent_for=31), factory.session(silent_for=31)

    first = keep_alive(client, before)
    reap(database)
    second = keep_alive(client, after)

    assert error_of(first) == error_of(second) == ENDED
    assert first.get_json()["errorResponse"]["errorMessage"] == "Session has ended: it timed out"
    assert second.data == first.data
    for session in (before, after):
        row = session_row(database, session)
        assert row.end_reason == "expired"
        assert row.ended_at == row.last_keep_alive_at + timedelta(seconds=30)
        assert row.last_keep_alive_at < datetime.now(UTC) - timedelta(seconds=31)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_call_waits_for_a_keep_alive_that_began_in_time(
    client: FlaskClient, factory: Factory, database: Database, outside: Callable[[str], str], method: str
) -> None:
    factory.account("a")
    session = factory.session(silent_for=29.5)

    def somebody_waits() -> bool:
        return bool(rows(database, "SELECT FROM pg_locks WHERE NOT granted"))

    def save() -> None:
        wait_until(somebody_waits)
        saving.commit()

    with ThreadPoolExecutor(1) as thread, psycopg.connect(outside(conninfo(database.url))) as saving:
        assert rules.keep_alive(saving.cursor(), Principal("a", "tv"), session)
        wait_until(
            lambda: not rows(database, "SELECT FROM srm.active_sessions")
        )  # The saved session looks lapsed to others.
        saved = thread.submit(save)
        answer = client.open(
            f"/srm/v1/sessions/{session}", method=method, headers={"Client-Token": issue_token("a", "tv")}
        )
        saved.result()

    assert answer.status_code == 200
    assert session_row(database, session).end_reason == {"PUT": None, "DELETE": "teardown"}[method]


@pytest.mark.parametrize(("microseconds", "hit"), [(29_999_999, 1), (30_000_000, 0), (30_000_001, 0)])
def test_a_keep_alive_is_too_late_from_the_instant_of_the_lapse_on(
    factory: Factory, database: Database, microseconds: int, hit: int
) -> None:
    factory.account("a")
    session = factory.session(timeout_seconds=30)
    params = {"account_id": "a", "session_id": session, "device_id": "tv"}

    # Statements sent together share one statement_timestamp().
    with psycopg.connect(conninfo(database.url)) as connection:
        cursor = psycopg.ClientCursor(connection)
        cursor.execute(
            "UPDATE srm.sessions SET last_keep_alive_at = statement_timestamp() - "
            f"interval '{microseconds} microseconds'; {cursor.mogrify(statements.KEEP_ALIVE, params)}".encode()
        )
        cursor.nextset()

        assert cursor.rowcount == hit


def end(factory: Factory, session: UUID, reason: str) -> None:
    factory.change(
        models.PlaybackSession, {"session_id": session}, ended_at=func.statement_timestamp(), end_reason=reason
    )


def test_every_end_reason_has_a_text_in_this_test() -> None:
    assert set(WHY) == set(models.END_REASONS)


@pytest.mark.parametrize(("reason", "words"), WHY.items())
def test_a_keep_alive_of_an_ended_session_says_why_it_ended(
    client: FlaskClient, factory: Factory, database: Database, reason: str, words: str
) -> None:
    factory.account("a")
    session = factory.session()
    end(factory, session, reason)
    before = session_row(database, session)

    answer = keep_alive(client, session)

    assert error_of(answer) == ENDED
    assert words in answer.get_json()["errorResponse"]["errorMessage"]
    assert session_row(database, session) == before


def test_a_session_without_timeout_never_lapses(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a")
    session = factory.session(silent_for=365 * 86400, timeout_seconds=None)
    reap(database)

    assert keep_alive(client, session).status_code == 200


def test_a_session_stays_alive_when_rows_are_disabled_behind_the_api(client: FlaskClient, factory: Factory) -> None:
    # Setups ask whether account and device are enabled. The API ends the sessions that are to stop.
    factory.account("a", enabled=False)
    factory.change(models.Device, {"device_id": "tv"}, enabled=False)

    assert keep_alive(client, factory.session()).status_code == 200


def test_a_keep_alive_never_moves_the_time_back(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a")
    session = factory.session(silent_for=-60)
    before = session_row(database, session)

    assert keep_alive(client, session).status_code == 200

    assert session_row(database, session).last_keep_alive_at == before.last_keep_alive_at


@pytest.mark.parametrize("body", [b"x", b"{}", b"\xff" * 16 * 1024])
def test_a_body_of_a_keep_alive_is_ignored(client: FlaskClient, factory: Factory, body: bytes) -> None:
    factory.account("a")

    assert keep_alive(client, factory.session(), data=body, content_type="application/json").status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_16_kib_is_rejected(
    client: FlaskClient, factory: Factory, database: Database, chunked: bool, method: str
) -> None:
    factory.account("a")
    session = factory.session(silent_for=20)
    before = session_row(database, session)
    body = b"x" * (16 * 1024 + 1)
    options: dict[str, Any] = {"data": body}
    if chunked:
        environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
        options = {"input_stream": BytesIO(body), "environ_overrides": environ}

    answer = client.open(
        f"/srm/v1/sessions/{session}", method=method, headers={"Client-Token": issue_token("a", "tv")}, **options
    )

    assert error_of(answer) == (413, "ERROR", "SRM-0002")
    assert session_row(database, session) == before


def test_a_connection_works_after_it_has_carried_errors(client: FlaskClient, factory: Factory) -> None:
    factory.account("a")
    session = factory.session()

    for _ in range(2):
        assert error_of(keep_alive(client, uuid4())) == NOT_FOUND
        assert keep_alive(client, session).status_code == 200
