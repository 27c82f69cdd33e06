"""The OpenAPI 3.1 document of the client API, v1, made of the models that validate it."""

from functools import cache
from importlib.metadata import version
from typing import Any

from flask import Response, json
from pydantic.json_schema import models_json_schema

from srm import errors
from srm.api.v1 import schemas
from srm.errors import SrmError

SET_UP, LIST, KEEP_ALIVE, TEAR_DOWN = "setUp", "listSessions", "keepAlive", "tearDown"
EVERYWHERE: tuple[type[SrmError], ...] = (
    errors.MalformedRequest,
    errors.RequestTooLarge,
    errors.TokenNotValid,
    errors.InternalError,
    errors.DependencyUnavailable,
)
REFUSALS = (
    errors.AccountNotEnabled,
    errors.DeviceNotEnabled,
    errors.SessionLimitReached,
    errors.ContentAccessDenied,
)
COMMON_HEADERS = {
    "X-Correlation-Id": {
        "description": "The id of the request: its own, when it sent one of 1 to 128 visible ASCII characters, "
        "else a fresh UUID. It stands on every log line of the request",
        "required": True,
        "schema": {"type": "string"},
    },
    "Cache-Control": {"required": True, "schema": {"const": "no-store"}},
}
CLIENT_TOKEN = {
    "name": "Client-Token",
    "in": "header",
    "required": True,
    "description": "A JWT with the account, the device and `exp`. A request without it is malformed (SRM-0002); "
    "a token that is not valid is SRM-0003",
    "schema": {"type": "string", "minLength": 1},
}
CORRELATION_ID = {
    "name": "X-Correlation-Id",
    "in": "header",
    "description": "An id of the client's, to find the request in the log",
    "schema": {"type": "string"},
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Of the client's choice, new for each setup, and the same when it is repeated as no answer came. "
    "As long as the session is active, its device gets it again instead of another one. The same key with another "
    "content is SRM-0002",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
SESSION_ID = {
    "name": "sessionId",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
}


def show() -> Response:
    """The document."""
    return Response(rendered(), mimetype="application/json")


@cache
def rendered() -> str:
    """The document as JSON."""
    return json.dumps(document(), indent=2, sort_keys=False)


def document() -> dict[str, Any]:
    """The document."""
    models = (schemas.SetupRequest, schemas.SuccessResponse, schemas.SessionListResponse, schemas.ErrorResponse)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "SRM client API",
            "version": version("srm"),
            "description": "Before a player starts a stream it sets a session up; while it plays it keeps the "
            "session alive; when it stops it tears the session down. A client looks for `successResponse`, "
            "never at the HTTP status alone: refusals by a business rule are 200 with an `errorResponse` whose "
            "status is `DENIED`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {"url": "/srm/v1", "description": "This version"},
            {"url": "/srm", "description": "The newest version"},
        ],
        "paths": {
            "/sessions": {"post": _set_up(), "get": _list_sessions()},
            "/sessions/{sessionId}": {
                "put": _on_session(KEEP_ALIVE, "Keep a session alive", "Starts its timeout anew."),
                "delete": _on_session(
                    TEAR_DOWN,
                    "Tear a session down",
                    "Frees its slot. Safe to repeat: a session that this device has torn down answers 200 again "
                    "as long as it is remembered.",
                ),
            },
        },
        "components": {"schemas": definitions["$defs"]},
    }


def _set_up() -> dict[str, Any]:
    answers = _errors(EVERYWHERE)
    answers["200"] = _business_answer("Admitted", schemas.SuccessResponse, REFUSALS)
    return {
        "operationId": SET_UP,
        "summary": "Set a session up",
        "description": "Takes a slot of the account, exactly: at no instant does an account hold more active "
        "sessions than its limit. Checked in this order: request, token, account, device, content access, limits. "
        "The body is read as JSON whatever the Content-Type says.",
        "parameters": [CLIENT_TOKEN, IDEMPOTENCY_KEY, CORRELATION_ID],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(schemas.SetupRequest)}},
        },
        "responses": dict(sorted(answers.items())),
    }


def _list_sessions() -> dict[str, Any]:
    answers = _errors(tuple(kind for kind in EVERYWHERE if kind is not errors.RequestTooLarge))
    answers["200"] = _business_answer(
        "The list", schemas.SessionListResponse, (errors.AccountNotEnabled, errors.DeviceNotEnabled)
    )
    return {
        "operationId": LIST,
        "summary": "List the active sessions of the account",
        "description": "Those of all its devices, the oldest first.",
        "parameters": [CLIENT_TOKEN, CORRELATION_ID],
        "responses": dict(sorted(answers.items())),
    }


def _on_session(operation: str, summary: str, description: str) -> dict[str, Any]:
    answers = _errors((*EVERYWHERE, errors.SessionNotFound, errors.SessionEnded))
    answers["200"] = {"description": "Done", "headers": COMMON_HEADERS}
    return {
        "operationId": operation,
        "summary": summary,
        "description": description,
        "parameters": [SESSION_ID, CLIENT_TOKEN, CORRELATION_ID],
        "responses": dict(sorted(answers.items())),
    }


def _business_answer(success: str, model: type, refusals: tuple[type[SrmError], ...]) -> dict[str, Any]:
    """A 200 that is a success or the refusal of a business rule."""
    return {
        "description": f"{success}: `successResponse`. Refused by a business rule: `errorResponse`\n\n"
        + _catalogue(refusals),
        "headers": COMMON_HEADERS,
        "content": {"application/json": {"schema": {"oneOf": [_ref(model), _ref(schemas.ErrorResponse)]}}},
    }


def _errors(kinds: tuple[type[SrmError], ...]) -> dict[str, dict[str, Any]]:
    """Answers by HTTP status."""
    answers: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        headers = dict(COMMON_HEADERS)
        if kind.retry_after_seconds is not None:
            headers["Retry-After"] = {
                "description": "Seconds",
                "required": True,
                "schema": {"type": "string", "pattern": "^[0-9]+$"},
            }
        if kind is errors.SessionEnded:
            headers["SRM-End-Reason"] = {
                "description": "Why it has ended, in a word; the message says it for people",
                "required": True,
                "schema": {"enum": list(errors.END_REASON_TEXTS)},
            }
        answers[str(kind.http_status)] = {
            "description": _catalogue((kind,)),
            "headers": headers,
            "content": {"application/json": {"schema": _ref(schemas.ErrorResponse)}},
        }
    return answers


def _catalogue(kinds: tuple[type[SrmError], ...]) -> str:
    return "\n".join(f"- {kind.error_code}: {kind.message}" for kind in kinds)


def _ref(model: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
