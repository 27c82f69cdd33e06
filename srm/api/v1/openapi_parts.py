"""What the OpenAPI documents of the client API and of the operator API have in common."""

from typing import Any

from srm import errors
from srm.api.v1.client import schemas
from srm.errors import SrmError

COMMON_HEADERS = {
    "X-Correlation-Id": {
        "description": "The id of the request: its own, when it sent one of 1 to 128 visible ASCII characters, "
        "else a fresh UUID. It stands on every log line of the request",
        "required": True,
        "schema": {"type": "string"},
    },
    "Cache-Control": {"required": True, "schema": {"const": "no-store"}},
}
CORRELATION_ID = {
    "name": "X-Correlation-Id",
    "in": "header",
    "description": "An id of the client's, to find the request in the log",
    "schema": {"type": "string"},
}
SESSION_ID = {
    "name": "sessionId",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
}


def answers_of(kinds: tuple[type[SrmError], ...]) -> dict[str, dict[str, Any]]:
    """Answers that are not a success, by HTTP status."""
    answers: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        headers = dict(COMMON_HEADERS)
        if kind.retry_after_seconds is not None:
            headers["Retry-After"] = {
                "description": "Seconds",
                "required": True,
                "schema": {"type": "string", "pattern": "^[0-9]+$"},
            }
        if kind is errors.SessionHasEnded:
            headers["SRM-End-Reason"] = {
                "description": "Why it has ended, in a word; the message says it for people",
                "required": True,
                "schema": {"enum": list(errors.END_REASON_TEXTS)},
            }
        answers[str(kind.http_status)] = {
            "description": catalogue(
                tuple(other for other in kinds if other.http_status == kind.http_status),
            ),
            "headers": headers,
            "content": {"application/json": {"schema": ref(schemas.ErrorResponse)}},
        }
    return answers


def catalogue(kinds: tuple[type[SrmError], ...]) -> str:
    """The errors as a list, for people."""
    return "\n".join(f"- {kind.error_code}: {kind.message}" for kind in kinds)


def ref(model: type) -> dict[str, str]:
    """A reference to the schema of the model."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}
