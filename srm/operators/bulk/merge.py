"""The statements that write a batch of an import to the tables."""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from srm.db import models
from srm.db.models import sessions
from srm.operators.bulk.batch import is_changed, is_disabled, is_new
from srm.operators.bulk.list_fields import table_of
from srm.operators.bulk.staging import Staging, all_equal
from srm.operators.documents import field_name
from srm.operators.resources import ENTITLEMENTS
from srm.playback.expiry import is_active


class MergeStatements:
    """The statements that lock, record and write what is in `batch`, in the order in which they are executed."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self.lock = self._lock()
        self.record = self._record()
        self.update = self._update()
        self.insert = self._insert()
        self.write_lists = self._write_lists()

    def is_of_disabled(self) -> ColumnElement[bool]:
        """Condition that a session belongs to an account or device that the batch disables."""
        staging = self._staging
        disabled = select(*staging.key_of(staging.batch)).where(is_disabled(staging))
        return tuple_(*(sessions[name] for name in staging.kind.key)).in_(disabled)

    def count_sessions(self) -> Select[Any]:
        """Count the active sessions of the accounts or devices that the batch disables."""
        return select(func.count()).select_from(models.PlaybackSession).where(self.is_of_disabled(), is_active())

    def _lock(self) -> Select[Any]:
        """Lock what the batch changes or disables, in the order of keys: the accounts, or the rows of the catalogue."""
        staging = self._staging
        table = table_of(models.Account) if staging.kind.is_of_account else staging.target
        (key,) = table.primary_key
        keys = select(staging.batch.c[key.name]).where(or_(is_changed(staging), is_disabled(staging)))
        return select(key).where(key.in_(keys)).order_by(key).with_for_update(key_share=True)

    def _record(self) -> Executable:
        """Record in the change log, as changes by `changed_by`, each changed row as it is and as it will be."""
        staging = self._staging
        target, batch = staging.target, staging.batch
        before: list[ColumnElement[Any]] = []
        after: list[ColumnElement[Any]] = []
        for name in staging.bits:
            present = staging.present_value(target, name)
            before += (literal(field_name(name), Text), present)
            after += (
                literal(field_name(name), Text),
                case((staging.is_named(batch, name), batch.c[name]), else_=present),
            )
        key = staging.key_of(target)
        columns = {
            "operator": bindparam("changed_by", type_=Text),
            "action": literal("update", Text),
            "resource": self._path(key),
            "account_id": key[0] if staging.kind.is_of_account else literal("", Text),
            "before": func.jsonb_build_object(*before, type_=JSONB),
            "after": func.jsonb_build_object(*after, type_=JSONB),
        }
        is_row = all_equal(key, staging.key_of(batch))
        rows = select(*columns.values()).select_from(target).where(is_row, is_changed(staging))
        return insert(table_of(models.OperatorChange)).from_select(list(columns), rows)

    def _path(self, key: tuple[ColumnElement[str], ...]) -> ColumnElement[str]:
        """Path of the resource with this key, as `Kind.path` makes it."""
        marks = {f"{{{index}}}": column for index, column in enumerate(key)}
        parts = self._staging.kind.path(*marks).split("/")
        return func.concat_ws("/", *(marks.get(part, literal(part, Text)) for part in parts))

    def _update(self) -> Executable:
        """Write the named fields of changed rows."""
        staging = self._staging
        target, batch = staging.target, staging.batch
        values = {
            name: case((staging.is_named(batch, name), batch.c[name]), else_=target.c[name])
            for name in staging.bits
            if name in target.c and name not in staging.kind.key
        }
        is_row = all_equal(staging.key_of(target), staging.key_of(batch))
        return update(target).where(is_row, is_changed(staging)).values(values)

    def _insert(self) -> Executable:
        """Create the new rows. An entitlement without `valid_from` holds from now on."""
        staging = self._staging
        batch = staging.batch
        columns: dict[str, ColumnElement[Any]] = {
            name: batch.c[name] for name in staging.bits if name in staging.target.c
        }
        if staging.kind is ENTITLEMENTS:
            columns["valid_from"] = func.coalesce(columns["valid_from"], func.statement_timestamp())
        rows = select(*columns.values()).where(is_new(staging)).order_by(*staging.key_of(batch))
        return insert(staging.target).from_select(list(columns), rows)

    def _write_lists(self) -> tuple[Executable, ...]:
        """Write the list field of new and changed rows that name it: delete items, then add items."""
        staging, field = self._staging, self._staging.list_field
        if field is None:
            return ()
        (key,) = staging.key_of(staging.batch)
        items = staging.batch.c[field.name]
        is_written = and_(or_(is_new(staging), is_changed(staging)), staging.is_named(staging.batch, field.name))
        item = func.unnest(items).column_valued("item", joins_implicitly=True)
        columns = {field.owner.name: key, **field.columns(item)}
        rows = select(*columns.values()).where(is_written)
        return (
            delete(field.table).where(field.owner == key, is_written, field.item != func.all(items)),
            upsert(field.table).from_select(list(columns), rows.order_by(key)).on_conflict_do_nothing(),
        )
