"""Client API, v1: setup, list, keep-alive and teardown of playback sessions.

A view reads the request, lets `srm.playback` decide within a transaction, and answers once that is committed: on disk,
except for keep-alives and errors. Errors leave as exceptions; `srm.api.envelope` turns them into answers.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Blueprint, Response, request
from pydantic import ValidationError

from srm.api import envelope, telemetry
from srm.api.client_address import client_address
from srm.api.http_errors import is_denial
from srm.api.parsing import parse_uuid, read_body
from srm.api.parts import Parts, parts
from srm.api.v1.client import schemas
from srm.clients.tokens import TokenVerifier
from srm.errors import MalformedRequest, SessionLimitReached, SrmError
from srm.playback.keep_alive import keep_alive, keep_alive_or_explain
from srm.playback.listing import list_sessions
from srm.playback.model import Admission, ContentRef, ListedSession, Principal
from srm.playback.setup import SetupRequest
from srm.playback.teardown import tear_down, tear_down_or_explain

MAX_BODY_BYTES = 16 * 1024

IDEMPOTENCY_KEY_FORM = re.compile(r"[!-~]{1,255}")

DECIDED = "srm.decided"
"""Key of the WSGI environment: result of a setup that the lane has had decided, and that the view has to answer."""

blueprint = Blueprint("client", __name__)
"""Routes of the client API, to be registered under `/srm/v1` and under `/srm`."""


class PreparedResponse(Response):
    """Answer 200 with a body of JSON or none. Headers that are set later are not sent.

    Working out the headers is most of the cost of a Response, so this one has them ready.
    """

    def __init__(self, body: str = "") -> None:
        super().__init__()
        self._body = body.encode()
        self._head = [("Content-Length", str(len(self._body)))]
        if body:
            self._head.append(("Content-Type", "application/json"))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:  # noqa: ARG002
        """Send the answer."""
        start_response("200 OK", self._head)
        return (self._body,)


DONE = PreparedResponse()
"""Answer without a body. All requests share it: nothing in it belongs to one request, and to make one is not free."""


@blueprint.post("/sessions")
def post_session() -> Response:
    """Set a session up."""
    environ, app = request.environ, parts()
    body = _parse_setup()
    idempotency_key = _parse_idempotency_key(environ)
    principal = _authenticate(environ, app.tokens)
    content = ContentRef(body.content.contentType, body.content.contentID)
    setup = SetupRequest(
        principal,
        content,
        access=app.access_to(principal, content),  # Before anything is locked: it may ask a service far away.
        address=client_address(environ, app.trusted_proxies),
        idempotency_key=idempotency_key,
        take_over=body.options.takeOver,
    )
    result = environ.pop(DECIDED, None) or app.lanes.set_up(setup)
    telemetry.record_ended_sessions(result.ended, ended_for=principal.device_id)
    if isinstance(result.outcome, SrmError):
        return _answer_denied(setup, result.outcome, list_conflicts=body.options.listConflicts)
    return _answer_admitted(setup, result.outcome)


def _answer_admitted(setup: SetupRequest, admission: Admission) -> Response:
    record_admitted(request.environ, parts(), setup, admission)
    return PreparedResponse(body_of(admission))


def record_admitted(environ: WSGIEnvironment, app: Parts, setup: SetupRequest, admission: Admission) -> None:
    """Count an admitted setup, and record the denial that was only observed."""
    telemetry.SETUPS.inc()
    environ[telemetry.SESSION] = admission.session_id
    if admission.observed is not None:
        telemetry.count_denial(admission.observed, observed=True)
        app.lanes.record_denial(setup, admission.observed, observed=True)


def body_of(admission: Admission) -> str:
    """Return the JSON that answers an admitted setup."""
    success = schemas.Setup(sessionId=admission.session_id, timeout=admission.timeout_seconds)
    return schemas.SuccessResponse(successResponse=success).model_dump_json(exclude_none=True)


def _answer_denied(setup: SetupRequest, error: SrmError, *, list_conflicts: bool) -> Response:
    """Record the denial, and answer it with the sessions in the way, or raise the error."""
    if is_denial(error):
        record_denied(parts(), setup, error)
    if isinstance(error, SessionLimitReached) and list_conflicts:
        return envelope.respond(error, **_conflicts(error, list_sessions(parts().database.hot, setup.principal)))
    raise error


def record_denied(app: Parts, setup: SetupRequest, denial: SrmError) -> None:
    """Count and record a denial."""
    telemetry.count_denial(denial)
    app.lanes.record_denial(setup, denial)


def _conflicts(denial: SessionLimitReached, active: Sequence[ListedSession]) -> dict[str, Any]:
    """Return the members that name the sessions in the way, without sessions that have ended since."""
    in_the_way = set(denial.conflicts)
    conflicts = [_listed(session) for session in active if session.session_id in in_the_way]
    rule = schemas.Rule(name=denial.rule, limit=denial.limit)
    return {"rule": rule.model_dump(), "conflicts": [session.model_dump(mode="json") for session in conflicts]}


@blueprint.get("/sessions")
def get_sessions() -> Response:
    """List the active sessions of the account."""
    app = parts()
    principal = _authenticate(request.environ, app.tokens)
    listed = [_listed(session) for session in list_sessions(app.database.hot, principal)]
    answer = schemas.SessionListResponse(successResponse=schemas.SessionList(sessions=listed))
    return Response(answer.model_dump_json(), mimetype="application/json")


@blueprint.put("/sessions/<session_id>")
def put_session(session_id: str) -> Response:
    """Keep a session alive. Each player does it every few seconds: this is the hot path."""
    environ, app = request.environ, parts()  # Once each: to find them costs microseconds.
    session = _parse_session_id(environ, session_id)
    principal = _authenticate(environ, app.tokens)
    if not keep_alive(app.database.hot, principal, session):
        with app.database.request(account=principal.account_id) as db:
            result = keep_alive_or_explain(db, principal, session)
        telemetry.record_ended_sessions(result.ended)
        if result.outcome is not None:
            raise result.outcome
    return DONE


@blueprint.delete("/sessions/<session_id>")
def delete_session(session_id: str) -> Response:
    """Tear a session down."""
    environ, app = request.environ, parts()
    session = _parse_session_id(environ, session_id)
    principal = _authenticate(environ, app.tokens)
    is_torn_down_now = tear_down(app.database.durable, principal, session)
    if not is_torn_down_now:
        with app.database.request(account=principal.account_id) as db:
            result = tear_down_or_explain(db, principal, session)
        telemetry.record_ended_sessions(result.ended)
        if isinstance(result.outcome, SrmError):
            raise result.outcome
        is_torn_down_now = result.outcome
    if is_torn_down_now:
        telemetry.record_ended_session(principal.account_id, principal.device_id, session, "teardown")
    return DONE


def _listed(session: ListedSession) -> schemas.ListedSession:
    return schemas.ListedSession(
        sessionId=session.session_id,
        deviceName=session.device_name,
        contentID=session.content_id,
        contentType=session.content_type,
        startedAt=session.started_at,
    )


def _parse_setup() -> schemas.SetupRequest:
    """Return the body, read as JSON whatever the Content-Type says: set-top boxes send odd ones."""
    try:
        return schemas.SetupRequest.model_validate_json(read_body(MAX_BODY_BYTES))
    except ValidationError as error:
        raise MalformedRequest from error


def _parse_idempotency_key(environ: WSGIEnvironment) -> str | None:
    """Return the Idempotency-Key (IETF draft "The Idempotency-Key HTTP Header Field"); None without the header."""
    key: str | None = environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is not None and not IDEMPOTENCY_KEY_FORM.fullmatch(key):
        raise MalformedRequest
    return key


def _parse_session_id(environ: WSGIEnvironment, text: str) -> UUID:
    """Return the session id in the path. A body is ignored, unless it is too large."""
    if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
        read_body(MAX_BODY_BYTES)
    return parse_uuid(text)


def _authenticate(environ: WSGIEnvironment, tokens: TokenVerifier) -> Principal:
    """Return the account and device that ask.

    Raises MalformedRequest without a Client-Token (docs/design.md, "Wire contract"), and TokenNotValid.
    """
    token = environ.get("HTTP_CLIENT_TOKEN")
    if not token:
        raise MalformedRequest
    principal = environ[telemetry.PRINCIPAL] = tokens.verify(token)
    return principal
