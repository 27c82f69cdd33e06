"""The record of what operators changed."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from srm.db.models import OperatorChange
from srm.logs import CORRELATION_ID
from srm.operators.resources import Shown


class Change(Shown):
    """What somebody did to a resource, from the record."""

    account_id: str
    changed_at: datetime
    change_id: UUID
    operator: str
    action: str
    resource: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    correlation_id: str | None


def record(db: Connection, found: Sequence[dict[str, Any]]) -> None:
    """Record changes, each a `change`, in their transaction."""
    if found:
        db.execute(insert(OperatorChange), found)


def change(
    by: str,
    action: str,
    resource: str,
    *,
    account_id: str = "",
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A change to record."""
    return {
        "operator": by,
        "action": action,
        "resource": resource,
        "account_id": account_id,
        "before": before,
        "after": after,
        "correlation_id": CORRELATION_ID.get(),
    }


def changes(
    db: Connection,
    *,
    limit: int,
    after: tuple[datetime, UUID] | None = None,
    account_id: str | None = None,
    operator: str | None = None,
) -> list[Change]:
    """What was changed, the newest first; `after`: older than the change with this instant and id."""
    of = OperatorChange
    query = select(*(getattr(of, name) for name in Change.model_fields))
    if account_id is not None:
        query = query.where(of.account_id == account_id)
    if operator is not None:
        query = query.where(of.operator == operator)
    if after is not None:
        query = query.where(tuple_(of.changed_at, of.change_id) < tuple_(*after))
    newest_first = (of.changed_at.desc(), of.change_id.desc())
    return [Change.of_row(row) for row in db.execute(query.order_by(*newest_first).limit(limit))]
