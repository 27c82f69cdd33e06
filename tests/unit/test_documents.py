"""Names of fields: those of documents, and those that another version of the API could have."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from pydantic import ValidationError

from srm.operators import documents
from srm.operators.naming import to_json, with_names
from srm.operators.resources import GroupRule, Product, ProductContent, Profile
from srm.playback.model import EndedSession

PROFILE = Profile(profile_id="p", max_ip_addresses=2, device_groups={"a_group": GroupRule(max_sessions=1)})
PRODUCT = Product(product_id="x", name="X", contents=[ProductContent(content_type="COD", content_id="film")])


def another_name(field: str) -> str:
    return field.replace("_", "-")


def test_documents_have_camel_case_names_at_any_depth() -> None:
    profile, product = documents.of_resource(PROFILE), documents.of_resource(PRODUCT)

    assert profile["maxIpAddresses"] == 2
    assert profile["deviceGroups"] == {"a_group": {"maxSessions": 1, "counts": True}}
    assert product == {"productId": "x", "name": "X", "contents": [{"contentType": "COD", "contentID": "film"}]}


def test_the_end_of_a_session_is_documented_as_before_and_after() -> None:
    then = datetime(2026, 1, 1, tzinfo=UTC)
    session = EndedSession("a", UUID(int=1), "tv", "COD", "film", then, then, "operator")

    assert documents.before_end(session) == {
        "deviceId": "tv",
        "contentType": "COD",
        "contentID": "film",
        "startedAt": "2026-01-01T00:00:00+00:00",
    }
    assert documents.after_end(session) == {"endedAt": "2026-01-01T00:00:00+00:00", "endReason": "operator"}


def test_another_version_of_the_api_can_rename_all_fields() -> None:
    """At any depth, in both directions, without a change to the resources."""
    shown = to_json(PROFILE, another_name)

    assert shown["max-ip-addresses"] == 2
    assert shown["device-groups"] == {"a_group": {"max-sessions": 1, "counts": True}}
    parsed = with_names(Profile, another_name).model_validate(shown)
    assert documents.of_resource(parsed)["deviceGroups"] == {"a_group": {"maxSessions": 1, "counts": True}}
    with pytest.raises(ValidationError, match="max_ip_addresses"):
        with_names(Profile, another_name).model_validate({"profile-id": "p", "max_ip_addresses": 2})


def test_renaming_leaves_the_resource_itself_alone() -> None:
    with_names(Product, another_name)

    assert PRODUCT.model_dump() == {
        "product_id": "x",
        "name": "X",
        "contents": [{"content_type": "COD", "content_id": "film"}],
    }
