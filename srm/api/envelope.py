"""Exception → errorResponse: the only place where an error becomes an answer."""

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
from srm.errors import SrmError
from srm.logs import CORRELATION_ID

log = structlog.get_logger("srm.api")

SANE_CORRELATION_ID = re.compile(r"[!-~]{1,128}")
"""Visible ASCII: can stand in a header and in a log line."""


def render(error: SrmError) -> dict[str, dict[str, Any]]:
    """The JSON of an error. `code` is the HTTP status as a string (published API)."""
    return {
        "errorResponse": {
            "code": str(error.http_status),
            "status": error.status,
            "errorCode": error.error_code,
            "errorMessage": error.text,
            **error.extension,
        }
    }


def translate(error: Exception) -> SrmError:
    """What of the catalogue any exception means to a client."""
    if isinstance(error, SrmError):
        return error
    if not isinstance(error, HTTPException):
        return errors.InternalError()
    match error.code:
        case 404:
            return errors.ResourceNotFound()
        case 405:
            return errors.MethodNotAllowed()
        case 413:
            return errors.RequestTooLarge()
        case code if code is not None and 400 <= code < 500:
            return errors.MalformedRequest()
    return errors.InternalError()


def answer(cause: Exception) -> Response | RequestRedirect:
    """The answer to a request that ended in an exception; logs it once, with a trace if unexpected."""
    if isinstance(cause, RequestRedirect):
        return cause
    error = translate(cause)
    request.environ[telemetry.ERROR_CODE] = error.error_code
    _log(error, cause)
    response = Response(json.dumps(render(error)), error.http_status, mimetype="application/json")
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, errors.SessionHasEnded):
        response.headers["SRM-End-Reason"] = error.end_reason
    if isinstance(cause, HTTPException) and (allowed := getattr(cause, "valid_methods", None)):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _log(error: SrmError, cause: Exception) -> None:
    facts = telemetry.facts(request.environ, error.http_status)
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
    """Put X-Correlation-Id and Cache-Control on every answer, and the id on every log line of its request; watch it.

    Wraps the application rather than hooking into it: that is cheaper, and covers crashes too.
    """

    def wrapped(environ: WSGIEnvironment, start_response: StartResponse) -> object:
        environ[telemetry.BEGAN_AT] = perf_counter()
        correlation_id = environ.get("HTTP_X_CORRELATION_ID", "")
        if not SANE_CORRELATION_ID.fullmatch(correlation_id):
            correlation_id = str(UUID(int=getrandbits(128), version=4))  # uuid4() asks the system for a secret one
        CORRELATION_ID.set(correlation_id)

        def start(status: str, headers: list[tuple[str, str]], *exc_info: object) -> object:
            telemetry.answered(environ, status, log_sample)
            headers = [header for header in headers if header[0] != "Cache-Control"]
            headers += (("Cache-Control", "no-store"), ("X-Correlation-Id", correlation_id))
            return start_response(status, headers, *exc_info)  # type: ignore[arg-type]

        return application(environ, start)  # type: ignore[arg-type]

    return wrapped  # type: ignore[return-value]


def install(app: Flask, log_sample: float) -> None:
    """Make the application answer everything in the envelope and with the common headers, and be watched."""
    app.register_error_handler(Exception, answer)
    app.wsgi_app = with_common_headers(app.wsgi_app, log_sample)  # type: ignore[assignment, method-assign]
