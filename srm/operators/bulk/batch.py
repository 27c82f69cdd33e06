"""A batch of an import: the statements that choose its rows, and decide what becomes of each."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
)

from srm.db import models
from srm.db.models import Base
from srm.operators.bulk.list_fields import content_id_of, table_of
from srm.operators.bulk.staging import UNREACHABLE, Staging, all_equal
from srm.operators.documents import field_name
from srm.operators.resources import ACCOUNTS, CONTENTS, DEVICES, ENTITLEMENTS, PRODUCTS, Kind

REFERENCES: dict[Kind, dict[str, type[Base]]] = {
    ACCOUNTS: {"profile_id": models.AccountProfile},
    DEVICES: {"account_id": models.Account},
    ENTITLEMENTS: {"account_id": models.Account, "product_id": models.Product},
    CONTENTS: {"channel_id": models.Content},
    PRODUCTS: {},
}
"""The fields that refer to another resource, and the table in which the other resource must exist."""


class BatchCounts(NamedTuple):
    """Numbers of rows in a batch. `disabled`: accounts or devices that are disabled afterwards, changed or not."""

    rows: int
    taken: int
    new: int
    changed: int
    disabled: int
    rejected: int


class Rejected(NamedTuple):
    """A row that cannot be merged: number of its line, why, and the line."""

    line: int
    reason: str
    text: str


class BatchStatements:
    """The statements that fill `batch` and tell what is in it.

    A batch has `size` rows that come after the key `after_…`; it ends with the key `last_…`. A dry run merges
    nothing, so it accepts a content whose channel is only in the file.
    """

    def __init__(self, staging: Staging, *, dry_run: bool) -> None:
        self._staging = staging
        self._dry_run = dry_run
        self.find_last = self._find_last()
        self.fill = self._fill()
        self.count = self._count()
        batch = staging.batch
        rejected = select(*(batch.c[name] for name in Rejected._fields)).where(batch.c.reason.is_not(None))
        self.list_rejected = rejected.order_by(batch.c.line)

    def _find_last(self) -> Select[Any]:
        """Find the key with which the batch ends."""
        staging = self._staging
        key = staging.key_of(staging.staged)
        rows = select(*key).where(staging.is_after()).order_by(*key).limit(bindparam("size", type_=Integer)).subquery()
        return select(*rows.c).order_by(*(column.desc() for column in rows.c)).limit(1)

    def _fill(self) -> Executable:
        """Copy the rows from `after_…` to `last_…` into `batch`, with what becomes of each."""
        batch = self._staging.batch
        found = self._found()
        names = [column.name for column in batch.c if column.name != "taken"]
        columns: dict[str, ColumnElement[Any]] = {name: found.c[name] for name in names}
        columns["text"] = case((found.c.reason.is_not(None), found.c.text))  # only the reject file needs it
        columns["taken"] = and_(self._is_last(found), found.c.reason.is_(None))
        return insert(batch).from_select([*columns], select(*columns.values()))

    def _found(self) -> Subquery:
        """The rows of the batch, compared with the target and with the resources that they refer to."""
        staging = self._staging
        staged, target = staging.staged, staging.target.alias("present")
        last = (bindparam(f"last_{name}", type_=Text) for name in staging.kind.key)
        exists_already = target.c[staging.kind.key[0]].is_not(None)
        joined: FromClause = staged.outerjoin(target, all_equal(staging.key_of(target), staging.key_of(staged)))
        reasons: list[ColumnElement[Any]] = []
        for field, model in REFERENCES[staging.kind].items():
            named = table_of(model).alias(f"named_{field}")
            column = next(iter(named.primary_key))
            joined = joined.outerjoin(named, column == staged.c[field])
            reasons.append(self._missing_reference(field, column.is_(None)))
        if staging.kind is PRODUCTS:
            reasons.append(self._missing_content())
        return (
            select(
                *staged.c,
                func.nullif(func.concat_ws("; ", *reasons), "").label("reason"),
                (~exists_already).label("is_new"),
                and_(exists_already, or_(*self._differences(target))).label("differs"),
            )
            .select_from(joined)
            .where(staging.is_after(), tuple_(*staging.key_of(staged)) <= tuple_(*last))
            .subquery("found")
        )

    def _is_last(self, found: Subquery) -> ColumnElement[bool]:
        """Condition that a row is the last good one with its key."""
        good = func.max(found.c.line).filter(found.c.reason.is_(None))
        return found.c.line == good.over(partition_by=self._staging.key_of(found))

    def _missing_reference(self, field: str, is_missing: ColumnElement[bool]) -> ColumnElement[str | None]:
        """Reason to reject a row whose field refers to nothing; null if it does not."""
        staged = self._staging.staged
        column = staged.c[field]
        if self._staging.kind is CONTENTS:
            is_missing = and_(is_missing, column.is_not(None), column != staged.c.content_id)
            if self._dry_run:
                is_missing = staged.c.depth == UNREACHABLE
        words = f"{field_name(field)}: no such {field.removesuffix('_id')}: "
        return case((is_missing, literal(words, Text) + column))

    def _missing_content(self) -> ColumnElement[str]:
        """Reason to reject a product with a content that does not exist; null if all exist."""
        item = func.unnest(self._staging.staged.c.contents).column_valued("item", joins_implicitly=True)
        content = table_of(models.Content)
        is_missing = ~exists().where(content.c.content_id == content_id_of(item))
        return literal("contents: no such content: ", Text) + (
            select(func.min(content_id_of(item))).where(is_missing).scalar_subquery()
        )

    def _differences(self, target: FromClause) -> Iterator[ColumnElement[bool]]:
        """For each field, the condition that the line names it with a new value."""
        staging = self._staging
        for name in staging.bits:
            if name not in staging.kind.key:
                is_new_value = staging.staged.c[name].is_distinct_from(staging.present_value(target, name))
                yield and_(staging.is_named(staging.staged, name), is_new_value)

    def _count(self) -> Executable:
        """Count the rows of the batch: BatchCounts."""
        batch = self._staging.batch
        conditions: dict[str, ColumnElement[bool]] = {
            "rows": literal_column("true"),
            "taken": batch.c.taken,
            "new": is_new(self._staging),
            "changed": is_changed(self._staging),
            "disabled": is_disabled(self._staging),
            "rejected": batch.c.reason.is_not(None),
        }
        counts = (func.count().filter(conditions[name]).label(name) for name in BatchCounts._fields)
        return select(*counts).select_from(batch)


def is_new(staging: Staging) -> ColumnElement[bool]:
    """Condition that a row of the batch is created."""
    return and_(staging.batch.c.taken, staging.batch.c.is_new)


def is_changed(staging: Staging) -> ColumnElement[bool]:
    """Condition that a row of the batch changes an existing resource."""
    return and_(staging.batch.c.taken, staging.batch.c.differs)


def is_disabled(staging: Staging) -> ColumnElement[bool]:
    """Condition that a row of the batch says that its account or device is disabled."""
    if "enabled" not in staging.bits:
        return literal_column("false")
    return and_(staging.batch.c.taken, ~staging.batch.c.enabled)
