"""POST /srm/v1/sessions."""

from uuid import UUID

import pytest
from flask.testing import FlaskClient

from srm.database import Database
from tests.support import SETUP, Factory, issue_token, session_row


@pytest.mark.parametrize("prefix", ["/srm/v1", "/srm"])
def test_it_takes_a_slot(client: FlaskClient, factory: Factory, database: Database, prefix: str) -> None:
    factory.account("a", max_sessions=3, timeout_seconds=30)

    answer = client.post(f"{prefix}/sessions", json=SETUP, headers={"Client-Token": issue_token("a", "tv")})

    assert answer.status_code == 200
    success = answer.get_json()["successResponse"]
    assert success.keys() == {"sessionId", "timeout"}
    assert success["timeout"] == 30
    row = session_row(database, UUID(success["sessionId"]))
    assert (row.account_id, row.device_id, row.content_type, row.content_id) == ("a", "tv", "COD", "film")
    assert (row.timeout_seconds, row.max_sessions, row.ended_at) == (30, 3, None)
