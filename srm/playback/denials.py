"""Records of the setups that were refused, or would have been: why a customer could not watch last night."""

import psycopg
import structlog
from sqlalchemy import bindparam, insert

from srm.db.connection import ConnectionPool
from srm.db.models import Denial
from srm.db.sql import compiled
from srm.errors import ContentAccessDenied, DependencyUnavailable, SessionLimitReached, SrmError, first_line
from srm.playback.model import ContentRef, Principal

log = structlog.get_logger("srm.denials")

PATIENCE_SECONDS = 0.3
"""The answer waits for the record no longer than that: somebody may have locked the table."""

FACTS = (
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
RECORD = compiled(insert(Denial).values({name: bindparam(name, type_=Denial.__table__.c[name].type) for name in FACTS}))


def record(
    db: ConnectionPool,
    principal: Principal,
    content: ContentRef,
    address: str | None,
    refusal: SrmError,
    *,
    observed: bool = False,
) -> None:
    """Record a refusal, or with `observed` one that would have been.

    Never raises, and takes PATIENCE_SECONDS at most: the answer does not depend on it. What cannot be recorded is
    logged.
    """
    by_limit = refusal if isinstance(refusal, SessionLimitReached) else None
    facts: dict[str, object] = {
        "account_id": principal.account_id,
        "device_id": principal.device_id,
        "content_type": content.content_type,
        "content_id": content.content_id,
        "address": address,
        "error_code": refusal.error_code,
        "rule": by_limit and by_limit.rule,
        "rule_limit": by_limit and by_limit.limit,
        "in_the_way": by_limit and list(by_limit.in_the_way),
        "observed": observed,
        "reason": refusal.reason if isinstance(refusal, ContentAccessDenied) else None,
    }
    try:
        db.execute(RECORD, facts, PATIENCE_SECONDS)
    except (DependencyUnavailable, psycopg.Error) as error:
        cause = first_line(error.__cause__ or error)
        in_the_way = [str(session_id) for session_id in by_limit.in_the_way] if by_limit else None
        log.warning("denial not recorded", cause=cause, **{**facts, "in_the_way": in_the_way})
