"""The operator API, v1: accounts, devices, entitlements, and the catalogue."""

from collections.abc import Callable, Container
from functools import partial
from typing import cast

from flask import Blueprint, Response, json, request
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from srm.api import envelope, telemetry
from srm.api.parsing import read_body
from srm.api.v1.operator import lists
from srm.api.v1.operator.lists import malformed
from srm.db.database import Database
from srm.errors import Conflict, MalformedRequest, PreconditionFailed, ResourceNotFound
from srm.operators import provisioning
from srm.operators.provisioning import Key
from srm.operators.resources import ENTITLEMENTS, KINDS, Kind, Resource, member

MAX_BODY_BYTES = 1024 * 1024
"""A product may have thousands of contents."""


def add_routes(blueprint: Blueprint, database: Database) -> None:
    """The routes of all kinds of resources."""

    def list_all(kind: Kind, **of_account: str) -> Response:
        limit, after = lists.limit(), lists.after_text()
        with database.orm() as db:
            found = provisioning.list_(db, kind, _key(of_account), limit=limit + 1, after=after)
        return lists.page(kind.plural, found, limit, lambda last: str(getattr(last, kind.key[-1])))

    def get(kind: Kind, **key: str) -> Response:
        with database.orm() as db:
            return _answer(provisioning.get(db, kind, _key(key)))

    def put(kind: Kind, **key: str) -> Response:
        wanted = _parse(kind, _key(key), _read_json())

        def replace(before: Resource | None) -> Resource:
            _check_preconditions(before)
            return wanted

        return change(kind, _key(key), replace)

    def patch(kind: Kind, **key: str) -> Response:
        changes = _read_json()
        _check_names(kind, changes)

        def merge(before: Resource | None) -> Resource:
            if before is None:
                raise ResourceNotFound
            _check_preconditions(before)
            return _parse(kind, _key(key), merge_patch(before.as_json(), changes), before.values())

        return change(kind, _key(key), merge)

    def change(kind: Kind, key: Key, make: Callable[[Resource | None], Resource]) -> Response:
        try:
            changed = change_once(kind, key, make)
        except provisioning.CreatedMeanwhile:
            try:
                changed = change_once(kind, key, make)
            except provisioning.CreatedMeanwhile as error:  # and removed, and created again
                raise Conflict from error
        return _answer(changed.after, 201 if changed.before is None else 200)

    def change_once(kind: Kind, key: Key, make: Callable[[Resource | None], Resource]) -> provisioning.Changed:
        with database.orm() as db:
            changed = provisioning.change(db, envelope.operator_name(), kind, key, make)
        telemetry.ended(changed.ended)
        return changed

    def delete(kind: Kind, **key: str) -> Response:
        end_sessions = kind is ENTITLEMENTS and lists.one_of("endSessions", ("true", "false")) == "true"
        by = envelope.operator_name()
        with database.orm() as db:
            ended = provisioning.delete(db, by, kind, _key(key), _check_preconditions, end_sessions=end_sessions)
        telemetry.ended(ended)
        return Response(status=204)

    for kind in KINDS:
        parts = [f"<{name}>" for name in kind.key]
        one, all_ = f"/{kind.path(*parts)}", f"/{kind.path(*parts[:-1])}"
        for rule, method, view in (
            (all_, "GET", list_all),
            (one, "GET", get),
            (one, "PUT", put),
            (one, "PATCH", patch),
            (one, "DELETE", delete),
        ):
            blueprint.add_url_rule(rule, f"{view.__name__}_{kind.plural}", partial(view, kind), methods=[method])


def merge_patch(target: object, patch: object) -> object:
    """The target with the patch applied (RFC 7396, section 2)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _key(parts: dict[str, str]) -> Key:
    return tuple(parts.values())


def _check_preconditions(before: Resource | None) -> None:
    """PreconditionFailed when the request is for another state of the resource (RFC 9110, section 13.1)."""
    if_match, if_none_match = (request.environ.get(name) for name in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"))
    if if_match is not None and (before is None or before.etag() not in request.if_match):
        raise PreconditionFailed
    if if_none_match is not None:
        if if_none_match != "*":
            raise malformed("If-None-Match is *")
        if before is not None:
            raise PreconditionFailed("It is there already")


def _read_json() -> object:
    try:
        return cast("object", from_json(read_body(MAX_BODY_BYTES)))
    except ValueError as error:
        raise malformed("not JSON") from error


def _check_names(kind: Kind, changes: object) -> None:
    """Refuse a patch with a name that is none of the resource's.

    Merged, such a name would show only with a value; one that is misspelt and null would be lost.
    """
    try:
        kind.resource.model_validate(changes)
    except ValidationError as error:
        for each in error.errors():
            if each["type"] == "extra_forbidden":
                raise _unfit(each) from error


def _parse(kind: Kind, key: Key, body: object, stored: Container[object] = ()) -> Resource:
    """The resource that the body describes; what names it may be left out there.

    Values that are `stored` already may be such as could not be written now.
    """
    if not isinstance(body, dict):
        raise malformed("not a JSON object")
    named = {member(name): value for name, value in zip(kind.key, key, strict=True)}
    for name, value in named.items():
        if body.get(name, value) != value:
            raise malformed(f"{name} is another one than in the path")
    try:
        return kind.resource.model_validate_json(json.dumps({**body, **named}), strict=True, context=stored)
    except ValidationError as error:
        raise _unfit(error.errors()[0]) from error


def _unfit(error: ErrorDetails) -> MalformedRequest:
    return malformed(f"{'.'.join(map(str, error['loc']))}: {error['msg']}")


def _answer(resource: Resource, status: int = 200) -> Response:
    response = lists.as_json(resource.as_json(), status)
    response.set_etag(resource.etag())
    return response
