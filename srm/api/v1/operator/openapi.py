"""The OpenAPI document of the operator API, v1: its paths."""

from copy import deepcopy
from typing import Any

from srm import errors
from srm.api.v1.openapi_parts import COMMON_HEADERS, CORRELATION_ID, SESSION_ID, answers_of, ref
from srm.api.v1.operator.lists import LISTED, MOST_LISTED
from srm.db.models import CONTENT_TYPES
from srm.errors import SrmError
from srm.operators import change_log
from srm.operators import sessions as care
from srm.operators.resources import ENTITLEMENTS, KINDS, Kind, Shown, member

MODELS: tuple[type[Shown], ...] = (
    *(kind.resource for kind in KINDS),
    care.SeenSession,
    care.Refusal,
    change_log.Change,
)
EVERYWHERE: tuple[type[SrmError], ...] = (
    errors.MalformedRequest,
    errors.OperatorKeyNotValid,
    errors.NotAllowed,
    errors.InternalError,
    errors.DependencyUnavailable,
)
CHANGING = (errors.ResourceNotFound, errors.Conflict, errors.PreconditionFailed)
WRITING = (*CHANGING, errors.RequestTooLarge)
OPERATOR_KEY = {
    "name": "Operator-Key",
    "in": "header",
    "required": True,
    "description": "As printed by `srm operator add`. Without one, or with one that does not work: SRM-0003",
    "schema": {"type": "string", "minLength": 1},
}
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "The ETag of what is to be changed; 412 when it has been changed since",
    "schema": {"type": "string"},
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "`*`: only create; 412 when it is there",
    "schema": {"const": "*"},
}
NAMES = {"sessionId": SESSION_ID}
BEHIND_ID = r"^[^\x00\ufffd]+$"
UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
BEHIND_INSTANT = (
    rf"^{UUID}_[12][0-9]{{3}}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z$"
)
BEHIND_SESSION = rf"^{UUID}_[^\x00\ufffd]+$"
IN_QUERY = r"^[^\x00-\x1f\x7f-\x9f\ufffd]+$"
INSTANT = {"type": "string", "format": "date-time"}
ETAG = {"description": "Names this state of it", "required": True, "schema": {"type": "string"}}


