"""Building blocks of the OpenAPI document of the operator API, v1: parameters, answers, and a call made of them."""

from dataclasses import dataclass, field
from typing import Any

from srm import errors
from srm.api.http_errors import PreconditionFailed, RequestTooLarge
from srm.api.v1.openapi_parts import COMMON_HEADERS, CORRELATION_ID, SESSION_ID, answers_of, ref
from srm.api.v1.operator.query import DEFAULT_LIMIT, MAX_LIMIT
from srm.errors import SrmError
from srm.operators.resources import ReadModel

Json = dict[str, Any]

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
    """A call of the API. `path_names` are its parameters in the path; `answers` are its successes by HTTP status."""

    operation: str
    summary: str
    path_names: list[str]
    answers: Json
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
        responses = {**answers_of((*ANY_CALL_ERRORS, *self.failures)), **self.answers}
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


def query_parameter(name: str, schema: Json) -> Json:
    """Return an optional parameter of the query string."""
    return {"name": name, "in": "query", "schema": schema}


def paging(cursor_pattern: str) -> list[Json]:
    """Return the parameters of a list."""
    limit = query_parameter("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT})
    after = query_parameter("after", {"type": "string", "minLength": 1, "pattern": cursor_pattern})
    return [limit, {**after, "description": "The `next` of the page before"}]


def page(name: str, item: type[ReadModel]) -> Json:
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
    return {"200": success(schema, "A page of the list")}


def number(name: str) -> Json:
    """Return the schema of an object with one count in it."""
    return {"type": "object", "required": [name], "properties": {name: {"type": "integer", "minimum": 0}}}


def success(schema: Json, description: str, headers: Json | None = None) -> Json:
    """Return an answer with a body of that schema; `headers` come on top of those that all answers have."""
    return {
        "description": description,
        "headers": {**COMMON_HEADERS, **(headers or {})},
        "content": {"application/json": {"schema": schema}},
    }
