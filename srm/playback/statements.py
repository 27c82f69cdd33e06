"""Playback sessions: setup, keep-alive, teardown, and what the reaper does to them.

Every rule and every query on sessions is here. Functions take an open transaction and never commit; only
`keep_alive` and `tear_down`, one statement each, also take what executes it as a transaction of its own. Why the limit
is exact under any concurrency:

- Whoever adds a session to an account holds the lock of the account's row. Setups of one account wait
  for each other, setups of different accounts never do.
- Only under that lock are the sessions of the account listed, in a statement of its own: its snapshot is younger than
  the lock.
- If any of them has lapsed, the lapsed ones are *ended*, not merely left out of the count, and the rest is listed
  anew. A keep-alive that began before the lapse holds the row, so ending waits for it and looks again: the session
  stays. A keep-alive that comes later finds the session ended: 410. Counting without ending lets both win.
- Whoever ends several sessions of an account locks them in the order of their ids, so that nobody
  waits in a circle.
- Keep-alive and teardown lock nothing but the row of their session.

All times are `statement_timestamp()` of the database: `now()` stands still while a transaction waits for
a lock, and the clocks of hosts differ.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, cast
from uuid import UUID, uuid4

from psycopg.errors import LockNotAvailable
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    CursorResult,
    Integer,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import aliased

from srm.clients.tokens import Principal
from srm.db.database import Cursor, Executor, compiled, connection_of, constant
from srm.db.models import (
    Account,
    AccountProfile,
    Content,
    ContentGroup,
    Device,
    EndedSession,
    EndReason,
    PlaybackSession,
    ProfileContentGroup,
    ProfileDeviceGroup,
)
from srm.errors import (
    AccountNotEnabled,
    ContentAccessDenied,
    DeviceNotEnabled,
    MalformedRequest,
    SessionEnded,
    SessionLimitReached,
    SessionNotFound,
)
from srm.playback import entitlements
from srm.playback import limits as policy
from srm.playback.availability import AVAILABLE_SINCE
from srm.playback.entitlements import Access
from srm.playback.limits import ActiveSession, Limits, Setup

sessions = PlaybackSession.__table__.c

COPIED = (
    "device_group",
    "content_groups",
    "address",
    "counts",
    "timeout_seconds",
    "max_session_seconds",
    *policy.LIMITS,
    "idempotency_key",
)
"""What a session keeps of its setup, beside who and what: all that its limits look at, as it was then."""


@dataclass(frozen=True, slots=True)
class ContentRef:
    """What is to be played: contentType and contentID of the API."""

    content_type: str
    content_id: str


@dataclass(frozen=True, slots=True)
class Admission:
    """A session that was set up.

    `timeout_seconds`: None = keep-alive is disabled. `observed`: the refusal that would have been, if the limits of the
    profile were enforced.
    """

    session_id: UUID
    timeout_seconds: int | None
    observed: SessionLimitReached | None = None


class Terms(NamedTuple):
    """What holds for a setup beside the limits, by its account, its device, its content and the profile."""

    device_enabled: bool | None
    device_name: str | None
    device_group: str
    granted: bool
    content_groups: list[str] | None
    counts: bool
    timeout_seconds: int | None
    max_session_seconds: int | None


@dataclass(frozen=True, slots=True)
class ListedSession:
    """An active session, as other devices of the account may see it."""

    session_id: UUID
    device_name: str
    content_id: str
    content_type: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Ended:
    """A session that was just ended, for a reason other than its client's."""

    account_id: str
    session_id: UUID
    device_id: str
    content_type: str
    content_id: str
    started_at: datetime
    ended_at: datetime
    end_reason: str


# When the client was last heard of, or could be again: in an outage it tries in vain.
HEARD_OF_AT = func.greatest(sessions.last_keep_alive_at, AVAILABLE_SINCE)


def seconds(count: ColumnElement[int | None]) -> ColumnElement[object]:
    """The interval of that many seconds."""
    return func.make_interval(*[literal_column("0")] * 6, count)


def is_lapsed() -> ColumnElement[bool]:
    """Whether a session has been silent for its timeout, or is as old as it may get; null where it has neither.

    Of the silence counts what was not an outage, nor before one. A session that had lapsed, and was not ended, when one
    began is active again after it: whoever took its slot would have ended it.

    Subtracts two times instead of adding to a column, which a distributed UPDATE refuses.
    """
    now = func.statement_timestamp()
    return or_(
        now - HEARD_OF_AT >= seconds(sessions.timeout_seconds),
        now - sessions.started_at >= seconds(sessions.max_session_seconds),
    )


