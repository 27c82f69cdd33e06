"""SQL of the client path and of the reaper's ending, each statement compiled once at import.

To build a statement anew for each request costs ten times what psycopg needs to send it.

The functions of this package that execute the statements take an open transaction and never commit. `keep_alive` and
`tear_down`, one statement each, also take a pool that executes the statement as a transaction of its own.

The order of the statements and their locks keep the limit exact: docs/design.md, "Concurrency protocol". In short:

- LOCK_ACCOUNT comes first in a setup. Setups of one account wait for each other; setups of other accounts never do.
- The sessions are listed in a later statement, because its snapshot has to be younger than the lock.
- Lapsed sessions are ended, not only left out of the count. Counting without ending lets a late keep-alive and a setup
  both win.
- A statement that changes several sessions of an account locks them in the order of their ids, so that nobody waits in
  a circle.
- Keep-alive and teardown lock nothing but the row of their session.

All times are `statement_timestamp()` of the database: docs/design.md, Invariant 5.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    FromClause,
    Integer,
    Interval,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    column,
    func,
    insert,
    join,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import aliased
from sqlalchemy.types import TypeEngine

from srm.db.connection import Cursor
from srm.db.models import (
    Account,
    AccountProfile,
    Content,
    ContentGroup,
    Device,
    PlaybackSession,
    ProfileContentGroup,
    ProfileDeviceGroup,
    sessions,
)
from srm.db.sql import AnySelect, compiled, constant, is_among, reader
from srm.playback import entitlements, limits
from srm.playback.availability import CLOCK_STEPPED_FROM, LONGEST_STEP
from srm.playback.expiry import KEEP_ALIVE_VALUES, end_if_lapsed, is_active, is_lapsed, lapsed_at, not_before_start
from srm.playback.limits import ActiveSession, Limits
from srm.playback.model import EndedSession, ExpiredSession, ListedSession, Principal, Terms

# Parameters. Every statement of the client path names one account, in each table of an account that it touches:
# docs/adr/0009-account-id-first.md.

ACCOUNT_ID = bindparam("account_id", type_=Text)
SESSION_ID = bindparam("session_id", type_=Uuid)
DEVICE_ID = bindparam("device_id", type_=Text)
CONTENT_TYPE = bindparam("content_type", type_=Text)
CONTENT_ID = bindparam("content_id", type_=Text)
PROFILE_ID = bindparam("profile_id", type_=Text)
ACCOUNT_MAX_SESSIONS = bindparam("account_max_sessions", type_=Integer)
REPLACED_IDS = bindparam("replaced_ids", type_=ARRAY(Uuid))
EVICTED_IDS = bindparam("evicted_ids", type_=ARRAY(Uuid))
ENDED_BY = bindparam("ended_by", type_=Text)


def params_of(principal: Principal, session_id: UUID) -> dict[str, object]:
    """Return the parameters of a statement on one session of a principal."""
    return {"account_id": principal.account_id, "session_id": session_id, "device_id": principal.device_id}


# Setup, 1: lock the account.


class LockedAccount(NamedTuple):
    """Account that a setup has locked; `max_sessions` overrides the limit of the profile unless it is None."""

    enabled: bool
    profile_id: str
    max_sessions: int | None


# Nothing else is read here: a row read together with the lock, other than the locked one, may be older than the lock.
_ACCOUNT = select(Account.enabled, Account.profile_id, Account.max_sessions).where(Account.account_id == ACCOUNT_ID)
LOCK_ACCOUNT = compiled(_ACCOUNT.with_for_update(key_share=True))
read_account = reader(_ACCOUNT, LockedAccount)


# Setup, 2: read the terms, the limits, and the sessions that are not ended.

SESSION = "session_"
"""Prefix of the labels of a session's columns, where they stand beside others."""

OLDEST_FIRST = (sessions.started_at, sessions.session_id)


class Asked(NamedTuple):
    """Columns or parameters with the account, device and content of a setup."""

    account_id: ColumnElement[str]
    device_id: ColumnElement[str]
    content_type: ColumnElement[str]
    content_id: ColumnElement[str]
    account_max_sessions: ColumnElement[Any]


