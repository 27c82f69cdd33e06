"""Bodies of the operator API, v1: parsing resources, and merging patches."""

import json
from collections.abc import Container
from typing import cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from srm.api.parsing import read_body
from srm.api.v1.operator.query import malformed
from srm.api.v1.operator.wire import as_json, field_name, schema_of
from srm.errors import MalformedRequest
from srm.operators.resources import Kind, Resource, ResourceKey

MAX_BODY_BYTES = 1024 * 1024
"""A product may have thousands of contents."""


def read_json() -> object:
    """Read the body. Raises MalformedRequest when it is not JSON; RequestTooLarge over MAX_BODY_BYTES."""
    try:
        return cast("object", from_json(read_body(MAX_BODY_BYTES)))
    except ValueError as error:
        raise malformed("not JSON") from error


def parse(kind: Kind, key: ResourceKey, body: object, stored: Container[object] = ()) -> Resource:
    """Return the resource that the body describes. MalformedRequest names the first member that is wrong.

    The body may repeat the key that stands in the path. Values in `stored` are not checked: the resource has them
    already, and psql may have written what the API would refuse.
    """
    if not isinstance(body, dict):
        raise malformed("not a JSON object")
    key_members = {field_name(name): value for name, value in zip(kind.key, key, strict=True)}
    for name, value in key_members.items():
        if body.get(name, value) != value:
            raise malformed(f"{name} differs from the path")
    text = json.dumps({**body, **key_members})
    try:
        return schema_of(kind.resource).model_validate_json(text, strict=True, context=stored)
    except ValidationError as error:
        raise _wrong_member(error.errors()[0]) from error


def read_patch(kind: Kind) -> object:
    """Read a JSON merge patch. Raises MalformedRequest when it has a member that the resource cannot have.

    A null removes a member in the merge, so a misspelt name would be lost there.
    """
    patch = read_json()
    try:
        schema_of(kind.resource).model_validate(patch)
    except ValidationError as error:
        for details in error.errors():
            if details["type"] == "extra_forbidden":
                raise _wrong_member(details) from error
    return patch


def merge(kind: Kind, key: ResourceKey, present: Resource, patch: object) -> Resource:
    """Return the present resource with the patch applied. MalformedRequest names the first member that is wrong."""
    return parse(kind, key, merge_patch(as_json(present), patch), stored=present.values())


def merge_patch(target: object, patch: object) -> object:
    """Return the target with the patch applied (RFC 7396, section 2)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _wrong_member(error: ErrorDetails) -> MalformedRequest:
    return malformed(f"{'.'.join(map(str, error['loc']))}: {error['msg']}")
