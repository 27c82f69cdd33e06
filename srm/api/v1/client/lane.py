"""The short way for keep-alives and teardowns: answers the plain case in front of Flask.

Flask costs as much as everything else that a keep-alive needs. So this layer answers what nearly all requests are: a
well-formed one, with a token that is known, without a body, on a session that is active. It hands every other request
to Flask as it came. `srm.api.v1.client.sessions` stays the complete implementation and defines the behaviour;
`tests/api/test_lane.py` holds the two against each other.
"""

import re
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask

from srm.api import telemetry
from srm.api.parts import Parts, parts_of
from srm.errors import DependencyUnavailable
from srm.playback.statements import OwnSession

PLAIN_PATH = re.compile(r"(/srm(?:/v1)?/sessions/)([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})")
METHODS = ("PUT", "DELETE")
HEADERS = (("Content-Length", "0"),)


def with_lanes(application: WSGIApplication, app: Flask) -> WSGIApplication:
    """Wrap the application of Flask. `app` has the parts, which are looked up anew for each request."""

    def wrapped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method in METHODS and _is_answered(environ, method, parts_of(app)):
            start_response("200 OK", [*HEADERS])
            return (b"",)
        return application(environ, start_response)

    return wrapped


def _is_answered(environ: WSGIEnvironment, method: str, parts: Parts) -> bool:
    """Do what the request asks for, and note what telemetry needs; False when Flask has to answer."""
    path = PLAIN_PATH.fullmatch(environ["PATH_INFO"])
    principal = parts.tokens.cached(environ.get("HTTP_CLIENT_TOKEN", ""))
    if path is None or principal is None or _has_body(environ) or "HTTP_UPGRADE" in environ:
        return False
    session = OwnSession(principal.account_id, path[2].lower(), principal.device_id)
    try:
        if not (parts.lanes.keep_alives if method == "PUT" else parts.lanes.teardowns).submit(session):
            return False
    except DependencyUnavailable:
        return False  # The request is past its deadline: Flask says so.
    environ[telemetry.ROUTE] = f"{path[1]}<session_id>"
    environ[telemetry.PRINCIPAL] = principal
    environ[telemetry.SESSION] = session.session_id
    if method == "DELETE":
        telemetry.record_teardown(session)
    return True


def _has_body(environ: WSGIEnvironment) -> bool:
    return environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ
