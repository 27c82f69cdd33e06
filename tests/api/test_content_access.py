"""SRM_ENTITLEMENTS=allow: every account may watch everything; all other checks hold."""

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from srm.db.database import Database
from srm.db.models import Account, Device
from tests.support import SETUP, Factory, error_of, issue_token, rows

UNKNOWN = {"content": {"contentID": "nowhere in the catalogue", "contentType": "LIVE"}}


@pytest.fixture
def client(make_client: Callable[..., FlaskClient], url: str) -> FlaskClient:
    return make_client(database_url=url, entitlements="allow")


def set_up(client: FlaskClient, body: object = UNKNOWN, device: str = "tv") -> str:
    """Set up a session; return `admitted` or the errorCode."""
    headers = {"Client-Token": issue_token("a", device), "Idempotency-Key": "k"}
    answer = client.post("/srm/v1/sessions", json=body, headers=headers)
    return "admitted" if "successResponse" in answer.get_json() else error_of(answer)[2]


def test_with_allow_content_needs_no_entitlement(client: FlaskClient, factory: Factory, database: Database) -> None:
    factory.account("a", products=())

    assert set_up(client) == "admitted"
    assert set_up(client) == "admitted"  # A repeat with the same key.
    assert rows(database, "SELECT content_id, content_type FROM srm.sessions") == [("nowhere in the catalogue", "LIVE")]


def test_with_allow_all_other_checks_still_hold(client: FlaskClient, factory: Factory) -> None:
    factory.account("a", max_sessions=0, products=())

    assert set_up(client, SETUP) == "SRM-0006"
    factory.change(Device, {"account_id": "a"}, enabled=False)
    assert set_up(client, SETUP) == "SRM-0005"
    factory.change(Account, {"account_id": "a"}, enabled=False)
    assert set_up(client, SETUP) == "SRM-0004"
