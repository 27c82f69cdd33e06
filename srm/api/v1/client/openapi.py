"""OpenAPI paths of the client API, v1."""

from typing import Any

from pydantic import BaseModel

from srm import errors
from srm.api.http_errors import RequestTooLarge
from srm.api.v1.client import schemas
from srm.api.v1.openapi_parts import COMMON_HEADERS, CORRELATION_ID, SESSION_ID, answers_of, catalogue, ref
from srm.errors import SrmError

SET_UP, LIST, KEEP_ALIVE, TEAR_DOWN = "setUp", "listSessions", "keepAlive", "tearDown"
EVERYWHERE: tuple[type[SrmError], ...] = (
    errors.MalformedRequest,
    RequestTooLarge,
    errors.TokenNotValid,
    errors.InternalError,
    errors.DependencyUnavailable,
)
DENIALS = (
    errors.AccountNotEnabled,
    errors.DeviceNotEnabled,
    errors.SessionLimitReached,
    errors.ContentAccessDenied,
)
CLIENT_TOKEN = {
    "name": "Client-Token",
    "in": "header",
    "required": True,
    "description": "JWT with the account, the device and `exp`. Without the header the answer is SRM-0002, with a "
    "token that is not valid SRM-0003",
    "schema": {"type": "string", "minLength": 1},
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Key of the client's choice, a new one for each setup. Repeat a setup whose answer got lost with "
    "its key: while the session is active, the device gets that session instead of another one. A key that was used "
    "for another content is SRM-0002",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}

MODELS: tuple[type[BaseModel], ...] = (
    schemas.SetupRequest,
    schemas.SuccessResponse,
    schemas.SessionListResponse,
    schemas.ErrorResponse,
)


def paths() -> dict[str, Any]:
    """Return the operations by path and method."""
    return {
        "/sessions": {"post": _set_up(), "get": _list_sessions()},
        "/sessions/{sessionId}": {
            "put": _on_session(KEEP_ALIVE, "Keep a session alive", "Restarts its timeout."),
            "delete": _on_session(
                TEAR_DOWN,
                "Tear a session down",
                "Frees its slot. Safe to repeat: a session that this device has torn down answers 200 again, "
                "as long as SRM remembers it.",
            ),
        },
    }


def _set_up() -> dict[str, Any]:
    answers = answers_of(EVERYWHERE)
    answers["200"] = _business_answer("Admitted", schemas.SuccessResponse, DENIALS)
    return {
        "operationId": SET_UP,
        "summary": "Set a session up",
        "description": "Takes a slot of the account, exactly: at no instant does an account hold more active "
        "sessions than its limit. Checked in this order: request, token, account, device, content access, limits. "
        "The body is read as JSON whatever the Content-Type says.",
        "parameters": [CLIENT_TOKEN, IDEMPOTENCY_KEY, CORRELATION_ID],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref(schemas.SetupRequest)}},
        },
        "responses": dict(sorted(answers.items())),
    }


def _list_sessions() -> dict[str, Any]:
    answers = answers_of(tuple(kind for kind in EVERYWHERE if kind is not RequestTooLarge))
    answers["200"] = _business_answer(
        "The list", schemas.SessionListResponse, (errors.AccountNotEnabled, errors.DeviceNotEnabled)
    )
    return {
        "operationId": LIST,
        "summary": "List the active sessions of the account",
        "description": "Sessions of all its devices, the oldest first.",
        "parameters": [CLIENT_TOKEN, CORRELATION_ID],
        "responses": dict(sorted(answers.items())),
    }


def _on_session(operation: str, summary: str, description: str) -> dict[str, Any]:
    answers = answers_of((*EVERYWHERE, errors.SessionNotFound, errors.SessionHasEnded))
    answers["200"] = {"description": "Done", "headers": COMMON_HEADERS}
    return {
        "operationId": operation,
        "summary": summary,
        "description": description,
        "parameters": [SESSION_ID, CLIENT_TOKEN, CORRELATION_ID],
        "responses": dict(sorted(answers.items())),
    }


def _business_answer(success: str, model: type, denials: tuple[type[SrmError], ...]) -> dict[str, Any]:
    """Return a 200 that is a success or a denial by a business rule."""
    return {
        "description": f"{success}: `successResponse`. Denied by a business rule: `errorResponse`\n\n"
        + catalogue(denials),
        "headers": COMMON_HEADERS,
        "content": {"application/json": {"schema": {"oneOf": [ref(model), ref(schemas.ErrorResponse)]}}},
    }