def _content_groups(content_id: ColumnElement[str]) -> FromClause:
    """Return the groups of the content with their limits. An event is also in the groups of its channel."""
    channel_id = select(Content.channel_id).where(Content.content_id == content_id).scalar_subquery()
    groups = (
        select(ContentGroup.content_group)
        .distinct()
        .where(or_(ContentGroup.content_id == content_id, ContentGroup.content_id == channel_id))
        .subquery("groups_of_content")
    )
    by_group = groups.c.content_group
    return (
        select(
            func.array_agg(aggregate_order_by(groups.c.content_group, by_group)).label("names"),
            func.array_agg(aggregate_order_by(ProfileContentGroup.max_sessions, by_group)).label("limits"),
            func.bool_and(func.coalesce(ProfileContentGroup.counts, true())).label("count"),
        )
        .select_from(groups)
        .outerjoin(
            ProfileContentGroup,
            and_(
                ProfileContentGroup.profile_id == AccountProfile.profile_id,
                ProfileContentGroup.content_group == groups.c.content_group,
            ),
        )
        .lateral("content_groups")
    )


class SessionState(NamedTuple):
    """Session in a row beside the terms. `session_id` is None when the account has no session that is not ended."""

    session_id: UUID | None
    is_lapsed: bool | None


_ACTIVE_SESSION = {name: sessions[name] for name in ActiveSession._fields}


def _terms_and_sessions(asked: Asked, profiles: FromClause) -> AnySelect:
    """Return one row for each session that is not ended.

    When there is none, return one row whose columns of the session are null.
    """
    content_groups = _content_groups(asked.content_id)
    terms = {
        "device_enabled": Device.enabled,
        "device_name": Device.name,
        "device_group": Device.device_group,
        "granted": entitlements.is_granted(asked.account_id, asked.content_type, asked.content_id),
        "content_groups": content_groups.c.names,
        "counts": and_(func.coalesce(ProfileDeviceGroup.counts, true()), func.coalesce(content_groups.c.count, true())),
        "timeout_seconds": AccountProfile.timeout_seconds,
        "max_session_seconds": AccountProfile.max_session_seconds,
    }
    limits_ = {
        "max_sessions": func.coalesce(asked.account_max_sessions, AccountProfile.max_sessions),
        "max_sessions_per_content": AccountProfile.max_sessions_per_content,
        "max_ip_addresses": AccountProfile.max_ip_addresses,
        "max_sessions_per_ip": AccountProfile.max_sessions_per_ip,
        "max_sessions_of_device_group": ProfileDeviceGroup.max_sessions,
        "max_sessions_of_content_groups": content_groups.c.limits,
        "on_limit": AccountProfile.on_limit,
        "same_device": AccountProfile.same_device,
        "mode": AccountProfile.mode,
    }
    return (
        select(
            *(column.label(name) for name, column in {**terms, **limits_}.items()),
            is_lapsed().label(f"{SESSION}is_lapsed"),
            *(column.label(f"{SESSION}{name}") for name, column in _ACTIVE_SESSION.items()),
        )
        .select_from(profiles)
        .outerjoin(Device, and_(Device.account_id == asked.account_id, Device.device_id == asked.device_id))
        .outerjoin(
            ProfileDeviceGroup,
            and_(
                ProfileDeviceGroup.profile_id == AccountProfile.profile_id,
                ProfileDeviceGroup.device_group == Device.device_group,
            ),
        )
        .join(content_groups, true())
        .outerjoin(PlaybackSession, and_(sessions.account_id == asked.account_id, sessions.ended_at.is_(None)))
        .order_by(*OLDEST_FIRST)
    )


_TERMS_AND_SESSIONS = _terms_and_sessions(
    Asked(ACCOUNT_ID, DEVICE_ID, CONTENT_TYPE, CONTENT_ID, ACCOUNT_MAX_SESSIONS), AccountProfile.__table__
).where(AccountProfile.profile_id == PROFILE_ID)
GET_TERMS_AND_SESSIONS = compiled(_TERMS_AND_SESSIONS)
read_terms = reader(_TERMS_AND_SESSIONS, Terms)
read_limits = reader(_TERMS_AND_SESSIONS, Limits)
read_state = reader(_TERMS_AND_SESSIONS, SessionState, prefix=SESSION)
read_session = reader(_TERMS_AND_SESSIONS, ActiveSession, prefix=SESSION)


# Setup, 3: end what has lapsed, and list the rest again.

ENDED_SESSION = tuple(sessions[name] for name in EndedSession._fields)
LAPSED_IN_ORDER = (
    select(sessions.session_id)
    .where(sessions.account_id == ACCOUNT_ID, sessions.ended_at.is_(None), is_lapsed())
    .order_by(sessions.session_id)
    .with_for_update()
)
END_LAPSED = compiled(
    end_if_lapsed(and_(sessions.account_id == ACCOUNT_ID, is_among(sessions.session_id, LAPSED_IN_ORDER))).returning(
        *ENDED_SESSION
    )
)
# After END_LAPSED, in a statement of its own. END_LAPSED may have waited for a session; only a younger snapshot shows
# whether that session is still active.
LIST_ACTIVE = compiled(
    select(*_ACTIVE_SESSION.values())
    .where(sessions.account_id == ACCOUNT_ID, sessions.ended_at.is_(None))
    .order_by(*OLDEST_FIRST)
)


