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
from srm.playback.availability import LONGEST_STEP
from srm.playback.expiry import lapsed_at, not_before_start

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
    when it lapsed, even if the reaper has not ended it yet. A session by a clock that was more than a day ahead is left
    out.
    """
    spans = _spans()
    found = [Excess(**row._asdict()) for uses in _uses(spans) for row in db.execute(_too_many_sessions(uses))]
    found += [Excess(**row._asdict()) for row in db.execute(_too_many_addresses(spans))]
    found += [Excess(**row._asdict()) for row in db.execute(_too_old(spans))]
    return sorted(found, key=lambda excess: (excess.account_id, excess.at, excess.rule))


def count_sessions(db: Connection) -> int:
    """Return the number of sessions that the check looks at."""
    tables = (PlaybackSession, SessionHistory)
    return sum(db.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)


def _spans() -> CTE:
    """All sessions with their start and end."""
    # An active session ends in the future or, with null, never: after every start.
    lapse = case((lapsed_at().is_not(None), not_before_start(lapsed_at())))
    ended_at = func.coalesce(sessions.ended_at, lapse).label("ended_at")
    return union_all(
        select(*_columns(PlaybackSession), ended_at).where(~_is_by_wrong_clock(PlaybackSession)),
        select(*_columns(SessionHistory), SessionHistory.ended_at).where(~_is_by_wrong_clock(SessionHistory)),
    ).cte("spans")


def _is_by_wrong_clock(table: type[PlaybackSession | SessionHistory]) -> ColumnElement[bool]:
    """Condition that a session started or ended further in the future than LONGEST_STEP.

    Nobody can tell whether such a session overlapped another one.
    """
    return func.greatest(table.started_at, table.ended_at) > func.statement_timestamp() + LONGEST_STEP


def _columns(table: type[SessionColumns]) -> list[ColumnElement[Any]]:
    return [getattr(table, name) for name in COLUMNS]


def _uses(spans: CTE) -> Iterator[Select[Any]]:
    """Yield one query for each kind of limit: the sessions that use it, from start to end, with their limit.

    Sessions are counted together if their `rule` and `of_what` are equal.
    """
    span = spans.c

    def use(rule: ColumnElement[str], of_what: ColumnElement[str], limit: ColumnElement[int | None]) -> Select[Any]:
        return select(
            span.account_id,
            rule.label("rule"),
            of_what.label("of_what"),
            span.started_at,
            span.ended_at,
            limit.label("limit"),
        )

    nothing = literal("")
    yield use(literal("max_sessions"), nothing, span.max_sessions).where(span.counts)
    yield use(literal("max_sessions_per_content"), span.content_id, span.max_sessions_per_content)
    yield use(literal("max_sessions_per_ip"), cast(span.address, Text), span.max_sessions_per_ip).where(
        span.address.is_not(None)
    )
    yield use("device_group:" + span.device_group, nothing, span.max_sessions_of_device_group).where(
        span.device_group.is_not(None)
    )
    in_groups = func.unnest(span.content_groups, span.max_sessions_of_content_groups)
    group = in_groups.table_valued(column("name", Text), "limit", name="content_group").render_derived()
    yield use("content_group:" + group.c.name, nothing, group.c.limit).join_from(spans, group, true())


def _too_many_sessions(uses: Select[Any]) -> Select[Any]:
    """Columns named as the fields of Excess, for each start that exceeded the limit."""
    use = uses.cte("uses").c
    events = union_all(
        select(
            use.account_id, use.rule, use.of_what, use.started_at.label("at"), literal(1).label("change"), use.limit
        ),
        select(use.account_id, use.rule, use.of_what, use.ended_at, literal(-1), null()).where(
            use.ended_at.is_not(None)
        ),
    ).cte("events")
    active = _running_sum(events.c.change, events, "account_id", "rule", "of_what").label("active")
    sweep = select(events, active).cte("sweep")
    return select(sweep.c.account_id, sweep.c.at, sweep.c.active, sweep.c.limit, sweep.c.rule).where(
        sweep.c.change == 1, sweep.c.active > sweep.c.limit
    )


def _too_many_addresses(spans: CTE) -> Select[Any]:
    """Columns named as the fields of Excess, for each start that exceeded `max_ip_addresses`.

    An address comes with its first session and goes with its last one.
    """
    span = spans.c
    events = union_all(
        select(
            span.account_id,
            span.address,
            span.started_at.label("at"),
            literal(1).label("change"),
            span.max_ip_addresses,
        ),
        select(span.account_id, span.address, span.ended_at, literal(-1), null()).where(span.ended_at.is_not(None)),
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
    return select(
        sweep.c.account_id,
        sweep.c.at,
        sweep.c.addresses.label("active"),
        sweep.c.max_ip_addresses.label("limit"),
        literal("max_ip_addresses").label("rule"),
    ).where(sweep.c.change == 1, sweep.c.addresses > sweep.c.max_ip_addresses)


def _too_old(spans: CTE) -> Select[Any]:
    """Columns named as the fields of Excess, for each session that was active beyond its longest life."""
    span = spans.c
    seconds = func.extract("epoch", span.ended_at - span.started_at)
    return select(
        span.account_id,
        span.ended_at.label("at"),
        func.ceil(seconds).label("active"),
        span.max_session_seconds.label("limit"),
        literal("max_session_seconds").label("rule"),
    ).where(seconds > span.max_session_seconds)


def _running_sum(change: ColumnElement[int], events: CTE, *of_each: str) -> ColumnElement[int]:
    """Sum of the changes up to each event. Of events at one instant, ends (-1) come before starts."""
    partition = [events.c[name] for name in of_each]
    return func.sum(change).over(partition_by=partition, order_by=(events.c.at, events.c.change), rows=(None, 0))
