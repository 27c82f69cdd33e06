"""The OpenAPI document of the operator API, v1: its paths, and the schemas of its bodies."""

from collections.abc import Iterator
from copy import deepcopy

from srm import errors
from srm.api.v1.openapi_parts import COMMON_HEADERS, ref
from srm.api.v1.operator.openapi_calls import (
    CHANGE_ERRORS,
    ETAG,
    ID_CURSOR_PATTERN,
    IF_MATCH,
    IF_NONE_MATCH,
    INSTANT_CURSOR_PATTERN,
    QUERY_PATTERN,
    SESSION_CURSOR_PATTERN,
    TEXT,
    WRITE_ERRORS,
    Call,
    Json,
    number,
    page,
    paging,
    query_parameter,
    success,
)
from srm.api.v1.operator.wire import field_name, schema_of
from srm.db.models import CONTENT_TYPES
from srm.errors import SrmError
from srm.operators.change_log import Change
from srm.operators.resources import ENTITLEMENTS, KINDS, Kind, ReadModel
from srm.operators.sessions import DenialView, SessionView

SHOWN: tuple[type[ReadModel], ...] = (*(kind.resource for kind in KINDS), SessionView, DenialView, Change)
MODELS = tuple(schema_of(model) for model in SHOWN)
"""The schemas of all answers that are not errors."""


def bodies(schemas: Json) -> Json:
    """Return the schemas of request bodies, made from `schemas`: `…Body` replaces a resource, `…Patch` changes it."""
    found = {"GroupRulePatch": _patch(schemas["GroupRule"])}
    for kind in KINDS:
        body = deepcopy(schemas[_name(kind)])
        for name in map(field_name, kind.key):
            del body["properties"][name]
            body["required"].remove(name)
        for schema in body["properties"].values():
            if "patternProperties" in schema:  # a key that fits no pattern is refused
                schema["additionalProperties"] = False
        body["description"] += "\n\nThe body may repeat the members that stand in the path."
        found[f"{_name(kind)}Body"] = body
        found[f"{_name(kind)}Patch"] = _patch(body)
    return found


def _patch(schema: Json) -> Json:
    """Return the schema of a JSON merge patch: no member is required, and null removes an optional member."""
    patch = deepcopy(schema)
    required = patch.pop("required", ())
    for name, member in patch["properties"].items():
        member.pop("default", None)
        for pattern in member.get("patternProperties", ()):
            rule = {"$ref": "#/components/schemas/GroupRulePatch"}
            member["patternProperties"][pattern] = {"anyOf": [rule, {"type": "null"}]}
        if name not in required and {"type": "null"} not in member.get("anyOf", ()):
            patch["properties"][name] = {"anyOf": [member, {"type": "null"}]}
    return patch


def paths() -> Json:
    """Return the calls by path and method."""
    found: Json = {}
    for path, method, call in (*_resource_calls(), *_session_calls(), *_change_log_calls()):
        found.setdefault(path, {})[method] = call.document()
    return found


def _resource_calls() -> Iterator[tuple[str, str, Call]]:
    for kind in KINDS:
        names = [field_name(name) for name in kind.key]
        parts = [f"{{{name}}}" for name in names]
        path = f"/{kind.path(*parts)}"
        yield f"/{kind.path(*parts[:-1])}", "get", _list_resources(kind, names[:-1])
        yield path, "get", _get(kind, names)
        yield path, "put", _put(kind, names)
        yield path, "patch", _patch_call(kind, names)
        yield path, "delete", _delete(kind, names)


def _session_calls() -> Iterator[tuple[str, str, Call]]:
    of_account, of_device = ["accountId"], ["accountId", "deviceId"]
    state = query_parameter("state", {"enum": ["active", "ended", "all"], "default": "active"})
    sessions, denials = page("sessions", SessionView), page("denials", DenialView)
    yield (
        "/accounts/{accountId}/sessions",
        "get",
        Call(
            "listSessionsOfAccount",
            "Sessions of an account, newest first",
            of_account,
            sessions,
            (errors.ResourceNotFound,),
            [state, *paging(INSTANT_CURSOR_PATTERN)],
        ),
    )
    yield (
        "/accounts/{accountId}/sessions",
        "delete",
        _end("endSessionsOfAccount", "End all sessions of an account", of_account),
    )
    yield (
        "/accounts/{accountId}/sessions/{sessionId}",
        "delete",
        _end("endSession", "End a session", [*of_account, "sessionId"]),
    )
    yield (
        "/accounts/{accountId}/devices/{deviceId}/sessions",
        "delete",
        _end("endSessionsOfDevice", "End all sessions of a device", of_device),
    )
    yield (
        "/accounts/{accountId}/denials",
        "get",
        Call(
            "listDenials",
            "Denials of an account, newest first",
            of_account,
            denials,
            (errors.ResourceNotFound,),
            paging(INSTANT_CURSOR_PATTERN),
        ),
    )
    yield from _calls_on_all_accounts(sessions)