def bodies(schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas of what is sent, from those of the answers: to replace a resource, and to change some of it."""
    found = {"GroupRulePatch": _patch(schemas["GroupRule"])}
    for kind in KINDS:
        body = deepcopy(schemas[_of(kind)])
        for name in map(member, kind.key):
            del body["properties"][name]
            body["required"].remove(name)
        for what in body["properties"].values():
            if "patternProperties" in what:  # the keys of an object
                what["additionalProperties"] = False
        body["description"] += "\n\nWhat the path names may be repeated in it."
        found[f"{_of(kind)}Body"] = body
        found[f"{_of(kind)}Patch"] = _patch(body)
    return found


def _patch(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a JSON merge patch: nothing is required, and null takes away what need not be there."""
    patch = deepcopy(schema)
    needed = patch.pop("required", ())
    for name, what in patch["properties"].items():
        what.pop("default", None)
        for pattern in what.get("patternProperties", ()):
            rule = {"$ref": "#/components/schemas/GroupRulePatch"}
            what["patternProperties"][pattern] = {"anyOf": [rule, {"type": "null"}]}
        if name not in needed and {"type": "null"} not in what.get("anyOf", ()):
            patch["properties"][name] = {"anyOf": [what, {"type": "null"}]}
    return patch


def paths() -> dict[str, Any]:
    """The calls by path and method."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        names = [member(name) for name in kind.key]
        parts = [f"{{{name}}}" for name in names]
        found[f"/{kind.path(*parts[:-1])}"] = {"get": _list(kind, names[:-1])}
        found[f"/{kind.path(*parts)}"] = {
            "get": _get(kind, names),
            "put": _put(kind, names),
            "patch": _change(kind, names),
            "delete": _delete(kind, names),
        }
    of_account, of_device = ["accountId"], ["accountId", "deviceId"]
    found["/accounts/{accountId}/sessions"] = {
        "get": _list_of(
            "listSessionsOfAccount",
            "Sessions of an account, the newest first",
            care.SeenSession,
            "sessions",
            of_account,
            _query("state", {"enum": ["active", "ended", "all"], "default": "active"}),
        ),
        "delete": _end("endSessionsOfAccount", "End all sessions of an account", of_account),
    }
    found["/accounts/{accountId}/sessions/{sessionId}"] = {
        "delete": _end("endSession", "End a session", [*of_account, "sessionId"])
    }
    found["/accounts/{accountId}/devices/{deviceId}/sessions"] = {
        "delete": _end("endSessionsOfDevice", "End all sessions of a device", of_device)
    }
    found["/accounts/{accountId}/denials"] = {
        "get": _list_of("listDenials", "Refusals of an account, the newest first", care.Refusal, "denials", of_account)
    }
    watched = (
        _query("contentID", _text()),
        _query("contentType", {"enum": list(CONTENT_TYPES)}),
        _query("deviceGroup", _text()),
        _query("startedBefore", INSTANT),
    )
    found["/operator/sessions"] = {
        "get": _list_of(
            "listSessionsEverywhere",
            "Active sessions of all accounts",
            care.SeenSession,
            "sessions",
            [],
            *watched,
            after=BEHIND_SESSION,
        )
    }
    found["/operator/sessions/count"] = {"get": _count(watched)}
    found["/operator/audit"] = {
        "get": _list_of(
            "listChanges",
            "What operators changed, the newest first",
            change_log.Change,
            "changes",
            [],
            _query("accountId", _text()),
            _query("operator", _text()),
        )
    }
    return found


def _text() -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": 255, "pattern": IN_QUERY}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


def _call(
    operation: str,
    summary: str,
    names: list[str],
    success: dict[str, Any],
    kinds: tuple[type[SrmError], ...] = (),
    *more: dict[str, Any],
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    in_path = [NAMES.get(name, {"name": name, "in": "path", "required": True, "schema": _in_path()}) for name in names]
    call: dict[str, Any] = {
        "operationId": operation,
        "tags": ["operator"],
        "summary": summary,
        "parameters": [*in_path, *more, OPERATOR_KEY, CORRELATION_ID],
        "responses": dict(sorted({**answers_of((*EVERYWHERE, *kinds)), **success}.items())),
    }
    if body is not None:
        call["requestBody"] = {"required": True, "content": body}
    return call


def _in_path() -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^/\x00-\x1f\x7f-\x9f\ufffd]+$"}


def _of(kind: Kind) -> str:
    return kind.resource.__name__


def _success(schema: dict[str, Any], description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {**COMMON_HEADERS, **(headers or {})},
        "content": {"application/json": {"schema": schema}},
    }


def _list_of(
    operation: str,
    summary: str,
    each: type,
    name: str,
    names: list[str],
    *more: dict[str, Any],
    after: str = BEHIND_INSTANT,
) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": [name],
        "properties": {
            name: {"type": "array", "items": ref(each)},
            "next": {
                "type": "string",
                "description": "Where the next page begins: send it as `after`. Left out at the end",
            },
        },
    }
    limit = _query("limit", {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": LISTED})
    behind = {
        **_query("after", {"type": "string", "minLength": 1, "pattern": after}),
        "description": "The `next` of the page before",
    }
    kinds = (errors.ResourceNotFound,) if names else ()
    return _call(operation, summary, names, {"200": _success(schema, "The list")}, kinds, *more, limit, behind)


def _list(kind: Kind, names: list[str]) -> dict[str, Any]:
    summary = f"{kind.plural.capitalize()}, by id"
    operation = f"list{kind.plural.capitalize()}"
    return _list_of(operation, summary, kind.resource, kind.plural, names, after=BEHIND_ID)


def _get(kind: Kind, names: list[str]) -> dict[str, Any]:
    success = {"200": _success(ref(kind.resource), "As it is", {"ETag": ETAG})}
    return _call(f"get{_of(kind)}", f"Read: {_of(kind).lower()}", names, success, (errors.ResourceNotFound,))


def _put(kind: Kind, names: list[str]) -> dict[str, Any]:
    success = {
        "200": _success(ref(kind.resource), "Replaced", {"ETag": ETAG}),
        "201": _success(ref(kind.resource), "Created", {"ETag": ETAG}),
    }
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_of(kind)}Body"}}}
    summary = f"Create or replace: {_of(kind).lower()}"
    return _call(f"put{_of(kind)}", summary, names, success, WRITING, IF_MATCH, IF_NONE_MATCH, body=body)


def _change(kind: Kind, names: list[str]) -> dict[str, Any]:
    success = {"200": _success(ref(kind.resource), "Changed", {"ETag": ETAG})}
    body = {"application/merge-patch+json": {"schema": {"$ref": f"#/components/schemas/{_of(kind)}Patch"}}}
    summary = f"Change some of it (RFC 7396): {_of(kind).lower()}"
    return _call(f"patch{_of(kind)}", summary, names, success, WRITING, IF_MATCH, body=body)


def _delete(kind: Kind, names: list[str]) -> dict[str, Any]:
    success = {"204": {"description": "It is gone", "headers": COMMON_HEADERS}}
    more = [IF_MATCH]
    if kind is ENTITLEMENTS:
        end_sessions = {"enum": ["true", "false"], "default": "false"}
        more.append({**_query("endSessions", end_sessions), "description": "Also end the sessions that needed it"})
    return _call(f"delete{_of(kind)}", f"Remove: {_of(kind).lower()}", names, success, CHANGING, *more)


def _end(operation: str, summary: str, names: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "required": ["ended"], "properties": {"ended": {"type": "integer", "minimum": 0}}}
    kinds: tuple[type[SrmError], ...] = (errors.ResourceNotFound,)
    if "sessionId" in names:
        kinds = (*kinds, errors.SessionNotFound)
    return _call(operation, summary, names, {"200": _success(schema, "How many were active, and have ended")}, kinds)


def _count(watched: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    schema = {"type": "object", "required": ["count"], "properties": {"count": {"type": "integer", "minimum": 0}}}
    success = {"200": _success(schema, "How many there are")}
    return _call("countSessionsEverywhere", "Count active sessions of all accounts", [], success, (), *watched)