def lapsed_at() -> ColumnElement[datetime]:
    """The instant at which a session lapses, or did; null where it never does.

    By way of times without zone: adding to one is immutable, as a distributed UPDATE demands.
    """
    utc = constant("UTC")
    silent = func.timezone(utc, HEARD_OF_AT) + seconds(sessions.timeout_seconds)
    old = func.timezone(utc, sessions.started_at) + seconds(sessions.max_session_seconds)
    return func.timezone(utc, func.least(silent, old))


def _lapse(which: ColumnElement[bool]) -> Update:
    """End those of the sessions that have lapsed, as of the instant of their lapse."""
    return (
        update(PlaybackSession)
        .where(which, sessions.ended_at.is_(None), is_lapsed())
        .values(ended_at=lapsed_at(), end_reason=constant("expired"))
    )


# The statements of the client API, compiled once: to build and look them up anew costs ten times what psycopg needs
# to send them. `of_…` are their parameters; each names one account, in every table of an account that it touches.

OF_ACCOUNT = bindparam("of_account", type_=Text)
OF_SESSION = bindparam("of_session", type_=Uuid)
OF_DEVICE = bindparam("of_device", type_=Text)
OF_CONTENT_TYPE = bindparam("of_content_type", type_=Text)
OF_CONTENT = bindparam("of_content", type_=Text)
OF_REPLACED = bindparam("of_replaced", type_=ARRAY(Uuid))
OF_EVICTED = bindparam("of_evicted", type_=ARRAY(Uuid))