def _calls_on_all_accounts(sessions: Json) -> Iterator[tuple[str, str, Call]]:
    which = [
        query_parameter("contentID", {**TEXT, "pattern": QUERY_PATTERN}),
        query_parameter("contentType", {"enum": list(CONTENT_TYPES)}),
        query_parameter("deviceGroup", {**TEXT, "pattern": QUERY_PATTERN}),
        query_parameter("startedBefore", {"type": "string", "format": "date-time"}),
    ]
    yield (
        "/operator/sessions",
        "get",
        Call(
            "listSessionsEverywhere",
            "Active sessions of all accounts",
            [],
            sessions,
            parameters=[*which, *paging(SESSION_CURSOR_PATTERN)],
        ),
    )
    count = {"200": success(number("count"), "Number of active sessions")}
    yield (
        "/operator/sessions/count",
        "get",
        Call("countSessionsEverywhere", "Count active sessions of all accounts", [], count, parameters=which),
    )


def _change_log_calls() -> Iterator[tuple[str, str, Call]]:
    which = [query_parameter(name, {**TEXT, "pattern": QUERY_PATTERN}) for name in ("accountId", "operator")]
    yield (
        "/operator/audit",
        "get",
        Call(
            "listChanges",
            "Changes that operators made, newest first",
            [],
            page("changes", Change),
            parameters=[*which, *paging(INSTANT_CURSOR_PATTERN)],
        ),
    )


def _list_resources(kind: Kind, names: list[str]) -> Call:
    return Call(
        f"list{kind.plural.capitalize()}",
        f"{kind.plural.capitalize()}, by id",
        names,
        page(kind.plural, kind.resource),
        (errors.ResourceNotFound,) if names else (),
        paging(ID_CURSOR_PATTERN),
    )


def _get(kind: Kind, names: list[str]) -> Call:
    answers = {"200": success(ref(kind.resource), "The resource", ETAG)}
    return Call(f"get{_name(kind)}", f"Read: {_name(kind).lower()}", names, answers, (errors.ResourceNotFound,))


def _put(kind: Kind, names: list[str]) -> Call:
    answers = {
        "200": success(ref(kind.resource), "Replaced", ETAG),
        "201": success(ref(kind.resource), "Created", ETAG),
    }
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_name(kind)}Body"}}}
    summary = f"Create or replace: {_name(kind).lower()}"
    return Call(f"put{_name(kind)}", summary, names, answers, WRITE_ERRORS, [IF_MATCH, IF_NONE_MATCH], body)


def _patch_call(kind: Kind, names: list[str]) -> Call:
    answers = {"200": success(ref(kind.resource), "Changed", ETAG)}
    body = {"application/merge-patch+json": {"schema": {"$ref": f"#/components/schemas/{_name(kind)}Patch"}}}
    summary = f"Change members (RFC 7396): {_name(kind).lower()}"
    return Call(f"patch{_name(kind)}", summary, names, answers, WRITE_ERRORS, [IF_MATCH], body)


def _delete(kind: Kind, names: list[str]) -> Call:
    answers = {"204": {"description": "Deleted", "headers": COMMON_HEADERS}}
    parameters: list[Json] = [IF_MATCH]
    if kind is ENTITLEMENTS:
        end_sessions = query_parameter("endSessions", {"enum": ["true", "false"], "default": "false"})
        end_sessions["description"] = "Also end the sessions that only this entitlement allowed"
        parameters.append(end_sessions)
    return Call(f"delete{_name(kind)}", f"Delete: {_name(kind).lower()}", names, answers, CHANGE_ERRORS, parameters)


def _end(operation: str, summary: str, names: list[str]) -> Call:
    answers = {"200": success(number("ended"), "Number of sessions that were active and have ended")}
    failures: tuple[type[SrmError], ...] = (errors.ResourceNotFound,)
    if "sessionId" in names:
        failures = (*failures, errors.SessionNotFound)
    return Call(operation, summary, names, answers, failures)


def _name(kind: Kind) -> str:
    """Return the name of the schema of a kind."""
    return kind.resource.__name__
