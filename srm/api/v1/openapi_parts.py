"""Parts that the OpenAPI paths of the client API and of the operator API share."""

from typing import Any

from srm import errors
from srm.api.http_errors import HTTP_ERRORS
from srm.api.v1.client import schemas
from srm.errors import SrmError

COMMON_HEADERS = {
    "X-Correlation-Id": {
        "description": "Id of the request: the one that it sent, if that has 1 to 128 visible ASCII characters, "
        "else a new UUID. Every log line of the request has it",
        "required": True,
        "schema": {"type": "string"},
    },
    "Cache-Control": {"required": True, "schema": {"const": "no-store"}},
}
CORRELATION_ID = {
    "name": "X-Correlation-Id",
    "in": "header",
    "description": "Id of the client's choice, to find the request in the log",
    "schema": {"type": "string"},
}
SESSION_ID = {
    "name": "sessionId",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
}


def answers_of(kinds: tuple[type[SrmError], ...]) -> dict[str, dict[str, Any]]:
    """Return the answers for these errors, by HTTP status."""
    answers: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        http = HTTP_ERRORS[kind]
        headers = dict(COMMON_HEADERS)
        if http.retry_after_seconds is not None:
            headers["Retry-After"] = {
                "description": "Seconds",
                "required": True,
                "schema": {"type": "string", "pattern": "^[0-9]+$"},
            }
        if kind is errors.SessionHasEnded:
            headers["SRM-End-Reason"] = {
                "description": "Why the session ended, in one word; the message says it for people",
                "required": True,
                "schema": {"enum": list(errors.END_REASON_TEXTS)},
            }
        answers[str(http.code)] = {
            "description": catalogue(tuple(other for other in kinds if HTTP_ERRORS[other].code == http.code)),
            "headers": headers,
            "content": {"application/json": {"schema": ref(schemas.ErrorResponse)}},
        }
    return answers


def catalogue(kinds: tuple[type[SrmError], ...]) -> str:
    """Return the errors as a list for people."""
    return "\n".join(f"- {kind.error_code}: {kind.message}" for kind in kinds)


def ref(model: type) -> dict[str, str]:
    """Return a reference to the schema of the model."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}
