"""DELETE /srm/v1/sessions/{sessionId} (docs/design.md, "Wire contract").

Malformed ids, and sessions of other devices, are tested for both calls in test_keep_alive.py.
"""

from uuid import UUID

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func
from werkzeug.test import TestResponse

from srm.db import models
from srm.db.database import Database
from srm.playback.history import archive
from tests.support import SETUP, Factory, error_of, issue_token, rows, session_count, session_row

NOT_FOUND = (404, "ERROR", "SRM-0008")
ENDED = (410, "ERROR", "SRM-0009")


def tear_down(client: FlaskClient, session_id: UUID | str, account: str = "a", device: str = "tv") -> TestResponse:
    return client.delete(f"/srm/v1/sessions/{session_id}", headers={"Client-Token": issue_token(account, device)})


@pytest.mark.parametrize("prefix", ["/srm/v1", "/srm"])
def test_teardown_ends_the_session(client: FlaskClient, factory: Factory, database: Database, prefix: str) -> None:
    factory.account("a")
    session = factory.session(silent_for=5)

    answer = client.delete(f"{prefix}/sessions/{session}", headers={"Client-Token": issue_token("a", "tv")})

    assert (answer.status_code, answer.data) == (200, b"")
    assert "Content-Type" not in answer.headers
    row = session_row(database, session)
    (age,) = rows(database, "SELECT extract(epoch FROM statement_timestamp() - :at)", at=row.ended_at)[0]
    assert 0 < age < 5
    assert row.end_reason == "teardown"


def test_teardown_changes_no_other_session(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a")
    session, other = factory.session(), factory.session()

    tear_down(client, session)

    assert session_row(database, other).ended_at is None


def test_teardown_can_be_repeated(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a")
    session = factory.session()
    tear_down(client, session)
    first = session_row(database, session)

    answer = tear_down(client, session)

    assert (answer.status_code, answer.data) == (200, b"")
    assert session_row(database, session) == first


def test_a_session_in_the_history_is_not_found(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a")
    session = factory.session()
    tear_down(client, session)
    with database.transaction() as db:
        assert archive(db, 0) == 1

    assert error_of(tear_down(client, session)) == NOT_FOUND
    assert session_count(database) == 0


def test_teardown_frees_the_slot_at_once(client: FlaskClient, factory: Factory) -> None:
    factory.account("a", max_sessions=1)
    token = {"Client-Token": issue_token("a", "tv")}

    def set_up() -> TestResponse:
        return client.post("/srm/v1/sessions", json=SETUP, headers=token)

    session_id = set_up().get_json()["successResponse"]["sessionId"]
    assert error_of(set_up()) == (200, "DENIED", "SRM-0006")
    tear_down(client, session_id)

    assert "successResponse" in set_up().get_json()


def test_teardown_of_a_lapsed_session_is_too_late(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a")
    session = factory.session(silent_for=31)

    answer = tear_down(client, session)

    assert error_of(answer) == ENDED
    assert "timed out" in answer.get_json()["errorResponse"]["errorMessage"]
    assert session_row(database, session).end_reason != "teardown"


def test_teardown_ends_a_session_without_timeout_however_old_it_is(
    client: FlaskClient, factory: Factory, database: Database
) -> None:
    factory.account("a")
    session = factory.session(silent_for=365 * 86400, timeout_seconds=None)

    assert tear_down(client, session).status_code == 200
    assert session_row(database, session).end_reason == "teardown"


@pytest.mark.parametrize("reason", [reason for reason in models.END_REASONS if reason != "teardown"])
def test_teardown_does_not_overwrite_another_end(
    client: FlaskClient, factory: Factory, database: Database, reason: str
) -> None:
    factory.account("a")
    session = factory.session()
    factory.change(
        models.PlaybackSession, {"session_id": session}, ended_at=func.statement_timestamp(), end_reason=reason
    )
    before = session_row(database, session)

    assert error_of(tear_down(client, session)) == ENDED
    assert session_row(database, session) == before


@pytest.mark.parametrize(("account", "device"), [("a", "phone"), ("b", "tv")])
def test_another_device_finds_no_session_before_and_after_the_teardown(
    client: FlaskClient, factory: Factory, account: str, device: str
) -> None:
    factory.account("a", "tv", "phone")
    factory.account("b", "tv")
    session = factory.session("a", "tv")

    assert error_of(tear_down(client, session, account, device)) == NOT_FOUND
    assert tear_down(client, session).status_code == 200
    assert error_of(tear_down(client, session, account, device)) == NOT_FOUND


def test_a_keep_alive_after_a_teardown_says_that_the_session_was_torn_down(
    client: FlaskClient, factory: Factory
) -> None:
    factory.account("a")
    session = factory.session()
    tear_down(client, session)

    answer = client.put(f"/srm/v1/sessions/{session}", headers={"Client-Token": issue_token("a", "tv")})

    assert error_of(answer) == ENDED
    assert answer.get_json()["errorResponse"]["errorMessage"] == "Session has ended: it was torn down"
