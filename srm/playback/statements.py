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

from functools import lru_cache
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Integer,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import aliased

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
from srm.db.sql import compiled, constant
from srm.playback import entitlements
from srm.playback import limits as policy
from srm.playback.expiry import is_active, is_lapsed, lapse, lapsed_at
from srm.playback.limits import ActiveSession
from srm.playback.model import EndedSession, Principal

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
WAS_ENDED = tuple(sessions[name] for name in EndedSession.__slots__)
LAPSED_IN_ORDER = (
    select(sessions.session_id)
    .where(sessions.account_id == OF_ACCOUNT, sessions.ended_at.is_(None), is_lapsed())
    .order_by(sessions.session_id)
    .with_for_update()
)
END_LAPSED = compiled(
    lapse(and_(sessions.account_id == OF_ACCOUNT, sessions.session_id.in_(LAPSED_IN_ORDER))).returning(*WAS_ENDED)
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
OWN_ACTIVE_SESSION = and_(OWN_SESSION, is_active())
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
        and_(sessions.account_id == OF_ACCOUNT, is_active()),
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
END_ALL_LAPSED = compiled(lapse(tuple_(sessions.account_id, sessions.session_id).in_(NAMED)).returning(*EXPIRED))
ONE_SESSION = and_(sessions.account_id == OF_ACCOUNT, sessions.session_id == OF_SESSION)
FREE_SESSION = select(sessions.session_id).where(ONE_SESSION).with_for_update(skip_locked=True)
END_FREE_LAPSED = compiled(lapse(and_(ONE_SESSION, sessions.session_id.in_(FREE_SESSION))).returning(*EXPIRED))
END_OWN_IF_LAPSED = compiled(lapse(OWN_SESSION).returning(*WAS_ENDED))
EXPLAIN = compiled(select(sessions.end_reason, sessions.ended_by).where(OWN_SESSION))


def params_of(principal: Principal, session_id: UUID) -> dict[str, object]:
    """The parameters of a statement on one session of a principal."""
    return {"of_account": principal.account_id, "of_session": session_id, "of_device": principal.device_id}


def ended_sessions(cursor: Cursor) -> list[EndedSession]:
    """The rows of a statement that returns WAS_ENDED."""
    return [EndedSession(*row) for row in cursor.fetchall()]
