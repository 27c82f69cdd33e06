"""Limit check: finds, from the tables alone, every account that ever exceeded a limit.

The command `srm audit` runs it. See docs/design.md, Invariant 1.
"""

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
from srm.playback import limits
from srm.playback.expiry import lapsed_at

COLUMNS = (
    "account_id",
    "started_at",
    "content_id",
    "device_group",
    "content_groups",
    "address",
    "counts",
    "max_session_seconds",
    *limits.LIMITS,
)
"""Columns of a session that the check reads, without the end."""


@dataclass(frozen=True, slots=True)
class Excess:
    """Limit that was exceeded at the instant `at`: by a setup that was admitted, or by a session that lived too long.

    `active`: number of sessions, or addresses, that used the limit; for `max_session_seconds` the life of the session.
    """

    account_id: str
    at: datetime
    active: int
    limit: int
    rule: str = "max_sessions"


def excesses(db: Connection) -> list[Excess]:
    """Return every kept setup that exceeded a limit, and every kept session that lived too long.

    A kept setup or session has a row in `sessions` or `session_history`. For each limit, the check sweeps over the
    intervals [start, end) of the sessions that used the limit. Of events at one instant, ends come before starts. Each
    start is compared with the limit that its session was admitted under, because limits change. A lapsed session ended
    when it lapsed, even if the reaper has not ended it yet.
    """
    spans = _spans()
    found = [Excess(*row) for uses in _uses(spans) for row in db.execute(_too_many_sessions(uses))]
    found += [Excess(*row) for row in db.execute(_too_many_addresses(spans))]
    found += [Excess(*row) for row in db.execute(_too_old(spans))]
    return sorted(found, key=lambda excess: (excess.account_id, excess.at, excess.rule))


def count_sessions(db: Connection) -> int:
    """Return the number of sessions that the check looks at."""
    tables = (PlaybackSession, SessionHistory)
    return sum(db.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)


def _spans() -> CTE:
    """All sessions with their start and end."""
    # An active session ends in the future or, with null, never: after every start.
    ended_at = func.coalesce(sessions.ended_at, lapsed_at()).label("ended_at")
    return union_all(
        select(*_columns(PlaybackSession), ended_at), select(*_columns(SessionHistory), SessionHistory.ended_at)
    ).cte("spans")


def _columns(table: type[SessionColumns]) -> list[ColumnElement[Any]]:
    return [getattr(table, name) for name in COLUMNS]


def _uses(spans: CTE) -> Iterator[Select[Any]]:
    """Yield one query for each kind of limit: the sessions that use it, from start to end, with their limit.

    Sessions are counted together if their `rule` and `of_what` are equal.
    """
    of = spans.c

    def use(rule: ColumnElement[str], of_what: ColumnElement[str], limit: ColumnElement[int | None]) -> Select[Any]:
        return select(
            of.account_id,
            rule.label("rule"),
            of_what.label("of_what"),
            of.started_at,
            of.ended_at,
            limit.label("limit"),
        )

    nothing = literal("")
    yield use(literal("max_sessions"), nothing, of.max_sessions).where(of.counts)
    yield use(literal("max_sessions_per_content"), of.content_id, of.max_sessions_per_content)
    yield use(literal("max_sessions_per_ip"), cast(of.address, Text), of.max_sessions_per_ip).where(
        of.address.is_not(None)
    )
    yield use("device_group:" + of.device_group, nothing, of.max_sessions_of_device_group).where(
        of.device_group.is_not(None)
    )
    in_groups = func.unnest(of.content_groups, of.max_sessions_of_content_groups)
    group = in_groups.table_valued(column("name", Text), "limit", name="content_group").render_derived()
    yield use("content_group:" + group.c.name, nothing, group.c.limit).join_from(spans, group, true())


def _too_many_sessions(uses: Select[Any]) -> Select[Any]:
    """Columns of an Excess for each start that exceeded the limit."""
    of = uses.cte("uses").c
    events = union_all(
        select(of.account_id, of.rule, of.of_what, of.started_at.label("at"), literal(1).label("change"), of.limit),
        select(of.account_id, of.rule, of.of_what, of.ended_at, literal(-1), null()).where(of.ended_at.is_not(None)),
    ).cte("events")
    active = _running_sum(events.c.change, events, "account_id", "rule", "of_what").label("active")
    sweep = select(events, active).cte("sweep")
    return select(sweep.c.account_id, sweep.c.at, sweep.c.active, sweep.c.limit, sweep.c.rule).where(
        sweep.c.change == 1, sweep.c.active > sweep.c.limit
    )


def _too_many_addresses(spans: CTE) -> Select[Any]:
    """Columns of an Excess for each start that exceeded `max_ip_addresses`.

    An address comes with its first session and goes with its last one.
    """
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
    """Columns of an Excess for each session that was active beyond its longest life."""
    of = spans.c
    seconds = func.extract("epoch", of.ended_at - of.started_at)
    rule = literal("max_session_seconds")
    return select(of.account_id, of.ended_at, func.ceil(seconds), of.max_session_seconds, rule).where(
        seconds > of.max_session_seconds
    )


def _running_sum(change: ColumnElement[int], events: CTE, *of_each: str) -> ColumnElement[int]:
    """Sum of the changes up to each event. Of events at one instant, ends (-1) come before starts."""
    partition = [events.c[name] for name in of_each]
    return func.sum(change).over(partition_by=partition, order_by=(events.c.at, events.c.change), rows=(None, 0))
