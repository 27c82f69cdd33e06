"""Checks afterwards, from the tables alone, that no account ever went over its limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Select,
    Text,
    case,
    cast,
    column,
    func,
    literal,
    null,
    select,
    true,
    union_all,
)

from srm.db.models import PlaybackSession, SessionColumns, SessionHistory, sessions
from srm.playback import limits as policy
from srm.playback.expiry import lapsed_at

LOOKED_AT = (
    "account_id",
    "started_at",
    "content_id",
    "device_group",
    "content_groups",
    "address",
    "counts",
    "max_session_seconds",
    *policy.LIMITS,
)
"""What the audit needs of a session, beside its end."""


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that was not kept: at that instant a setup was admitted though it was reached, or a session had lived on.

    `active`: how many sessions, or addresses, took the limit up; of `max_session_seconds` how long the session lived.
    """

    account_id: str
    at: datetime
    active: int
    limit: int
    rule: str = "max_sessions"


def excesses(db: Connection) -> list[Excess]:
    """Every setup, kept in `sessions` or `session_history`, that took an account over a limit, and every overlong life.

    A sweep over [start, end) of all sessions that take up the same limit, ends before starts at the same instant;
    each session is held against the limit under which it was admitted, since limits change. A lapsed session ended
    when it lapsed, whether or not the reaper has seen it.
    """
    spans = _spans()
    found = [Excess(*row) for taken in _taken(spans) for row in db.execute(_over_the_limit(taken))]
    found += [Excess(*row) for row in db.execute(_over_the_limit_of_addresses(spans))]
    found += [Excess(*row) for row in db.execute(_too_old(spans))]
    return sorted(found, key=lambda excess: (excess.account_id, excess.at, excess.rule))


def counted(db: Connection) -> int:
    """How many sessions there are to check."""
    tables = (PlaybackSession, SessionHistory)
    return sum(db.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)


def _spans() -> CTE:
    """All sessions, from their start to their end."""
    # The end of an active session, in the future or null, comes after every start.
    ended_at = func.coalesce(sessions.ended_at, lapsed_at()).label("ended_at")
    return union_all(
        select(*_looked_at(PlaybackSession), ended_at), select(*_looked_at(SessionHistory), SessionHistory.ended_at)
    ).cte("spans")


def _looked_at(table: type[SessionColumns]) -> list[ColumnElement[Any]]:
    return [getattr(table, name) for name in LOOKED_AT]


def _taken(spans: CTE) -> Iterator[Select[Any]]:
    """For each kind of limit: who takes it up, from when to when, and the limit that the session was held against.

    `rule` and `of_what` together tell apart what is counted on its own.
    """
    of = spans.c

    def taken(rule: ColumnElement[str], of_what: ColumnElement[str], limit: ColumnElement[int | None]) -> Select[Any]:
        return select(
            of.account_id,
            rule.label("rule"),
            of_what.label("of_what"),
            of.started_at,
            of.ended_at,
            limit.label("limit"),
        )

    nothing = literal("")
    yield taken(literal("max_sessions"), nothing, of.max_sessions).where(of.counts)
    yield taken(literal("max_sessions_per_content"), of.content_id, of.max_sessions_per_content)
    yield taken(literal("max_sessions_per_ip"), cast(of.address, Text), of.max_sessions_per_ip).where(
        of.address.is_not(None)
    )
    yield taken("device_group:" + of.device_group, nothing, of.max_sessions_of_device_group).where(
        of.device_group.is_not(None)
    )
    in_groups = func.unnest(of.content_groups, of.max_sessions_of_content_groups)
    group = in_groups.table_valued(column("name", Text), "limit", name="content_group").render_derived()
    yield taken("content_group:" + group.c.name, nothing, group.c.limit).join_from(spans, group, true())


def _over_the_limit(taken: Select[Any]) -> Select[Any]:
    """Account, instant, count, limit and rule of the starts that went over the limit."""
    of = taken.cte("taken").c
    events = union_all(
        select(of.account_id, of.rule, of.of_what, of.started_at.label("at"), literal(1).label("change"), of.limit),
        select(of.account_id, of.rule, of.of_what, of.ended_at, literal(-1), null()).where(of.ended_at.is_not(None)),
    ).cte("events")
    active = _running_sum(events.c.change, events, "account_id", "rule", "of_what").label("active")
    sweep = select(events, active).cte("sweep")
    return select(sweep.c.account_id, sweep.c.at, sweep.c.active, sweep.c.limit, sweep.c.rule).where(
        sweep.c.change == 1, sweep.c.active > sweep.c.limit
    )


def _over_the_limit_of_addresses(spans: CTE) -> Select[Any]:
    """The same for the addresses with a session: one comes with its first session and goes with its last one."""
    of = spans.c
    events = union_all(
        select(of.account_id, of.address, of.started_at.label("at"), literal(1).label("change"), of.max_ip_addresses),
        select(of.account_id, of.address, of.ended_at, literal(-1), null()).where(of.ended_at.is_not(None)),
    ).cte("events")
    active = _running_sum(events.c.change, events, "account_id", "address").label("active")
    of_address = select(events, active).where(events.c.address.is_not(None)).cte("of_address")
    comes_or_goes = case(
        ((of_address.c.change == 1) & (of_address.c.active == 1), 1),
        ((of_address.c.change == -1) & (of_address.c.active == 0), -1),
        else_=0,
    )
    addresses = _running_sum(comes_or_goes, of_address, "account_id").label("addresses")
    sweep = select(of_address, addresses).cte("sweep")
    rule = literal("max_ip_addresses")
    return select(sweep.c.account_id, sweep.c.at, sweep.c.addresses, sweep.c.max_ip_addresses, rule).where(
        sweep.c.change == 1, sweep.c.addresses > sweep.c.max_ip_addresses
    )


def _too_old(spans: CTE) -> Select[Any]:
    """The same for the sessions that were still active when they were as old as they may get."""
    of = spans.c
    seconds = func.extract("epoch", of.ended_at - of.started_at)
    rule = literal("max_session_seconds")
    return select(of.account_id, of.ended_at, func.ceil(seconds), of.max_session_seconds, rule).where(
        seconds > of.max_session_seconds
    )


def _running_sum(change: ColumnElement[int], events: CTE, *of_each: str) -> ColumnElement[int]:
    """The sum of the changes up to each event, ends before starts at the same instant."""
    partition = [events.c[name] for name in of_each]
    return func.sum(change).over(partition_by=partition, order_by=(events.c.at, events.c.change), rows=(None, 0))