# Alone in its statement: what is read together with a lock, other than the locked row, may be older than the lock.
LOCK_ACCOUNT = compiled(
    select(Account.enabled, Account.profile_id, Account.max_sessions)
    .where(Account.account_id == OF_ACCOUNT)
    .with_for_update(key_share=True)
)
ACTIVE_SESSION = tuple(sessions[name] for name in ActiveSession._fields)
OLDEST_FIRST = (sessions.started_at, sessions.session_id)
# An event is also in the groups of its channel.
GROUPS_OF_CONTENT = (
    select(ContentGroup.content_group)
    .distinct()
    .where(
        or_(
            ContentGroup.content_id == OF_CONTENT,
            ContentGroup.content_id
            == select(Content.channel_id).where(Content.content_id == OF_CONTENT).scalar_subquery(),
        )
    )
    .subquery("groups_of_content")
)
IN_ORDER = GROUPS_OF_CONTENT.c.content_group
CONTENT_GROUPS = (
    select(
        func.array_agg(aggregate_order_by(GROUPS_OF_CONTENT.c.content_group, IN_ORDER)).label("names"),
        func.array_agg(aggregate_order_by(ProfileContentGroup.max_sessions, IN_ORDER)).label("limits"),
        func.bool_and(func.coalesce(ProfileContentGroup.counts, true())).label("count"),
    )
    .select_from(GROUPS_OF_CONTENT)
    .outerjoin(
        ProfileContentGroup,
        and_(
            ProfileContentGroup.profile_id == AccountProfile.profile_id,
            ProfileContentGroup.content_group == GROUPS_OF_CONTENT.c.content_group,
        ),
    )
    .lateral("content_groups")
)
# Terms, limits, whether lapsed, and a session; a row for each that is not ended, or one with nulls where there is none.
GET_TERMS_AND_LIST = compiled(
    select(
        Device.enabled,
        Device.name,
        Device.device_group,
        entitlements.is_granted(OF_ACCOUNT, OF_CONTENT_TYPE, OF_CONTENT),
        CONTENT_GROUPS.c.names,
        and_(func.coalesce(ProfileDeviceGroup.counts, true()), func.coalesce(CONTENT_GROUPS.c.count, true())),
        AccountProfile.timeout_seconds,
        AccountProfile.max_session_seconds,
        func.coalesce(bindparam("of_own_limit", type_=Integer), AccountProfile.max_sessions),
        AccountProfile.max_sessions_per_content,
        AccountProfile.max_ip_addresses,
        AccountProfile.max_sessions_per_ip,
        ProfileDeviceGroup.max_sessions,
        CONTENT_GROUPS.c.limits,
        AccountProfile.on_limit,
        AccountProfile.same_device,
        AccountProfile.mode,
        is_lapsed(),
        *ACTIVE_SESSION,
    )
    .select_from(AccountProfile)
    .outerjoin(Device, and_(Device.account_id == OF_ACCOUNT, Device.device_id == OF_DEVICE))
    .outerjoin(
        ProfileDeviceGroup,
        and_(
            ProfileDeviceGroup.profile_id == AccountProfile.profile_id,
            ProfileDeviceGroup.device_group == Device.device_group,
        ),
    )
    .join(CONTENT_GROUPS, true())
    .outerjoin(PlaybackSession, and_(sessions.account_id == OF_ACCOUNT, sessions.ended_at.is_(None)))
    .where(AccountProfile.profile_id == bindparam("of_profile", type_=Text))
    .order_by(*OLDEST_FIRST)
)
WAS_ENDED = tuple(sessions[name] for name in Ended.__slots__)
LAPSED_IN_ORDER = (
    select(sessions.session_id)
    .where(sessions.account_id == OF_ACCOUNT, sessions.ended_at.is_(None), is_lapsed())
    .order_by(sessions.session_id)
    .with_for_update()
)
END_LAPSED = compiled(
    _lapse(and_(sessions.account_id == OF_ACCOUNT, sessions.session_id.in_(LAPSED_IN_ORDER))).returning(*WAS_ENDED)
)
# On its own, after the ending: its snapshot shows what became of those whom the ending had to wait for.
LIST_ACTIVE = compiled(
    select(*ACTIVE_SESSION)
    .where(sessions.account_id == OF_ACCOUNT, sessions.ended_at.is_(None))
    .order_by(*OLDEST_FIRST)
)
NAMED_IN_ORDER = (
    select(sessions.session_id)
    .where(
        sessions.account_id == OF_ACCOUNT,
        or_(sessions.session_id == func.any(OF_REPLACED), sessions.session_id == func.any(OF_EVICTED)),
        sessions.ended_at.is_(None),
    )
    .order_by(sessions.session_id)
    .with_for_update()
)
# On its own, before the admission: where it has to wait for a teardown, the new session starts after that.
END_FOR_ANOTHER = compiled(
    update(PlaybackSession)
    .where(sessions.account_id == OF_ACCOUNT, sessions.session_id.in_(NAMED_IN_ORDER), sessions.ended_at.is_(None))
    .values(
        ended_at=func.least(func.statement_timestamp(), lapsed_at()),
        end_reason=case(
            (sessions.session_id == func.any(OF_REPLACED), constant("replaced")), else_=constant("evicted")
        ),
        ended_by=bindparam("ended_by", type_=Text),
    )
    .returning(*WAS_ENDED)
)


@lru_cache
def _admit(columns: tuple[str, ...]) -> str:
    """The statement that admits a session with values in these columns of COPIED.

    The others are null, most of them nearly always: to send that costs as much as it does to send a value.
    """
    values = {name: bindparam(name, type_=sessions[name].type) for name in columns}
    who_and_what = {
        "account_id": OF_ACCOUNT,
        "session_id": OF_SESSION,
        "device_id": OF_DEVICE,
        "content_type": OF_CONTENT_TYPE,
        "content_id": OF_CONTENT,
    }
    return compiled(insert(PlaybackSession).values(**who_and_what, **values))


OWN_SESSION = and_(
    sessions.account_id == OF_ACCOUNT, sessions.session_id == OF_SESSION, sessions.device_id == OF_DEVICE
)
OWN_ACTIVE_SESSION = and_(OWN_SESSION, sessions.ended_at.is_(None), is_lapsed().is_not(True))
# Of two keep-alives the younger one counts, in whichever order they get hold of the row.
KEEP_ALIVE = compiled(
    update(PlaybackSession)
    .where(OWN_ACTIVE_SESSION)
    .values(last_keep_alive_at=func.greatest(sessions.last_keep_alive_at, func.statement_timestamp()))
)
TEAR_DOWN = compiled(
    update(PlaybackSession)
    .where(OWN_ACTIVE_SESSION)
    .values(ended_at=func.statement_timestamp(), end_reason=constant("teardown"))
)
OTHER_DEVICE = aliased(Device)
LIST_SESSIONS = compiled(
    select(
        Account.enabled,
        Device.enabled,
        sessions.session_id,
        func.coalesce(OTHER_DEVICE.name, sessions.device_id),
        sessions.content_id,
        sessions.content_type,
        sessions.started_at,
    )
    .select_from(Account)
    .outerjoin(Device, and_(Device.account_id == OF_ACCOUNT, Device.device_id == OF_DEVICE))
    .outerjoin(
        PlaybackSession,
        and_(sessions.account_id == OF_ACCOUNT, sessions.ended_at.is_(None), is_lapsed().is_not(True)),
    )
    .outerjoin(OTHER_DEVICE, and_(OTHER_DEVICE.account_id == OF_ACCOUNT, OTHER_DEVICE.device_id == sessions.device_id))
    .where(Account.account_id == OF_ACCOUNT)
    .order_by(*OLDEST_FIRST)
)
ID_AS_TEXT = sessions.session_id.cast(Text)
FIND_LAPSED = compiled(
    select(sessions.account_id, ID_AS_TEXT)
    .where(sessions.ended_at.is_(None), is_lapsed())
    .limit(bindparam("at_most", type_=Integer))
)
EXPIRED = (sessions.account_id, sessions.device_id, ID_AS_TEXT, sessions.ended_at)
NAMED = select(
    func.unnest(bindparam("of_accounts", type_=ARRAY(Text))),
    func.unnest(bindparam("of_sessions", type_=ARRAY(Text)).cast(ARRAY(Uuid))),
)
END_ALL_LAPSED = compiled(_lapse(tuple_(sessions.account_id, sessions.session_id).in_(NAMED)).returning(*EXPIRED))
ONE_SESSION = and_(sessions.account_id == OF_ACCOUNT, sessions.session_id == OF_SESSION)
FREE_SESSION = select(sessions.session_id).where(ONE_SESSION).with_for_update(skip_locked=True)
END_FREE_LAPSED = compiled(_lapse(and_(ONE_SESSION, sessions.session_id.in_(FREE_SESSION))).returning(*EXPIRED))
END_OWN_IF_LAPSED = compiled(_lapse(OWN_SESSION).returning(*WAS_ENDED))
EXPLAIN = compiled(select(sessions.end_reason, sessions.ended_by).where(OWN_SESSION))