def ended_sessions(cursor: Cursor) -> list[EndedSession]:
    """Return the rows of a statement that returns the columns ENDED_SESSION."""
    return [EndedSession(*row) for row in cursor.fetchall()]


# Setup, 4: end the sessions that have to go, and insert the new one.

# The ids are looked up in hash tables, because one setup may end thousands of sessions.
IS_REPLACED = is_among(sessions.session_id, select(func.unnest(REPLACED_IDS)))
IS_EVICTED = is_among(sessions.session_id, select(func.unnest(EVICTED_IDS)))
REPLACED_OR_EVICTED_IN_ORDER = (
    select(sessions.session_id)
    .where(
        sessions.account_id == ACCOUNT_ID,
        or_(IS_REPLACED, IS_EVICTED),
        sessions.ended_at.is_(None),
    )
    .order_by(sessions.session_id)
    .with_for_update()
)
# A statement of its own, before the insert: where it has to wait for a teardown, the new session starts after that.
END_FOR_ANOTHER = compiled(
    update(PlaybackSession)
    .where(
        sessions.account_id == ACCOUNT_ID,
        is_among(sessions.session_id, REPLACED_OR_EVICTED_IN_ORDER),
        sessions.ended_at.is_(None),
    )
    .values(
        ended_at=not_before_start(func.least(func.statement_timestamp(), lapsed_at())),
        end_reason=case((IS_REPLACED, constant("replaced")), else_=constant("evicted")),
        ended_by=ENDED_BY,
    )
    .returning(*ENDED_SESSION)
)

COPIED = (
    "device_group",
    "content_groups",
    "address",
    "counts",
    "timeout_seconds",
    "max_session_seconds",
    *limits.LIMITS,
    "idempotency_key",
)
"""Setup values copied to the row of the session; its limits and its timeout use these copies."""


def _start(account_id: ColumnElement[str]) -> ColumnElement[datetime]:
    """Start of a new session: now, or later, after every start and end that the account has in `sessions`.

    So after a step back of the clock no session starts before another one that ended for it, and the oldest session
    stays the oldest. Instants more than LONGEST_STEP ahead are by a wrong clock, and do not count.
    """
    earlier = aliased(PlaybackSession)
    last = func.greatest(earlier.started_at, earlier.ended_at)
    now = func.statement_timestamp()
    after_all = func.max(last) + func.cast(constant("1 microsecond"), Interval)
    of_account = select(after_all).where(earlier.account_id == account_id, last <= now + LONGEST_STEP)
    return func.greatest(now, of_account.scalar_subquery())


def _started(account_id: ColumnElement[str]) -> dict[str, ColumnElement[Any]]:
    """Columns of a new session of the account that depend on steps of the clock."""
    return {"started_at": _start(account_id), "clock_stepped_from": CLOCK_STEPPED_FROM}


@lru_cache
def insert_session(columns: tuple[str, ...]) -> str:
    """Return the statement that inserts a session with values in these columns of COPIED.

    The other columns of COPIED are null, most of them nearly always: to send a null costs as much as to send a value.
    """
    values = {name: bindparam(name, type_=sessions[name].type) for name in columns}
    who_and_what = {
        "account_id": ACCOUNT_ID,
        "session_id": SESSION_ID,
        "device_id": DEVICE_ID,
        "content_type": CONTENT_TYPE,
        "content_id": CONTENT_ID,
    }
    return compiled(insert(PlaybackSession).values(**who_and_what, **_started(ACCOUNT_ID), **values))


# Keep-alive and teardown.

ONE_SESSION = and_(sessions.account_id == ACCOUNT_ID, sessions.session_id == SESSION_ID)
OWN_SESSION = and_(ONE_SESSION, sessions.device_id == DEVICE_ID)
TORN_DOWN = {"ended_at": not_before_start(func.statement_timestamp()), "end_reason": constant("teardown")}
KEEP_ALIVE = compiled(update(PlaybackSession).where(OWN_SESSION, is_active()).values(KEEP_ALIVE_VALUES))
TEAR_DOWN = compiled(update(PlaybackSession).where(OWN_SESSION, is_active()).values(TORN_DOWN))


# Keep-alives and teardowns of a batch. A statement spans many accounts, so distributed tables do not take it.


IS_DISTRIBUTED = "SELECT to_regclass('pg_dist_partition') IS NOT NULL"
"""True where Citus is installed: its table `pg_dist_partition` lists the distributed tables."""


class OwnSession(NamedTuple):
    """Session as its client names it: account, session id as text in lower case, device."""

    account_id: str
    session_id: str
    device_id: str


def own_sessions(batch: Sequence[OwnSession]) -> dict[str, object]:
    """Return the parameters of a statement on the sessions of a batch."""
    account_ids, session_ids, device_ids = zip(*batch, strict=True)
    return {"account_ids": list(account_ids), "session_ids": list(session_ids), "device_ids": list(device_ids)}


_ROW = aliased(PlaybackSession)
_GIVEN = (
    func.unnest(
        bindparam("account_ids", type_=ARRAY(Text)),
        bindparam("session_ids", type_=ARRAY(Text)).cast(ARRAY(Uuid)),
        bindparam("device_ids", type_=ARRAY(Text)),
    )
    .table_valued("account_id", "session_id", "device_id")
    .render_derived("given")
)
# A session whose row somebody holds is left out, and goes the ordinary way. So it delays no other request of the batch,
# and two batches cannot wait for each other in a circle.
_NOT_HELD = (
    select(_ROW.account_id, _ROW.session_id)
    .join_from(
        _GIVEN,
        _ROW,
        and_(
            _ROW.account_id == _GIVEN.c.account_id,
            _ROW.session_id == _GIVEN.c.session_id,
            _ROW.device_id == _GIVEN.c.device_id,
        ),
    )
    .where(_ROW.ended_at.is_(None))
    .with_for_update(of=_ROW, key_share=True, skip_locked=True)
    .subquery("not_held")
)
_NOT_HELD_AND_ACTIVE = and_(
    sessions.account_id == _NOT_HELD.c.account_id, sessions.session_id == _NOT_HELD.c.session_id, is_active()
)
_OWN_SESSION = (sessions.account_id, sessions.session_id.cast(Text), sessions.device_id)
KEEP_ALL_ALIVE = compiled(
    update(PlaybackSession).where(_NOT_HELD_AND_ACTIVE).values(KEEP_ALIVE_VALUES).returning(*_OWN_SESSION)
)
TEAR_ALL_DOWN = compiled(update(PlaybackSession).where(_NOT_HELD_AND_ACTIVE).values(TORN_DOWN).returning(*_OWN_SESSION))

# Why a session is not active.

END_OWN_IF_LAPSED = compiled(end_if_lapsed(OWN_SESSION).returning(*ENDED_SESSION))


class SessionEnd(NamedTuple):
    """Why a session ended; `end_reason` is None while it has not."""

    end_reason: str | None
    ended_by: str | None


_END = select(sessions.end_reason, sessions.ended_by).where(OWN_SESSION)
GET_END = compiled(_END)
read_end = reader(_END, SessionEnd)


# Setups of a batch, at most one of each account. The statements span many accounts, so distributed tables do not take
# them.


class LockedAccountOfBatch(NamedTuple):
    """Enabled account that a batch has locked."""

    account_id: str
    profile_id: str
    max_sessions: int | None


# Accounts whose row somebody holds are left out, and so are accounts that are not enabled. Both go the ordinary way.
_FREE_ACCOUNTS = (
    select(Account.account_id, Account.profile_id, Account.max_sessions, Account.enabled)
    .where(Account.account_id == func.any(bindparam("account_ids", type_=ARRAY(Text))))
    .order_by(Account.account_id)
    .with_for_update(key_share=True, skip_locked=True)
    .subquery("free_accounts")
)
_ACCOUNTS = select(_FREE_ACCOUNTS.c.account_id, _FREE_ACCOUNTS.c.profile_id, _FREE_ACCOUNTS.c.max_sessions).where(
    _FREE_ACCOUNTS.c.enabled
)
LOCK_ACCOUNTS = compiled(_ACCOUNTS)
read_account_of_batch = reader(_ACCOUNTS, LockedAccountOfBatch)

ASKED_OF_ALL: dict[str, TypeEngine[Any]] = {
    "account_id": Text(),
    "device_id": Text(),
    "content_type": Text(),
    "content_id": Text(),
    "profile_id": Text(),
    "account_max_sessions": Integer(),
}
"""Columns of the requests of a batch. Each is a parameter: an array of this type."""
_ASKED = (
    func.unnest(*(bindparam(name, type_=ARRAY(type_)) for name, type_ in ASKED_OF_ALL.items()))
    .table_valued(*(column(name, type_) for name, type_ in ASKED_OF_ALL.items()))
    .render_derived("asked")
)
# Columns written as text: otherwise SQLAlchemy would add `asked` to the FROM of each subquery.
_asked: dict[str, ColumnElement[Any]] = {
    name: literal_column(f"asked.{name}", type_) for name, type_ in ASKED_OF_ALL.items()
}
GET_TERMS_AND_SESSIONS_OF_ALL = compiled(
    _terms_and_sessions(
        Asked(**{name: _asked[name] for name in Asked._fields}),
        join(_ASKED, AccountProfile.__table__, AccountProfile.profile_id == _asked["profile_id"]),
    ).add_columns(_asked["account_id"].label("asked_account_id"))  # The last column: readers keep their places.
)

INSERTED = ("account_id", "session_id", "device_id", "content_type", "content_id", *COPIED)
"""Columns of a new session."""
_NEW_SESSIONS = (
    func.json_to_recordset(bindparam("sessions", type_=Text).cast(JSON))
    .table_valued(*(column(name, sessions[name].type) for name in INSERTED))
    .render_derived("new_sessions", with_types=True)
)
_STARTED = _started(_NEW_SESSIONS.c.account_id)
INSERT_SESSIONS = compiled(
    insert(PlaybackSession).from_select(
        [*INSERTED, *_STARTED], select(*(_NEW_SESSIONS.c[name] for name in INSERTED), *_STARTED.values())
    )
)


# List of the active sessions of an account.


class ListState(NamedTuple):
    """State of the account and device that ask, and the id of one active session of the account."""

    account_enabled: bool
    device_enabled: bool | None
    """None = the account has no such device."""
    session_id: UUID | None
    """None = the account has no active session."""


OTHER_DEVICE = aliased(Device)
# One row for each active session; without any, one row whose columns of the session are null.
_LIST = (
    select(
        Account.enabled.label("account_enabled"),
        Device.enabled.label("device_enabled"),
        sessions.session_id,
        func.coalesce(OTHER_DEVICE.name, sessions.device_id).label("device_name"),
        sessions.content_id,
        sessions.content_type,
        sessions.started_at,
    )
    .select_from(Account)
    .outerjoin(Device, and_(Device.account_id == ACCOUNT_ID, Device.device_id == DEVICE_ID))
    .outerjoin(PlaybackSession, and_(sessions.account_id == ACCOUNT_ID, is_active()))
    .outerjoin(OTHER_DEVICE, and_(OTHER_DEVICE.account_id == ACCOUNT_ID, OTHER_DEVICE.device_id == sessions.device_id))
    .where(Account.account_id == ACCOUNT_ID)
    .order_by(*OLDEST_FIRST)
)
LIST_SESSIONS = compiled(_LIST)
read_list_state = reader(_LIST, ListState)
read_listed_session = reader(_LIST, ListedSession)


# Ending of lapsed sessions by the reaper, across accounts.

SESSION_ID_AS_TEXT = sessions.session_id.cast(Text)
FIND_LAPSED = compiled(
    select(sessions.account_id, SESSION_ID_AS_TEXT)
    .where(sessions.ended_at.is_(None), is_lapsed())
    .limit(bindparam("at_most", type_=Integer))
)
_EXPIRED = {
    "account_id": sessions.account_id,
    "device_id": sessions.device_id,
    "session_id": SESSION_ID_AS_TEXT,
    "ended_at": sessions.ended_at,
}
EXPIRED_SESSION = tuple(_EXPIRED[name] for name in ExpiredSession._fields)
GIVEN_KEYS = select(
    func.unnest(bindparam("account_ids", type_=ARRAY(Text))),
    func.unnest(bindparam("session_ids", type_=ARRAY(Text)).cast(ARRAY(Uuid))),
)
END_ALL_LAPSED = compiled(
    end_if_lapsed(tuple_(sessions.account_id, sessions.session_id).in_(GIVEN_KEYS)).returning(*EXPIRED_SESSION)
)
ONE_SESSION_UNLESS_HELD = select(sessions.session_id).where(ONE_SESSION).with_for_update(skip_locked=True)
END_LAPSED_UNLESS_HELD = compiled(
    end_if_lapsed(and_(ONE_SESSION, sessions.session_id.in_(ONE_SESSION_UNLESS_HELD))).returning(*EXPIRED_SESSION)
)
