"""The temporary tables of an import, and the conditions that its statements share."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    FromClause,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    bindparam,
    literal_column,
    text,
    tuple_,
)

from srm.operators.bulk.list_fields import LIST_FIELDS, TEXTS, table_of
from srm.operators.resources import CONTENTS, Kind

UNREACHABLE = 1_000_000
"""Depth of a content whose channel is neither in the database nor in the file (`content_order.py`)."""

DEPTH = bindparam("at_depth", type_=Integer)


class Staging:
    """The temporary tables of an import of one kind.

    `staged` has the good rows of the file: number and text of the line, the fields, and `named`. `named` has the bit of
    each field that the line names. Contents also have their `depth`.

    `batch` has some of the staged rows until the transaction ends, and what becomes of each. A row is rejected for a
    `reason`, or `taken`, or repeated (neither). A taken row `is_new`, or `differs` from the target, or is unchanged.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.target = table_of(kind.table)
        self.list_field = LIST_FIELDS.get(kind)
        self.bits = {name: 1 << index for index, name in enumerate(kind.resource.model_fields)}
        self.staged = Table("staged", MetaData(), *self._columns(), prefixes=["TEMPORARY"])
        self.batch = Table(
            "batch",
            MetaData(),
            *self._columns(),
            Column("reason", Text),
            *(Column(name, Boolean) for name in ("taken", "is_new", "differs")),
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DELETE ROWS",
        )

    def _columns(self) -> Iterator[Column[Any]]:
        yield Column("line", BigInteger)
        yield Column("text", Text)
        yield Column("named", Integer)
        for name in self.bits:
            yield Column(name, self.target.c[name].type if name in self.target.c else TEXTS)
        if self.kind is CONTENTS:
            yield Column("depth", Integer, server_default=text(str(UNREACHABLE)))

    def key_of(self, table: FromClause) -> tuple[ColumnElement[str], ...]:
        """Key columns of a table."""
        return tuple(table.c[name] for name in self.kind.key)

    def is_named(self, table: FromClause, field: str) -> ColumnElement[bool]:
        """Condition that the line of a row names the field."""
        bit = literal_column(str(self.bits[field]), Integer)
        return table.c.named.bitwise_and(bit) != literal_column("0", Integer)

    def present_value(self, target: FromClause, field: str) -> ColumnElement[Any]:
        """Value that the field of a row of the target has before the import."""
        if self.list_field is not None and self.list_field.name == field:
            return self.list_field.items_of(self.key_of(target)[0])
        return target.c[field]

    def is_after(self) -> ColumnElement[bool]:
        """Condition that a staged row comes after the key `after_…`; of contents, that its depth is `at_depth` too."""
        after = (bindparam(f"after_{name}", type_=Text) for name in self.kind.key)
        is_after = tuple_(*self.key_of(self.staged)) > tuple_(*after)
        return and_(self.staged.c.depth == DEPTH, is_after) if self.kind is CONTENTS else is_after


def all_equal(left: Sequence[ColumnElement[Any]], right: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    """Condition that the columns are equal, pair by pair."""
    return and_(*(one == other for one, other in zip(left, right, strict=True)))
