"""Errors as answers: the only place where an exception becomes an errorResponse, and the headers of every answer.

Source of the envelope: docs/design.md, "Wire contract".
"""

import json
import re
from random import getrandbits
from time import perf_counter
from typing import Any
from uuid import UUID
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from srm import errors
from srm.api import telemetry
from srm.api.http_errors import HTTP_ERRORS, MethodNotAllowed, RequestTooLarge
from srm.errors import SrmError
from srm.logs import CORRELATION_ID

log = structlog.get_logger("srm.api")

SANE_CORRELATION_ID = re.compile(r"[!-~]{1,128}")
"""Visible ASCII, which may stand in a header and in a log line."""


def render(error: SrmError) -> dict[str, dict[str, Any]]:
    """Return the JSON of an error. Its `code` is the HTTP status as a string, as in the published API."""
    http = HTTP_ERRORS[type(error)]
    return {
        "errorResponse": {
            "code": str(http.code),
            "status": http.status,
            "errorCode": error.error_code,
            "errorMessage": error.text,
        }
    }


def translate(error: Exception) -> SrmError:
    """Return the error of the catalogue that stands for an exception."""
    if isinstance(error, SrmError):
        return error
    if not isinstance(error, HTTPException):
        return errors.InternalError()
    match error.code:
        case 404:
            return errors.ResourceNotFound()
        case 405:
            return MethodNotAllowed()
        case 413:
            return RequestTooLarge()
        case code if code is not None and 400 <= code < 500:
            return errors.MalformedRequest()
    return errors.InternalError()


def answer(cause: Exception) -> Response | RequestRedirect:
    """Return the answer to a request that ended in an exception."""
    if isinstance(cause, RequestRedirect):
        return cause
    response = respond(translate(cause), cause)
    if isinstance(cause, HTTPException) and (allowed := getattr(cause, "valid_methods", None)):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def respond(error: SrmError, cause: Exception | None = None, **members: object) -> Response:
    """Return the answer for an error, and log it once; with the trace of `cause` if it is an InternalError.

    `members`: further members of the errorResponse, for a client that asked for them.
    """
    http = HTTP_ERRORS[type(error)]
    record_error(request.environ, error, cause)
    body = render(error)
    body["errorResponse"] |= members
    response = Response(json.dumps(body), http.code, mimetype="application/json")
    if http.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(http.retry_after_seconds)
    if isinstance(error, errors.SessionHasEnded):
        response.headers["SRM-End-Reason"] = error.end_reason
    return response


def record_error(environ: WSGIEnvironment, error: SrmError, cause: Exception | None = None) -> None:
    """Log the error of a request, with the trace of `cause` for an InternalError, and note its errorCode."""
    environ[telemetry.ERROR_CODE] = error.error_code
    _log(error, telemetry.facts_of(environ, HTTP_ERRORS[type(error)].code), cause or error)


def _log(error: SrmError, facts: dict[str, object], cause: Exception) -> None:
    facts.update(error_code=error.error_code, message=error.text)
    if isinstance(error, errors.SessionLimitReached):
        facts.update(rule=error.rule, limit=error.limit)
    if isinstance(error, errors.ContentAccessDenied) and error.reason is not None:
        facts.update(reason=error.reason)
    if isinstance(error, errors.InternalError):
        log.error("request failed", **facts, exc_info=cause)
    elif isinstance(error, errors.DependencyUnavailable):
        log.warning("dependency unavailable", **facts, cause=errors.first_line(cause.__cause__ or ""))
    else:
        log.info("request refused", **facts)


def with_common_headers(application: WSGIApplication, log_sample: float) -> WSGIApplication:
    """Wrap the application: X-Correlation-Id and Cache-Control on every answer, and telemetry of every request.

    The correlation id also stands on every log line of the request. A wrapper costs less than hooks of Flask, and
    sees answers to crashes too.
    """

    def wrapped(environ: WSGIEnvironment, start_response: StartResponse) -> object:
        environ[telemetry.BEGAN_AT] = perf_counter()
        correlation_id = environ.get("HTTP_X_CORRELATION_ID", "")
        if not SANE_CORRELATION_ID.fullmatch(correlation_id):
            # Not uuid4(), which makes a system call for a number that nobody can guess.
            correlation_id = str(UUID(int=getrandbits(128), version=4))
        CORRELATION_ID.set(correlation_id)

        def start(status: str, headers: list[tuple[str, str]], *exc_info: object) -> object:
            telemetry.record_request(environ, status, log_sample)
            headers = [header for header in headers if header[0] != "Cache-Control"]
            headers += (("Cache-Control", "no-store"), ("X-Correlation-Id", correlation_id))
            return start_response(status, headers, *exc_info)  # type: ignore[arg-type]

        return application(environ, start)  # type: ignore[arg-type]

    return wrapped  # type: ignore[return-value]


def install(app: Flask, log_sample: float) -> None:
    """Make the application answer every error in the envelope, every request with the common headers, and record it."""
    app.register_error_handler(Exception, answer)
    app.wsgi_app = with_common_headers(app.wsgi_app, log_sample)  # type: ignore[assignment, method-assign]
