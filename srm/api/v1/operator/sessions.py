"""The operator API, v1: sessions, refusals, and the record of what operators did."""

from collections.abc import Sequence
from typing import cast, get_args

from flask import Blueprint, Response

from srm.api import envelope, telemetry
from srm.api.v1.operator import lists
from srm.db.database import Database
from srm.db.models import CONTENT_TYPES, sessions
from srm.errors import SessionNotFound
from srm.operators import change_log, provisioning
from srm.operators import sessions as care
from srm.operators.resources import DEVICES
from srm.playback.model import EndedSession

FOR_CARE = {"end_sessions_of_account", "end_sessions_of_device", "end_session"}
"""The calls that end sessions, and change nothing else."""


def add_routes(blueprint: Blueprint, database: Database) -> None:
    """The routes of care."""

    def answer(ended: Sequence[EndedSession]) -> Response:
        """How many were stopped; those that turned out to have lapsed do not count."""
        telemetry.ended(ended)
        return lists.as_json({"ended": sum(session.end_reason == "operator" for session in ended)})

    @blueprint.get("/accounts/<account_id>/sessions")
    def list_sessions_of_account(account_id: str) -> Response:
        state = cast("care.State", lists.one_of("state", get_args(care.State), "active"))
        limit, after = lists.limit(), lists.after_position()
        with database.orm() as db:
            found = care.sessions_of(db.connection(), account_id, state, limit=limit + 1, after=after)
            if not found:  # one that was deleted still has its history; one that is misspelt has not
                provisioning.check_is_account(db, account_id)
        return lists.page("sessions", found, limit, lambda last: lists.position(last.session_id, last.started_at))

    @blueprint.get("/accounts/<account_id>/denials")
    def list_denials(account_id: str) -> Response:
        limit, after = lists.limit(), lists.after_position()
        with database.orm() as db:
            found = care.refusals_of(db.connection(), account_id, limit=limit + 1, after=after)
            if not found:
                provisioning.check_is_account(db, account_id)
        return lists.page("denials", found, limit, lambda last: lists.position(last.denial_id, last.denied_at))

    @blueprint.delete("/accounts/<account_id>/sessions")
    def end_sessions_of_account(account_id: str) -> Response:
        with database.orm() as db:
            ended = provisioning.end_sessions(db, envelope.operator_name(), account_id)
        return answer(ended)

    @blueprint.delete("/accounts/<account_id>/devices/<device_id>/sessions")
    def end_sessions_of_device(account_id: str, device_id: str) -> Response:
        with database.orm() as db:
            of_device = sessions.device_id == device_id
            ended = provisioning.end_sessions(db, envelope.operator_name(), account_id, of_device)
            if not ended:  # a misspelt device is not one that is stopped
                provisioning.get(db, DEVICES, (account_id, device_id))
        return answer(ended)

    @blueprint.delete("/accounts/<account_id>/sessions/<session_id>")
    def end_session(account_id: str, session_id: str) -> Response:
        id_ = lists.uuid("sessionId", session_id)
        with database.orm() as db:
            ended = provisioning.end_sessions(db, envelope.operator_name(), account_id, sessions.session_id == id_)
            if not ended and not care.is_known(db.connection(), account_id, id_):
                raise SessionNotFound
        return answer(ended)

    @blueprint.get("/operator/sessions")
    def list_sessions_everywhere() -> Response:
        limit, watched, after = lists.limit(), _watched(), lists.after_id_and_text()
        with database.transaction() as db:
            behind = None if after is None else (after[1], after[0])
            found = care.sessions_everywhere(db, watched, limit=limit + 1, after=behind)
        return lists.page("sessions", found, limit, lambda last: f"{last.session_id}_{last.account_id}")

    @blueprint.get("/operator/sessions/count")
    def count_sessions_everywhere() -> Response:
        watched = _watched()
        with database.transaction() as db:
            return lists.as_json({"count": care.count_everywhere(db, watched)})

    @blueprint.get("/operator/audit")
    def list_changes() -> Response:
        limit, after = lists.limit(), lists.after_position()
        of = {"account_id": lists.text_of("accountId"), "operator": lists.text_of("operator")}
        with database.transaction() as db:
            found = change_log.changes(db, limit=limit + 1, after=after, **of)
        return lists.page("changes", found, limit, lambda last: lists.position(last.change_id, last.changed_at))


def _watched() -> care.SessionFilter:
    return care.SessionFilter(
        content_id=lists.text_of("contentID"),
        content_type=lists.one_of("contentType", CONTENT_TYPES),
        device_group=lists.text_of("deviceGroup"),
        started_before=lists.instant_of("startedBefore"),
    )
