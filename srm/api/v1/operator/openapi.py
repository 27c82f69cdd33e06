"""The OpenAPI document of the operator API, v1: its paths and the schemas of its bodies."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from srm import errors
from srm.api.http_errors import PreconditionFailed, RequestTooLarge
from srm.api.v1.openapi_parts import COMMON_HEADERS, CORRELATION_ID, SESSION_ID, answers_of, ref
from srm.api.v1.operator.query import DEFAULT_LIMIT, MAX_LIMIT
from srm.api.v1.operator.wire import field_name, schema_of
from srm.db.models import CONTENT_TYPES
from srm.errors import SrmError
from srm.operators.change_log import Change
from srm.operators.resources import ENTITLEMENTS, KINDS, Kind, ReadModel
from srm.operators.sessions import DenialView, SessionView

Json = dict[str, Any]

SHOWN: tuple[type[ReadModel], ...] = (*(kind.resource for kind in KINDS), SessionView, DenialView, Change)
MODELS = tuple(schema_of(model) for model in SHOWN)
"""The schemas of all answers that are not errors."""

ANY_CALL_ERRORS: tuple[type[SrmError], ...] = (
    errors.MalformedRequest,
    errors.OperatorKeyNotValid,
    errors.NotAllowed,
    errors.InternalError,
    errors.DependencyUnavailable,
)
CHANGE_ERRORS = (errors.ResourceNotFound, errors.Conflict, PreconditionFailed)
WRITE_ERRORS = (*CHANGE_ERRORS, RequestTooLarge)

OPERATOR_KEY = {
    "name": "Operator-Key",
    "in": "header",
    "required": True,
    "description": "The key that `srm operator add` printed. A missing or wrong key gives SRM-0003",
    "schema": {"type": "string", "minLength": 1},
}
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "ETag of the state that is to be changed; 412 when the resource has changed since",
    "schema": {"type": "string"},
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "`*`: only create; 412 when the resource exists",
    "schema": {"const": "*"},
}
ETAG = {
    "ETag": {"description": "Names this state of the resource", "required": True, "schema": {"type": "string"}},
}

PATH_PATTERN = r"^[^/\x00-\x1f\x7f-\x9f\ufffd]+$"
QUERY_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\ufffd]+$"
UUID_PATTERN = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
ID_CURSOR_PATTERN = r"^[^\x00\ufffd]+$"
SESSION_CURSOR_PATTERN = rf"^{UUID_PATTERN}_[^\x00\ufffd]+$"
INSTANT_CURSOR_PATTERN = (
    rf"^{UUID_PATTERN}_[12][0-9]{{3}}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z$"
)
TEXT = {"type": "string", "minLength": 1, "maxLength": 255}


@dataclass(frozen=True)
class Call:
    """What tells one call from the others. `path_names` are its parameters in the path."""

    operation: str
    summary: str
    path_names: list[str]
    success: Json
    failures: tuple[type[SrmError], ...] = ()
    parameters: list[Json] = field(default_factory=list)
    body: Json | None = None

    def document(self) -> Json:
        """Return the call as OpenAPI describes it."""
        in_path = [
            SESSION_ID
            if name == "sessionId"
            else {"name": name, "in": "path", "required": True, "schema": {**TEXT, "pattern": PATH_PATTERN}}
            for name in self.path_names
        ]
        responses = {**answers_of((*ANY_CALL_ERRORS, *self.failures)), **self.success}
        document: Json = {
            "operationId": self.operation,
            "tags": ["operator"],
            "summary": self.summary,
            "parameters": [*in_path, *self.parameters, OPERATOR_KEY, CORRELATION_ID],
            "responses": dict(sorted(responses.items())),
        }
        if self.body is not None:
            document["requestBody"] = {"required": True, "content": self.body}
        return document


def bodies(schemas: Json) -> Json:
    """Return the schemas of bodies, made from those of answers: `…Body` replaces a resource, `…Patch` changes it."""
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
    state = _query("state", {"enum": ["active", "ended", "all"], "default": "active"})
    sessions, denials = _page("sessions", SessionView), _page("denials", DenialView)
    yield (
        "/accounts/{accountId}/sessions",
        "get",
        Call(
            "listSessionsOfAccount",
            "Sessions of an account, newest first",
            of_account,
            sessions,
            (errors.ResourceNotFound,),
            [state, *_paging(INSTANT_CURSOR_PATTERN)],
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
            _paging(INSTANT_CURSOR_PATTERN),
        ),
    )
    yield from _calls_on_all_accounts(sessions)


def _calls_on_all_accounts(sessions: Json) -> Iterator[tuple[str, str, Call]]:
    which = [
        _query("contentID", {**TEXT, "pattern": QUERY_PATTERN}),
        _query("contentType", {"enum": list(CONTENT_TYPES)}),
        _query("deviceGroup", {**TEXT, "pattern": QUERY_PATTERN}),
        _query("startedBefore", {"type": "string", "format": "date-time"}),
    ]
    yield (
        "/operator/sessions",
        "get",
        Call(
            "listSessionsEverywhere",
            "Active sessions of all accounts",
            [],
            sessions,
            parameters=[*which, *_paging(SESSION_CURSOR_PATTERN)],
        ),
    )
    count = {"200": _success(_number("count"), "Number of active sessions")}
    yield (
        "/operator/sessions/count",
        "get",
        Call("countSessionsEverywhere", "Count active sessions of all accounts", [], count, parameters=which),
    )


def _change_log_calls() -> Iterator[tuple[str, str, Call]]:
    which = [_query(name, {**TEXT, "pattern": QUERY_PATTERN}) for name in ("accountId", "operator")]
    yield (
        "/operator/audit",
        "get",
        Call(
            "listChanges",
            "Changes that operators made, newest first",
            [],
            _page("changes", Change),
            parameters=[*which, *_paging(INSTANT_CURSOR_PATTERN)],
        ),
    )


def _list_resources(kind: Kind, names: list[str]) -> Call:
    return Call(
        f"list{kind.plural.capitalize()}",
        f"{kind.plural.capitalize()}, by id",
        names,
        _page(kind.plural, kind.resource),
        (errors.ResourceNotFound,) if names else (),
        _paging(ID_CURSOR_PATTERN),
    )


def _get(kind: Kind, names: list[str]) -> Call:
    success = {"200": _success(ref(kind.resource), "The resource", ETAG)}
    return Call(f"get{_name(kind)}", f"Read: {_name(kind).lower()}", names, success, (errors.ResourceNotFound,))


def _put(kind: Kind, names: list[str]) -> Call:
    success = {
        "200": _success(ref(kind.resource), "Replaced", ETAG),
        "201": _success(ref(kind.resource), "Created", ETAG),
    }
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_name(kind)}Body"}}}
    summary = f"Create or replace: {_name(kind).lower()}"
    return Call(f"put{_name(kind)}", summary, names, success, WRITE_ERRORS, [IF_MATCH, IF_NONE_MATCH], body)


def _patch_call(kind: Kind, names: list[str]) -> Call:
    success = {"200": _success(ref(kind.resource), "Changed", ETAG)}
    body = {"application/merge-patch+json": {"schema": {"$ref": f"#/components/schemas/{_name(kind)}Patch"}}}
    summary = f"Change members (RFC 7396): {_name(kind).lower()}"
    return Call(f"patch{_name(kind)}", summary, names, success, WRITE_ERRORS, [IF_MATCH], body)


def _delete(kind: Kind, names: list[str]) -> Call:
    success = {"204": {"description": "Deleted", "headers": COMMON_HEADERS}}
    parameters: list[Json] = [IF_MATCH]
    if kind is ENTITLEMENTS:
        end_sessions = _query("endSessions", {"enum": ["true", "false"], "default": "false"})
        end_sessions["description"] = "Also end the sessions that only this entitlement allowed"
        parameters.append(end_sessions)
    return Call(f"delete{_name(kind)}", f"Delete: {_name(kind).lower()}", names, success, CHANGE_ERRORS, parameters)


def _end(operation: str, summary: str, names: list[str]) -> Call:
    success = {"200": _success(_number("ended"), "Number of sessions that were active and have ended")}
    failures: tuple[type[SrmError], ...] = (errors.ResourceNotFound,)
    if "sessionId" in names:
        failures = (*failures, errors.SessionNotFound)
    return Call(operation, summary, names, success, failures)


def _name(kind: Kind) -> str:
    """Return the name of the schema of a kind."""
    return kind.resource.__name__


def _query(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "schema": schema}


def _paging(cursor_pattern: str) -> list[Json]:
    """Return the parameters of a list."""
    limit = _query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT})
    after = _query("after", {"type": "string", "minLength": 1, "pattern": cursor_pattern})
    return [limit, {**after, "description": "The `next` of the page before"}]


def _page(name: str, item: type[ReadModel]) -> Json:
    """Return the success of a list."""
    schema = {
        "type": "object",
        "required": [name],
        "properties": {
            name: {"type": "array", "items": ref(item)},
            "next": {
                "type": "string",
                "description": "Cursor of the next page: send it as `after`. Left out on the last page",
            },
        },
    }
    return {"200": _success(schema, "A page of the list")}


def _number(name: str) -> Json:
    """Return the schema of an object with one count in it."""
    return {"type": "object", "required": [name], "properties": {name: {"type": "integer", "minimum": 0}}}


def _success(schema: Json, description: str, headers: Json | None = None) -> Json:
    return {
        "description": description,
        "headers": {**COMMON_HEADERS, **(headers or {})},
        "content": {"application/json": {"schema": schema}},
    }
