"""Records of denied setups: why a customer could not watch last night."""

import json
from collections.abc import Sequence
from typing import TypeAlias

import psycopg
import structlog
from sqlalchemy import JSON, Text, bindparam, column, func, insert, select

from srm.db.connection import ConnectionPool
from srm.db.models import Denial
from srm.db.sql import compiled
from srm.errors import ContentAccessDenied, DependencyUnavailable, SessionLimitReached, SrmError, first_line
from srm.playback.group_commit import GroupCommit
from srm.playback.setup import SetupRequest

log = structlog.get_logger("srm.denials")

QUEUE_SECONDS = 0.1
"""Longest time of a record in the queue of a batch."""

RECORD_SECONDS = 0.3
"""Longest time of the statement that records: somebody may have locked the table."""

COLUMNS = (
    "account_id",
    "device_id",
    "content_type",
    "content_id",
    "address",
    "error_code",
    "rule",
    "rule_limit",
    "in_the_way",
    "observed",
    "reason",
)
_NEW_DENIALS = (
    func.json_to_recordset(bindparam("denials", type_=Text).cast(JSON))
    .table_valued(*(column(name, Denial.__table__.c[name].type) for name in COLUMNS))
    .render_derived("new_denials", with_types=True)
)
RECORD = compiled(insert(Denial).from_select(list(COLUMNS), select(*(_NEW_DENIALS.c[name] for name in COLUMNS))))

Row: TypeAlias = dict[str, object]
"""Values of a denial, by column, as JSON takes them."""


def record_all(db: ConnectionPool, rows: Sequence[Row]) -> list[str]:
    """Record denials in one statement. Never raises. Return the cause why each is not recorded; '' = it is recorded."""
    try:
        db.execute(RECORD, {"denials": json.dumps(rows)}, RECORD_SECONDS)
    except (DependencyUnavailable, psycopg.Error) as error:
        return [first_line(error.__cause__ or error)] * len(rows)
    return [""] * len(rows)


def record(
    lane: GroupCommit[Row, str],
    db: ConnectionPool,
    request: SetupRequest,
    denial: SrmError,
    *,
    observed: bool = False,
) -> None:
    """Record that the setup was denied, or with `observed` that enforced limits would have denied it.

    Never raises, and takes at most QUEUE_SECONDS and RECORD_SECONDS, because the answer does not depend on the
    record. A denial that cannot be recorded is logged.
    """
    row = _row_of(request, denial, observed=observed)
    try:
        cause = lane.submit(row)
    except DependencyUnavailable as error:
        cause = first_line(error.__cause__ or error)
    if cause is None:
        (cause,) = record_all(db, [row])
    if cause:
        log.warning("denial not recorded", cause=cause, **row)


def _row_of(request: SetupRequest, denial: SrmError, *, observed: bool) -> Row:
    by_limit = denial if isinstance(denial, SessionLimitReached) else None
    return {
        "account_id": request.principal.account_id,
        "device_id": request.principal.device_id,
        "content_type": request.content.content_type,
        "content_id": request.content.content_id,
        "address": request.address,
        "error_code": denial.error_code,
        "rule": by_limit and by_limit.rule,
        "rule_limit": by_limit and by_limit.limit,
        "in_the_way": by_limit and [str(session_id) for session_id in by_limit.conflicts],
        "observed": observed,
        "reason": denial.reason if isinstance(denial, ContentAccessDenied) else None,
    }
