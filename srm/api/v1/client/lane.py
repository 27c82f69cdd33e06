"""The lane for keep-alives, teardowns and setups: answers plain requests in front of Flask.

Flask costs as much as everything else that a keep-alive needs. So this layer answers the plain requests, which are
nearly all: well-formed, with a valid token, and such that a batch can decide them. It hands every other request to
Flask unchanged. `srm.api.v1.client.sessions` is the complete implementation and defines the behaviour.
`tests/api/test_lane.py` compares the two.
"""

import json
import re
from collections.abc import Iterable
from io import BytesIO
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask
from pydantic import ValidationError

from srm.api import envelope, telemetry
from srm.api.client_address import client_address
from srm.api.http_errors import is_denial
from srm.api.parts import Parts, parts_of
from srm.api.v1.client import schemas
from srm.api.v1.client.sessions import DECIDED, MAX_BODY_BYTES, body_of, record_admitted, record_denied
from srm.errors import DependencyUnavailable, SrmError
from srm.playback.model import ContentRef, Principal, Result
from srm.playback.setup import SetupRequest
from srm.playback.statements import OwnSession

ON_SESSION = re.compile(r"(/srm(?:/v1)?/sessions/)([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})")
ON_SESSIONS = ("/srm/v1/sessions", "/srm/sessions")
METHODS = ("PUT", "DELETE", "POST")


def with_lanes(application: WSGIApplication, app: Flask) -> WSGIApplication:
    """Wrap the application of Flask. The parts of `app` are looked up anew for each request."""

    def wrapped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method in METHODS:
            parts = parts_of(app)
            principal = _principal(environ, parts)
            if principal is not None and "HTTP_TRANSFER_ENCODING" not in environ and "HTTP_UPGRADE" not in environ:
                answer = _set_up if method == "POST" else _keep_alive_or_tear_down
                body = answer(environ, parts, principal)
                if body is not None:
                    headers = [("Content-Type", "application/json")] if body else []
                    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
                    return (body,)
        return application(environ, start_response)

    return wrapped


def _principal(environ: WSGIEnvironment, parts: Parts) -> Principal | None:
    """Return the account and device of the token. None = Flask has to say what is wrong with the token."""
    token = environ.get("HTTP_CLIENT_TOKEN")
    try:
        return parts.tokens.verify(token) if token else None
    except SrmError:
        return None


def _keep_alive_or_tear_down(environ: WSGIEnvironment, parts: Parts, principal: Principal) -> bytes | None:
    """Keep a session alive or tear it down, and return the empty body of the answer. None = Flask has to answer."""
    path = ON_SESSION.fullmatch(environ["PATH_INFO"])
    if path is None or environ.get("CONTENT_LENGTH", "0") != "0":
        return None
    session = OwnSession(principal.account_id, path[2].lower(), principal.device_id)
    is_teardown = environ["REQUEST_METHOD"] == "DELETE"
    try:
        if not (parts.lanes.teardowns if is_teardown else parts.lanes.keep_alives).submit(session):
            return None
    except DependencyUnavailable:
        return None  # The request is past its deadline: Flask answers 503.
    environ[telemetry.ROUTE] = f"{path[1]}<session_id>"
    environ[telemetry.PRINCIPAL] = principal
    environ[telemetry.SESSION] = session.session_id
    if is_teardown:
        telemetry.record_teardown(session)
    return b""


def _set_up(environ: WSGIEnvironment, parts: Parts, principal: Principal) -> bytes | None:
    """Set a session up, and return the body of the answer. None = Flask has to answer.

    A result that only Flask can answer is left in the environment, so that nothing is decided twice.
    """
    if environ["PATH_INFO"] not in ON_SESSIONS or "HTTP_IDEMPOTENCY_KEY" in environ:
        return None
    if parts.entitlement_service is not None:  # The service may be slow, and the view knows how to wait for it.
        return None
    body = _parse(environ)
    if body is None or body.options.takeOver:
        return None
    content = ContentRef(body.content.contentType, body.content.contentID)
    address = client_address(environ, parts.trusted_proxies)
    setup = SetupRequest(principal, content, access=parts.access_to(principal, content), address=address)
    try:
        result = parts.lanes.set_up_in_batch(setup)
    except DependencyUnavailable as error:
        environ[DECIDED] = Result(error)
        return None
    if result is None:
        return None
    outcome = result.outcome
    if isinstance(outcome, SrmError) and (body.options.listConflicts or not is_denial(outcome)):
        environ[DECIDED] = result
        return None
    environ[telemetry.ROUTE] = environ["PATH_INFO"]
    environ[telemetry.PRINCIPAL] = principal
    if isinstance(outcome, SrmError):
        record_denied(parts, setup, outcome)
        envelope.record_error(environ, outcome)
        return json.dumps(envelope.render(outcome)).encode()
    record_admitted(environ, parts, setup, outcome)
    return body_of(outcome).encode()


def _parse(environ: WSGIEnvironment) -> schemas.SetupRequest | None:
    """Return the body of a setup, and let Flask read it again. None = the body is not as the API describes it."""
    length = environ.get("CONTENT_LENGTH", "")
    if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY_BYTES:
        return None
    try:
        body = environ["wsgi.input"].read(int(length))
    except OSError:
        return None
    environ["wsgi.input"] = BytesIO(body)
    try:
        return schemas.SetupRequest.model_validate_json(body) if len(body) == int(length) else None
    except ValidationError:
        return None
