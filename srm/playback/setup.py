"""Setup: takes a slot for one more session of an account, and ends the sessions that have to go for it.

The order of the statements keeps the limit exact: docs/design.md, "Concurrency protocol".
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from srm.db.connection import Cursor, waive_durability
from srm.errors import AccountNotEnabled, ContentAccessDenied, DeviceNotEnabled, MalformedRequest, SrmError
from srm.playback import limits
from srm.playback.entitlements import LOCAL, Access
from srm.playback.keep_alive import keep_alive
from srm.playback.limits import ActiveSession, Decision, Limits, RequestedSession
from srm.playback.model import Admission, ContentRef, EndedSession, Principal, Result, Terms
from srm.playback.statements import (
    COPIED,
    END_FOR_ANOTHER,
    END_LAPSED,
    GET_TERMS_AND_SESSIONS,
    LIST_ACTIVE,
    LOCK_ACCOUNT,
    ended_sessions,
    insert_session,
    read_account,
    read_limits,
    read_session,
    read_state,
    read_terms,
)


@dataclass(frozen=True, slots=True)
class SetupRequest:
    """Setup that a device asks for.

    `access`: content access as far as it is known. `address`: the client's address as the limits count it; None = not
    known, and no limit on addresses holds. `idempotency_key`: a repeat with this key gets the session of the first
    setup. `take_over`: ids of sessions of the account whose place the new session takes.
    """

    principal: Principal
    content: ContentRef
    access: Access = LOCAL
    address: str | None = None
    idempotency_key: str | None = None
    take_over: Collection[UUID] = ()


class AccountState(NamedTuple):
    """Facts that a setup decides on, read while the account is locked."""

    terms: Terms
    limits: Limits
    active: Sequence[ActiveSession]
    """The oldest first."""
    ended: Sequence[EndedSession]
    """Sessions that had lapsed and were ended before `active` was listed."""


def set_up(db: Cursor, request: SetupRequest) -> Result[Admission]:
    """Take a slot for one more session, and end the sessions that have to go for it.

    Sessions go because they have lapsed, because the request takes them over, or because the profile has them replaced
    or evicted. A setup that repeats the idempotency key of an active session of the device gets that session, kept
    alive.

    The outcome is an error in this order: AccountNotEnabled, DeviceNotEnabled, the denial of `request.access` or
    ContentAccessDenied, MalformedRequest (the key was used for another content), SessionLimitReached. Source of the
    order: docs/design.md, "Wire contract". The caller commits in each case, and only then answers.
    """
    params: dict[str, object] = {
        "account_id": request.principal.account_id,
        "device_id": request.principal.device_id,
        "content_type": request.content.content_type,
        "content_id": request.content.content_id,
    }
    row = db.execute(LOCK_ACCOUNT, params).fetchone()
    account = None if row is None else read_account(row)
    if account is None or not account.enabled:
        return _denied(db, AccountNotEnabled())
    params |= {"profile_id": account.profile_id, "account_max_sessions": account.max_sessions}
    state = _read_state_and_end_lapsed(db, params)
    try:
        found = _find_repeated_or_decide(state, request)
    except SrmError as denial:
        return _denied(db, denial, state.ended)
    if isinstance(found, Decision):
        return _admit(db, params, request, state, found)
    return _repeat(db, request, state, found)


def _denied(db: Cursor, denial: SrmError, ended: Sequence[EndedSession] = ()) -> Result[Admission]:
    """Return the result of a setup that gets no session; the ended sessions stay ended."""
    waive_durability(db)
    return Result(denial, ended)


def _read_state_and_end_lapsed(db: Cursor, params: dict[str, object]) -> AccountState:
    """Read the terms, the limits and the active sessions of the locked account; end those that have lapsed."""
    rows = db.execute(GET_TERMS_AND_SESSIONS, params).fetchall()
    terms, limits_ = read_terms(rows[0]), read_limits(rows[0])
    states = [read_state(row) for row in rows]
    if not any(state.is_lapsed for state in states):
        active = [read_session(row) for row, state in zip(rows, states, strict=True) if state.session_id is not None]
        return AccountState(terms, limits_, active, ())
    ended = ended_sessions(db.execute(END_LAPSED, params))
    active = [ActiveSession(*row) for row in db.execute(LIST_ACTIVE, params).fetchall()]
    return AccountState(terms, limits_, active, ended)


def _find_repeated_or_decide(state: AccountState, request: SetupRequest) -> ActiveSession | Decision:
    """Return the session that the request repeats, or else the decision for a new session.

    Raises the errors of `set_up` other than AccountNotEnabled.
    """
    requested = _requested(request, state.terms)
    _check_access(state.terms, request.access)
    repeated = _find_repeated(state.active, request)
    if repeated is not None:
        return repeated
    return limits.decide(state.limits, state.active, requested, request.take_over)


def decide_new(state: AccountState, request: SetupRequest) -> Decision:
    """Return the decision for a setup that repeats no earlier one, of an enabled account. Raises its denial."""
    requested = _requested(request, state.terms)
    _check_access(state.terms, request.access)
    return limits.decide(state.limits, state.active, requested, request.take_over)


def _repeat(db: Cursor, request: SetupRequest, state: AccountState, repeated: ActiveSession) -> Result[Admission]:
    """Keep the repeated session alive and return it. If it has ended since it was listed, set up a new session."""
    if keep_alive(db, request.principal, repeated.session_id):
        return Result(Admission(repeated.session_id, repeated.timeout_seconds), state.ended)
    # The ended session is listed no more, and its key is free: start again.
    result = set_up(db, request)
    return Result(result.outcome, [*state.ended, *result.ended])


def _check_access(terms: Terms, access: Access) -> None:
    """Raise the denial of content access, if there is one."""
    if access.denial is not None:
        raise access.denial
    if access.ask_tables and not terms.granted:
        raise ContentAccessDenied


def _find_repeated(active: Sequence[ActiveSession], request: SetupRequest) -> ActiveSession | None:
    """Return the active session that the device set up with the idempotency key of the request.

    Raises MalformedRequest when the key was used for another content.
    """
    if request.idempotency_key is None:
        return None
    for session in active:
        if (session.device_id, session.idempotency_key) == (request.principal.device_id, request.idempotency_key):
            if (session.content_type, session.content_id) != (request.content.content_type, request.content.content_id):
                raise MalformedRequest("Idempotency-Key was used for another content")
            return session
    return None


def _requested(request: SetupRequest, terms: Terms) -> RequestedSession:
    """Return the session that the device asks for. Raises DeviceNotEnabled."""
    if not terms.device_enabled or terms.device_group is None:
        raise DeviceNotEnabled
    return RequestedSession(
        device_id=request.principal.device_id,
        device_group=terms.device_group,
        content_id=request.content.content_id,
        content_groups=terms.content_groups,
        address=request.address,
        counts=terms.counts,
    )


def _admit(
    db: Cursor, params: dict[str, object], request: SetupRequest, state: AccountState, decision: Decision
) -> Result[Admission]:
    """End the sessions that have to go, and insert the new one with copies of its terms and limits."""
    ended = list(state.ended)
    if decision.replaced or decision.evicted:
        going = {
            "replaced_ids": [session.session_id for session in decision.replaced],
            "evicted_ids": [session.session_id for session in decision.evicted],
            "ended_by": state.terms.device_name,
        }
        ended += ended_sessions(db.execute(END_FOR_ANOTHER, {**params, **going}))
    values = new_session(request, state)
    columns = tuple(name for name in COPIED if values[name] is not None)
    db.execute(insert_session(columns), values)
    return Result(Admission(values["session_id"], state.terms.timeout_seconds, decision.observed), ended)


def new_session(request: SetupRequest, state: AccountState) -> dict[str, Any]:
    """Return the values of a new session by column, and terms and limits that no column of `sessions` takes."""
    # Observed limits are not copied: a limit check must not find a session over a limit that nobody enforced.
    enforced = state.limits if state.limits.mode == "enforce" else Limits()
    return {
        **state.terms._asdict(),
        **enforced._asdict(),
        "account_id": request.principal.account_id,
        "session_id": uuid4(),
        "device_id": request.principal.device_id,
        "content_type": request.content.content_type,
        "content_id": request.content.content_id,
        "address": request.address,
        "idempotency_key": request.idempotency_key,
    }
