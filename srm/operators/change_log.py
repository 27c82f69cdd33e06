"""The change log: which operator changed what, when, and in which request.

An entry is written in the transaction of its change. Entries are never changed.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, insert, select, tuple_

from srm.db.models import OperatorChange
from srm.logs import CORRELATION_ID
from srm.operators import documents
from srm.operators.cursors import InstantCursor
from srm.operators.resources import ReadModel, path_in_account
from srm.playback.model import EndedSession


class Change(ReadModel):
    """An entry of the change log."""

    account_id: str
    changed_at: datetime
    change_id: UUID
    operator: str
    action: str
    resource: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    correlation_id: str | None


class NewChange(NamedTuple):
    """A change to record.

    `resource` is its path, as `Kind.path` or `path_in_account` makes it. `account_id` is empty when no account was
    changed. `before` and `after` are documents (`documents.py`); None where the resource did not exist, or no longer
    exists.
    """

    operator: str
    action: str
    resource: str
    account_id: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


def record(db: Connection, changes: Sequence[NewChange]) -> None:
    """Record the changes, with the correlation id of the current request."""
    if changes:
        correlation_id = CORRELATION_ID.get()
        rows = [{**change._asdict(), "correlation_id": correlation_id} for change in changes]
        db.execute(insert(OperatorChange), rows)


def record_ended(db: Connection, operator: str, ended: Sequence[EndedSession]) -> int:
    """Record the sessions that the operator ended, and return their number.

    Sessions that turned out to have lapsed are neither recorded nor counted: nobody stopped them.
    """
    stopped = [session for session in ended if session.end_reason != "expired"]
    record(
        db,
        [
            NewChange(
                operator,
                "end",
                path_in_account(session.account_id, "sessions", str(session.session_id)),
                account_id=session.account_id,
                before=documents.before_end(session),
                after=documents.after_end(session),
            )
            for session in stopped
        ],
    )
    return len(stopped)


def list_changes(
    db: Connection,
    *,
    limit: int,
    after: InstantCursor | None = None,
    account_id: str | None = None,
    operator: str | None = None,
) -> list[Change]:
    """Return at most `limit` changes, newest first, that come after the cursor; of one account or operator if named."""
    table = OperatorChange
    query = select(*(getattr(table, name) for name in Change.model_fields))
    if account_id is not None:
        query = query.where(table.account_id == account_id)
    if operator is not None:
        query = query.where(table.operator == operator)
    if after is not None:
        query = query.where(tuple_(table.changed_at, table.change_id) < tuple_(*after))
    newest_first = (table.changed_at.desc(), table.change_id.desc())
    return [Change.of_row(row) for row in db.execute(query.order_by(*newest_first).limit(limit))]
