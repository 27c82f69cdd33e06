"""JSON of the operator API, v1: the names of its fields, and answers."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from flask import Response

from srm.operators import documents
from srm.operators.naming import Model, to_json, with_names
from srm.operators.resources import ReadModel, Resource


def field_name(field: str) -> str:
    """Return the name of a field in the JSON of v1. Today v1 uses the names of documents."""
    return documents.field_name(field)


def schema_of(model: type[Model]) -> type[Model]:
    """Return the model with the names of v1. It parses bodies, and describes itself in the OpenAPI document."""
    return with_names(model, field_name)


def as_json(shown: ReadModel) -> dict[str, Any]:
    """Return the JSON of a resource, session, denial or change."""
    return to_json(shown, field_name)


def etag(content: dict[str, Any]) -> str:
    """Return the entity tag of a resource's JSON: equal for equal JSON (RFC 9110, section 8.8.3)."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def answer(content: dict[str, Any], status: int = 200) -> Response:
    """Return an answer with this JSON."""
    return Response(json.dumps(content), status, mimetype="application/json")


def resource_answer(resource: Resource, status: int = 200) -> Response:
    """Return an answer with the JSON of the resource and its ETag."""
    content = as_json(resource)
    response = answer(content, status)
    response.set_etag(etag(content))
    return response


def page(name: str, found: Sequence[Model], limit: int, cursor_of: Callable[[Model], str]) -> Response:
    """Return an answer with the first `limit` items under `name`, and the cursor in `next` if more were found.

    The caller asks for one item more than the limit, to learn whether there is a next page.
    """
    content: dict[str, Any] = {name: [as_json(item) for item in found[:limit]]}
    if len(found) > limit:
        content["next"] = cursor_of(found[limit - 1])
    return answer(content)
