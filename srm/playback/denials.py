"""Records of denied setups: why a customer could not watch last night."""

import psycopg
import structlog
from sqlalchemy import bindparam, insert

from srm.db.connection import ConnectionPool
from srm.db.models import Denial
from srm.db.sql import compiled
from srm.errors import ContentAccessDenied, DependencyUnavailable, SessionLimitReached, SrmError, first_line
from srm.playback.setup import SetupRequest

log = structlog.get_logger("srm.denials")

RECORD_SECONDS = 0.3
"""Longest that an answer waits for its record: somebody may have locked the table."""

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
RECORD = compiled(
    insert(Denial).values({name: bindparam(name, type_=Denial.__table__.c[name].type) for name in COLUMNS})
)


def record(db: ConnectionPool, request: SetupRequest, denial: SrmError, *, observed: bool = False) -> None:
    """Record that the setup was denied, or with `observed` that enforced limits would have denied it.

    Never raises, and takes at most RECORD_SECONDS, because the answer does not depend on the record. A denial that
    cannot be recorded is logged.
    """
    by_limit = denial if isinstance(denial, SessionLimitReached) else None
    row: dict[str, object] = {
        "account_id": request.principal.account_id,
        "device_id": request.principal.device_id,
        "content_type": request.content.content_type,
        "content_id": request.content.content_id,
        "address": request.address,
        "error_code": denial.error_code,
        "rule": by_limit and by_limit.rule,
        "rule_limit": by_limit and by_limit.limit,
        "in_the_way": by_limit and list(by_limit.conflicts),
        "observed": observed,
        "reason": denial.reason if isinstance(denial, ContentAccessDenied) else None,
    }
    try:
        db.execute(RECORD, row, RECORD_SECONDS)
    except (DependencyUnavailable, psycopg.Error) as error:
        cause = first_line(error.__cause__ or error)
        conflicts = [str(session_id) for session_id in by_limit.conflicts] if by_limit else None
        log.warning("denial not recorded", cause=cause, **{**row, "in_the_way": conflicts})
