"""Setup: one more session of an account, and the end of those that have to go for it."""

from collections.abc import Collection
from uuid import UUID, uuid4

from srm.db.connection import Cursor
from srm.errors import AccountNotEnabled, ContentAccessDenied, DeviceNotEnabled, MalformedRequest
from srm.playback import entitlements
from srm.playback import limits as policy
from srm.playback.entitlements import Access
from srm.playback.keep_alive import keep_alive
from srm.playback.limits import ActiveSession, Limits, Setup
from srm.playback.model import Admission, ContentRef, EndedSession, Principal, Terms
from srm.playback.statements import (
    COPIED,
    END_FOR_ANOTHER,
    END_LAPSED,
    GET_TERMS_AND_LIST,
    LIST_ACTIVE,
    LOCK_ACCOUNT,
    _admit,
    ended_sessions,
)


def set_up(
    db: Cursor,
    principal: Principal,
    content: ContentRef,
    ended: list[EndedSession],
    *,
    access: Access = entitlements.LOCAL,
    address: str | None = None,
    idempotency_key: str | None = None,
    take_over: Collection[UUID] = (),
) -> Admission:
    """Take a slot for one more session of the account and device, and end those that have to go for it.

    Those are sessions of the account that it takes over, whose place it takes by the rules of the profile, or that
    are evicted. They, and those that turn out to have lapsed, are added to `ended`, whatever comes of the setup.

    A repeat, with the `idempotency_key` of an active session of the device, is given that session, kept alive.
    `access`: what is known of the content access. `address`: of the client, as the limits count it.

    AccountNotEnabled, DeviceNotEnabled, ContentAccessDenied or what else the `access` refuses with, MalformedRequest
    (the key was used for another content) or SessionLimitReached when it may not be, checked in this order (wire
    contract). The caller commits before it answers.
    """
    names: dict[str, object] = {
        "of_account": principal.account_id,
        "of_device": principal.device_id,
        "of_content_type": content.content_type,
        "of_content": content.content_id,
    }
    account = db.execute(LOCK_ACCOUNT, names).fetchone()
    if account is None or not account[0]:
        raise AccountNotEnabled
    _, names["of_profile"], names["of_own_limit"] = account
    terms, limits, active = _terms_and_active(db, names, ended)
    if not terms.device_enabled:
        raise DeviceNotEnabled
    if access.refusal is not None:
        raise access.refusal
    if access.ask_tables and not terms.granted:
        raise ContentAccessDenied
    if idempotency_key is not None:
        for session in active:
            if (session.device_id, session.idempotency_key) == (principal.device_id, idempotency_key):
                return _repeat(db, principal, content, ended, session, access, address, take_over)
    setup = Setup(
        principal.device_id, terms.device_group, content.content_id, terms.content_groups, address, terms.counts
    )
    room = policy.decide(limits, active, setup, take_over)
    admission = Admission(uuid4(), terms.timeout_seconds, room.observed)
    if room.replaced or room.evicted:
        going = {
            "of_replaced": [session.session_id for session in room.replaced],
            "of_evicted": [session.session_id for session in room.evicted],
            "ended_by": terms.device_name,
        }
        ended += ended_sessions(db.execute(END_FOR_ANOTHER, {**names, **going}))
    in_force = limits if limits.mode == "enforce" else Limits()
    of_setup = {**terms._asdict(), **in_force._asdict(), "address": address, "idempotency_key": idempotency_key}
    columns = tuple(name for name in COPIED if of_setup[name] is not None)
    db.execute(_admit(columns), {**names, **of_setup, "of_session": admission.session_id})
    return admission


def _terms_and_active(
    db: Cursor, names: dict[str, object], ended: list[EndedSession]
) -> tuple[Terms, Limits, list[ActiveSession]]:
    """What holds for a setup, and the active sessions of its account, the oldest first. The account is locked."""
    rows = db.execute(GET_TERMS_AND_LIST, names).fetchall()
    limits_at = len(Terms._fields)
    lapsed_at = limits_at + len(Limits._fields)
    session_at = lapsed_at + 1
    if any(row[lapsed_at] for row in rows):
        ended += ended_sessions(db.execute(END_LAPSED, names))
        active = db.execute(LIST_ACTIVE, names).fetchall()
    else:
        active = [row[session_at:] for row in rows if row[session_at] is not None]
    first = rows[0]
    terms, limits = Terms(*first[:limits_at]), Limits(*first[limits_at:lapsed_at])
    return terms, limits, [ActiveSession(*session) for session in active]


def _repeat(
    db: Cursor,
    principal: Principal,
    content: ContentRef,
    ended: list[EndedSession],
    session: ActiveSession,
    access: Access,
    address: str | None,
    take_over: Collection[UUID],
) -> Admission:
    """Give the session of a setup that was admitted before; its answer got lost."""
    if (session.content_type, session.content_id) != (content.content_type, content.content_id):
        raise MalformedRequest("Idempotency-Key was used for another content")
    if not keep_alive(db, principal, session.session_id):  # it has ended this very moment
        key = session.idempotency_key
        return set_up(
            db, principal, content, ended, access=access, address=address, idempotency_key=key, take_over=take_over
        )
    return Admission(session.session_id, session.timeout_seconds)