def set_up(
    db: Cursor,
    principal: Principal,
    content: ContentRef,
    ended: list[Ended],
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
    room = policy.make_room(limits, active, setup, take_over)
    admission = Admission(uuid4(), terms.timeout_seconds, room.observed)
    if room.replaced or room.evicted:
        going = {
            "of_replaced": [session.session_id for session in room.replaced],
            "of_evicted": [session.session_id for session in room.evicted],
            "ended_by": terms.device_name,
        }
        ended += _ended(db.execute(END_FOR_ANOTHER, {**names, **going}))
    in_force = limits if limits.mode == "enforce" else Limits()
    of_setup = {**terms._asdict(), **in_force._asdict(), "address": address, "idempotency_key": idempotency_key}
    columns = tuple(name for name in COPIED if of_setup[name] is not None)
    db.execute(_admit(columns), {**names, **of_setup, "of_session": admission.session_id})
    return admission


def _terms_and_active(
    db: Cursor, names: dict[str, object], ended: list[Ended]
) -> tuple[Terms, Limits, list[ActiveSession]]:
    """What holds for a setup, and the active sessions of its account, the oldest first. The account is locked."""
    rows = db.execute(GET_TERMS_AND_LIST, names).fetchall()
    limits_at = len(Terms._fields)
    lapsed_at = limits_at + len(Limits._fields)
    session_at = lapsed_at + 1
    if any(row[lapsed_at] for row in rows):
        ended += _ended(db.execute(END_LAPSED, names))
        active = db.execute(LIST_ACTIVE, names).fetchall()
    else:
        active = [row[session_at:] for row in rows if row[session_at] is not None]
    first = rows[0]
    terms, limits = Terms(*first[:limits_at]), Limits(*first[limits_at:lapsed_at])
    return terms, limits, [ActiveSession(*session) for session in active]


def _ended(cursor: Cursor) -> list[Ended]:
    return [Ended(*row) for row in cursor.fetchall()]


def _repeat(
    db: Cursor,
    principal: Principal,
    content: ContentRef,
    ended: list[Ended],
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


def keep_alive(db: Executor, principal: Principal, session_id: UUID) -> bool:
    """Start the timeout of the session anew; False when the account and device seem to have no such active session.

    The hot path: one statement, and nothing between it and the driver. `keep_alive_or_explain` has the last word.
    """
    return db.execute(KEEP_ALIVE, _named(principal, session_id)).rowcount == 1


def keep_alive_or_explain(db: Cursor, principal: Principal, session_id: UUID, ended: list[Ended]) -> None:
    """Start the timeout of the session anew. If it turns out to have lapsed, it is added to `ended`.

    SessionNotFound, also when the session is another account's or device's. SessionEnded when it has ended or
    lapsed: a lapsed session never comes back, its slot may be taken.
    """
    while (end := _find_end(db, principal, session_id, ended)) is None:
        if keep_alive(db, principal, session_id):
            return
    raise end


def tear_down(db: Executor, principal: Principal, session_id: UUID) -> bool:
    """End the session and free its slot; False when the account and device seem to have no such active session.

    `tear_down_or_explain` has the last word.
    """
    return db.execute(TEAR_DOWN, _named(principal, session_id)).rowcount == 1


def tear_down_or_explain(db: Cursor, principal: Principal, session_id: UUID, ended: list[Ended]) -> bool:
    """End the session and free its slot; False, and nothing happens, when this device has torn it down before.

    If it turns out to have lapsed, it is added to `ended`. SessionNotFound and SessionEnded as for a keep-alive.
    """
    while (end := _find_end(db, principal, session_id, ended)) is None:
        if tear_down(db, principal, session_id):
            return True
    if end.end_reason != "teardown":
        raise end
    return False


def _find_end(db: Cursor, principal: Principal, session_id: UUID, ended: list[Ended]) -> SessionEnded | None:
    """Why the session has ended; None while it is active. SessionNotFound when it never was.

    A session that looks lapsed may just be saved by a keep-alive which began in time and is not committed. To end it
    waits for that one and looks again; only then is it a fact that it has lapsed.
    """
    names = _named(principal, session_id)
    ended += _ended(db.execute(END_OWN_IF_LAPSED, names))
    session = db.execute(EXPLAIN, names).fetchone()
    if session is None:
        raise SessionNotFound
    end_reason, ended_by = session
    return None if end_reason is None else SessionEnded(end_reason, ended_by)


def list_sessions(db: Executor, principal: Principal) -> list[ListedSession]:
    """The active sessions of the account, the oldest first. AccountNotEnabled or DeviceNotEnabled as for a setup."""
    names: dict[str, object] = {"of_account": principal.account_id, "of_device": principal.device_id}
    rows = db.execute(LIST_SESSIONS, names).fetchall()
    if not rows or not rows[0][0]:
        raise AccountNotEnabled
    if not rows[0][1]:
        raise DeviceNotEnabled
    return [ListedSession(*session) for _, _, *session in rows if session[0] is not None]


def _named(principal: Principal, session_id: UUID) -> dict[str, object]:
    return {"of_account": principal.account_id, "of_session": session_id, "of_device": principal.device_id}


def end_sessions(db: Connection, reason: EndReason, which: ColumnElement[bool]) -> list[Ended]:
    """End the sessions for that reason, or as expired if they turn out to have lapsed; those that were ended.

    The caller holds the locks of their accounts, taken in a statement before: no setup is under way that this one does
    not see, and none that comes later takes a slot before this end.
    """
    in_order = (
        select(sessions.account_id, sessions.session_id)
        .where(which, sessions.ended_at.is_(None))
        .order_by(sessions.account_id, sessions.session_id)
        .with_for_update(of=PlaybackSession)
    )
    ended = db.execute(
        update(PlaybackSession)
        .where(tuple_(sessions.account_id, sessions.session_id).in_(in_order), sessions.ended_at.is_(None))
        .values(
            ended_at=func.least(func.statement_timestamp(), lapsed_at()),
            end_reason=case((is_lapsed(), constant("expired")), else_=literal(reason)),
        )
        .returning(*WAS_ENDED)
    )
    return sorted((Ended(*row) for row in ended), key=lambda row: (row.account_id, row.started_at))


Key: TypeAlias = tuple[str, str]
"""Account and id of a session; the id as text, since of 100,000 it would cost as much as all else to make UUIDs."""


class Expired(NamedTuple):
    """A lapsed session that was ended; no more of it than is said of 100,000 at once."""

    account_id: str
    device_id: str
    session_id: str
    ended_at: datetime


LAPSED_AT_ONCE = 100_000
"""Lapsed sessions that the reaper looks for at a time: one scan of the table, and some 30 MB of keys."""

ENDED_AT_ONCE = 100
"""Sessions that the reaper ends or moves in one transaction: short, so that nobody waits for it long."""

HELD_MILLISECONDS = 10
"""How long the reaper waits for sessions that somebody holds, before it leaves them out."""

ONE_BY_ONE_SECONDS = 2
"""How long one transaction of the reaper ends one by one; far less than its connection has patience."""

WAIT_FOR_FEW = f"SAVEPOINT before; SET LOCAL lock_timeout = {HELD_MILLISECONDS}".encode()


def find_lapsed(db: Cursor) -> list[Key]:
    """Account and id of sessions that have lapsed and are not ended yet, at most LAPSED_AT_ONCE.

    As they lie in the table, so that those on one page are ended together.
    """
    return db.execute(FIND_LAPSED, {"at_most": LAPSED_AT_ONCE}).fetchall()


def end_lapsed(db: Cursor, lapsed: Sequence[Key]) -> list[Expired]:
    """End those of the sessions that are still lapsed, and return them.

    May be repeated and may meet any other change: a session saved or ended meanwhile is left as it is. One that
    somebody holds is left to the next time, so that nobody ever waits for two for long.

    All in one statement costs a third of one each. When that has to wait it is undone, and they are ended one by one,
    past those that are held: SKIP LOCKED is for a single account, where the tables are distributed. What that does not
    get to in ONE_BY_ONE_SECONDS is left, too. The rest of the transaction waits no longer for locks than this does.
    """
    names = {"of_accounts": [account for account, _ in lapsed], "of_sessions": [id_ for _, id_ in lapsed]}
    connection_of(db).command(WAIT_FOR_FEW)
    try:
        return [Expired(*row) for row in db.execute(END_ALL_LAPSED, names).fetchall()]
    except LockNotAvailable:
        db.execute("ROLLBACK TO before")  # said so that psycopg sees it, and has the server forget what was prepared
    ended: list[Expired] = []
    give_up_at = time.monotonic() + ONE_BY_ONE_SECONDS
    for account_id, session_id in lapsed:
        if time.monotonic() > give_up_at:
            break
        rows = db.execute(END_FREE_LAPSED, {"of_account": account_id, "of_session": session_id}).fetchall()
        ended += [Expired(*row) for row in rows]
    return ended


def months_to_archive(db: Connection, retention_seconds: int) -> list[datetime]:
    """The months (UTC) in which the sessions ended that `archive` would move now."""
    month = func.date_trunc("month", sessions.ended_at, "UTC").label("month")
    return list(db.execute(select(month).where(_is_kept_long_enough(retention_seconds)).distinct()).scalars())


def archive(db: Connection, retention_seconds: int) -> int:
    """Move sessions that ended longer ago than that to the history, at most ENDED_AT_ONCE; how many.

    One statement: a session is in one table or in the other, never in both or in none. Only its key leads to a row that
    is deleted: by way of `ended_at`, which a planner takes who believes that hardly any session has ended, each of 500
    was looked for among 100,000.
    """
    ended = (
        select(sessions.account_id, sessions.session_id)
        .where(_is_kept_long_enough(retention_seconds))
        .order_by(sessions.ended_at)
        .limit(ENDED_AT_ONCE)
    )
    names = [column.name for column in EndedSession.__table__.columns]
    moved = (
        delete(PlaybackSession)
        .where(tuple_(sessions.account_id, sessions.session_id).in_(ended))
        .returning(*(sessions[name] for name in names))
        .cte("moved")
    )
    statement = insert(EndedSession).from_select(names, select(*(moved.c[name] for name in names)))
    result = db.execute(statement, execution_options={"preserve_rowcount": True})
    return cast("CursorResult[Any]", result).rowcount


def _is_kept_long_enough(retention_seconds: int) -> ColumnElement[bool]:
    return sessions.ended_at <= func.statement_timestamp() - seconds(literal(retention_seconds))
