"""The operator API, v1: sessions, denials, and the change log."""

from collections.abc import Sequence
from typing import cast, get_args

from flask import Response

from srm.api import telemetry
from srm.api.parts import parts
from srm.api.v1.operator import query, wire
from srm.api.v1.operator.authentication import operator_name
from srm.db.models import CONTENT_TYPES
from srm.operators import change_log, sessions
from srm.operators.cursors import InstantCursor, SessionCursor
from srm.operators.sessions import SessionFilter, State
from srm.playback.model import EndedSession


def list_sessions_of_account(account_id: str) -> Response:
    """Answer 200 with a page of the sessions of an account, newest first."""
    state = cast("State", query.read_word("state", get_args(State), "active"))
    limit, after = query.read_limit(), query.read_instant_cursor()
    with parts().database.orm() as db:
        found = sessions.list_account_sessions(db, account_id, state, limit=limit + 1, after=after)
    return wire.page(
        "sessions",
        found,
        limit,
        lambda last: query.instant_cursor_text(InstantCursor(last.started_at, last.session_id)),
    )


def list_denials(account_id: str) -> Response:
    """Answer 200 with a page of the denials of an account, newest first."""
    limit, after = query.read_limit(), query.read_instant_cursor()
    with parts().database.orm() as db:
        found = sessions.list_account_denials(db, account_id, limit=limit + 1, after=after)
    return wire.page(
        "denials", found, limit, lambda last: query.instant_cursor_text(InstantCursor(last.denied_at, last.denial_id))
    )


def list_sessions_everywhere() -> Response:
    """Answer 200 with a page of the active sessions of all accounts that match the query."""
    limit, which, after = query.read_limit(), _read_filter(), query.read_session_cursor()
    with parts().database.orm() as db:
        found = sessions.list_active_sessions(db, which, limit=limit + 1, after=after)
    return wire.page(
        "sessions",
        found,
        limit,
        lambda last: query.session_cursor_text(SessionCursor(last.account_id, last.session_id)),
    )


def count_sessions_everywhere() -> Response:
    """Answer 200 with the number of active sessions of all accounts that match the query."""
    which = _read_filter()
    with parts().database.orm() as db:
        count = sessions.count_active_sessions(db, which)
    return wire.answer({"count": count})


def end_sessions_of_account(account_id: str) -> Response:
    """End all sessions of an account: 200 with their number."""
    with parts().database.orm() as db:
        ended = sessions.end_account_sessions(db, operator_name(), account_id)
    return _answer_ended(ended)


def end_sessions_of_device(account_id: str, device_id: str) -> Response:
    """End all sessions of a device: 200 with their number."""
    with parts().database.orm() as db:
        ended = sessions.end_device_sessions(db, operator_name(), account_id, device_id)
    return _answer_ended(ended)


def end_session(account_id: str, session_id: str) -> Response:
    """End one session: 200 with 1, or with 0 when it has ended already."""
    id_ = query.parse_id("sessionId", session_id)
    with parts().database.orm() as db:
        ended = sessions.end_session(db, operator_name(), account_id, id_)
    return _answer_ended(ended)


def list_changes() -> Response:
    """Answer 200 with a page of the change log, newest first, of one account or one operator if the query names it."""
    limit, after = query.read_limit(), query.read_instant_cursor()
    account_id, operator = query.read_text("accountId"), query.read_text("operator")
    with parts().database.transaction() as db:
        found = change_log.list_changes(db, limit=limit + 1, after=after, account_id=account_id, operator=operator)
    return wire.page(
        "changes", found, limit, lambda last: query.instant_cursor_text(InstantCursor(last.changed_at, last.change_id))
    )


def _answer_ended(ended: Sequence[EndedSession]) -> Response:
    """Count and log the ended sessions; answer the number that were stopped. Lapsed sessions do not count."""
    telemetry.record_ended_sessions(ended)
    return wire.answer({"ended": sum(session.end_reason == "operator" for session in ended)})


def _read_filter() -> SessionFilter:
    return SessionFilter(
        content_id=query.read_text("contentID"),
        content_type=query.read_word("contentType", CONTENT_TYPES),
        device_group=query.read_text("deviceGroup"),
        started_before=query.read_instant("startedBefore"),
    )
