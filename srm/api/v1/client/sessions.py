"""The client API, v1: setup, keep-alive and teardown of playback sessions.

A view reads the request, lets `playback` decide within a transaction, and answers once that is committed: on disk,
but for keep-alives. Errors leave as exceptions; `envelope` turns them into answers.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Blueprint, Response, request
from pydantic import ValidationError

from srm.api import telemetry
from srm.api.client_address import client_address
from srm.api.parsing import parse_uuid, read_body
from srm.api.v1.client import schemas
from srm.clients.tokens import TokenVerifier
from srm.db.database import Database
from srm.errors import MalformedRequest, SessionLimitReached, SrmError
from srm.playback import denials
from srm.playback.entitlements import Access
from srm.playback.keep_alive import keep_alive as do_keep_alive
from srm.playback.keep_alive import keep_alive_or_explain as do_keep_alive_or_explain
from srm.playback.listing import list_sessions as list_active
from srm.playback.model import ContentRef, EndedSession, ListedSession, Principal
from srm.playback.setup import set_up as admit
from srm.playback.teardown import tear_down as do_tear_down
from srm.playback.teardown import tear_down_or_explain as do_tear_down_or_explain

MAX_BODY_BYTES = 16 * 1024

IDEMPOTENCY_KEY_FORM = re.compile(r"[!-~]{1,255}")


class Answer(Response):
    """200 with a body of JSON or without one, sent as it was made.

    What costs a Response most is to work out its headers. So nothing that is done to this one later is sent.
    """

    def __init__(self, body: str = "") -> None:
        super().__init__()
        self._body = body.encode()
        self._head = [("Content-Length", str(len(self._body)))]
        if body:
            self._head.append(("Content-Type", "application/json"))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:  # noqa: ARG002
        """The WSGI answer."""
        start_response("200 OK", self._head)
        return (self._body,)


DONE = Answer()
"""Shared by all requests: nothing in it is a request's own, and making one costs as much as the token."""


def create_blueprint(
    database: Database,
    tokens: TokenVerifier,
    trusted_proxies: int,
    access_to: Callable[[Principal, ContentRef], Access],
) -> Blueprint:
    """The routes of the client API, to be registered under `/srm/v1` and under `/srm`."""
    blueprint = Blueprint("v1", __name__)

    @blueprint.post("/sessions")
    def set_up() -> Response:
        setup = _parse_setup()
        idempotency_key = _parse_idempotency_key()
        principal = _authenticate(tokens)
        content = ContentRef(setup.content.contentType, setup.content.contentID)
        address = client_address(request.environ, trusted_proxies)
        access = access_to(principal, content)  # before anything is locked: it may have to ask somebody far away
        ended: list[EndedSession] = []
        try:
            with database.request(access.asked_for_seconds, lambda: telemetry.ended(ended, principal.device_id)) as db:
                admission = admit(
                    db,
                    principal,
                    content,
                    ended,
                    access=access,
                    address=address,
                    idempotency_key=idempotency_key,
                    take_over=setup.options.takeOver,
                )
        except SrmError as refusal:
            if refusal.status == "DENIED":
                telemetry.refused(refusal)
                denials.record(database.hot, principal, content, address, refusal)
            if isinstance(refusal, SessionLimitReached) and setup.options.listConflicts:
                refusal.extension = _conflicts(refusal, list_active(database.hot, principal))
            raise
        telemetry.SETUPS.inc()
        request.environ[telemetry.SESSION] = admission.session_id
        if admission.observed is not None:
            telemetry.refused(admission.observed, observed=True)
            denials.record(database.hot, principal, content, address, admission.observed, observed=True)
        success = schemas.Setup(sessionId=admission.session_id, timeout=admission.timeout_seconds)
        body = schemas.SuccessResponse(successResponse=success).model_dump_json(exclude_none=True)
        return Answer(body)

    @blueprint.get("/sessions")
    def list_sessions() -> Response:
        principal = _authenticate(tokens)
        listed = [_listed(session) for session in list_active(database.hot, principal)]
        answer = schemas.SessionListResponse(successResponse=schemas.SessionList(sessions=listed))
        return Response(answer.model_dump_json(), mimetype="application/json")

    @blueprint.put("/sessions/<session_id>")
    def keep_alive(session_id: str) -> Response:
        session = _parse_session_id(session_id)
        principal = _authenticate(tokens)
        if not do_keep_alive(database.hot, principal, session):
            ended: list[EndedSession] = []
            with database.request(after_commit=lambda: telemetry.ended(ended)) as db:
                do_keep_alive_or_explain(db, principal, session, ended)
        return DONE

    @blueprint.delete("/sessions/<session_id>")
    def tear_down(session_id: str) -> Response:
        session = _parse_session_id(session_id)
        principal = _authenticate(tokens)
        is_torn_down = do_tear_down(database.durable, principal, session)
        if not is_torn_down:
            ended: list[EndedSession] = []
            with database.request(after_commit=lambda: telemetry.ended(ended)) as db:
                is_torn_down = do_tear_down_or_explain(db, principal, session, ended)
        if is_torn_down:
            telemetry.session_ended(principal.account_id, principal.device_id, session, "teardown")
        return DONE

    return blueprint


def _conflicts(refusal: SessionLimitReached, active: Sequence[ListedSession]) -> dict[str, Any]:
    """What the refusal adds: those that have ended since are no longer in the way."""
    in_the_way = [_listed(session) for session in active if session.session_id in refusal.in_the_way]
    rule = schemas.Rule(name=refusal.rule, limit=refusal.limit)
    return {"rule": rule.model_dump(), "conflicts": [session.model_dump(mode="json") for session in in_the_way]}


def _listed(session: ListedSession) -> schemas.ListedSession:
    return schemas.ListedSession(
        sessionId=session.session_id,
        deviceName=session.device_name,
        contentID=session.content_id,
        contentType=session.content_type,
        startedAt=session.started_at,
    )


def _parse_setup() -> schemas.SetupRequest:
    """The body, read as JSON whatever Content-Type says: set-top boxes send odd ones."""
    try:
        return schemas.SetupRequest.model_validate_json(read_body(MAX_BODY_BYTES))
    except ValidationError as error:
        raise MalformedRequest from error


def _parse_idempotency_key() -> str | None:
    """What tells a repeated setup from another one (IETF draft "The Idempotency-Key HTTP Header Field")."""
    key: str | None = request.environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is not None and not IDEMPOTENCY_KEY_FORM.fullmatch(key):
        raise MalformedRequest
    return key


def _parse_session_id(text: str) -> UUID:
    if "CONTENT_LENGTH" in request.environ or "HTTP_TRANSFER_ENCODING" in request.environ:
        read_body(MAX_BODY_BYTES)  # nothing is expected in it, but it may not be too large either
    return parse_uuid(text)


def _authenticate(tokens: TokenVerifier) -> Principal:
    """Account and device that the Client-Token proves.

    MalformedRequest without a token (docs/design.md, "Wire contract"); TokenNotValid when the token is not valid.
    """
    environ = request.environ
    token = environ.get("HTTP_CLIENT_TOKEN")
    if not token:
        raise MalformedRequest
    principal = environ[telemetry.PRINCIPAL] = tokens.verify(token)
    return principal
