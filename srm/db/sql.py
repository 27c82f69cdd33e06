"""SQLAlchemy statements compiled once to the text that psycopg sends, and their rows read by name."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar, cast

from sqlalchemy import ClauseElement, ColumnElement, ReturnsRows, Select, SelectBase, Text, literal_column, true
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

Row = TypeVar("Row", bound=tuple[Any, ...])
AnySelect: TypeAlias = Select[*tuple[Any, ...]]


def compiled(statement: ClauseElement) -> str:
    """Compile a statement for `execute` of a cursor or ConnectionPool. Parameters have the names of their `bindparam`s.

    Raises ValueError when the statement has a literal value; write it as `constant()`.
    """
    dialect = PGDialect_psycopg(paramstyle="pyformat")  # type: ignore[no-untyped-call]
    result = statement.compile(dialect=dialect)
    if constants := [name for name, value in result.params.items() if value is not None]:
        raise ValueError(f"write these as constant(): {constants}")
    return str(result)


def constant(word: str) -> ColumnElement[str]:
    """Put a fixed word into the statement as a literal. Never use it for words from outside: it does not quote."""
    return literal_column(f"'{word}'", type_=Text())


def is_among(value: ColumnElement[Any], query: SelectBase) -> ColumnElement[bool]:
    """Condition that a value is in the result of a query. The server reads the result once, into a hash table.

    `IS TRUE` keeps the planner from a join. A plan for all parameters assumes ten rows, and a join that was planned for
    ten rows takes minutes for thousands.
    """
    return value.in_(query).is_(true())


def reader(statement: ReturnsRows, row_type: type[Row], prefix: str = "") -> Callable[[Sequence[Any]], Row]:
    """Return a function that makes a NamedTuple, of two fields or more, of a row of the statement.

    Each field is read from the column that is labelled `prefix` and the name of the field. Positions are looked up
    once, here. Raises ValueError when the statement returns no such column.
    """
    labels = list(statement.exported_columns.keys())
    fields: tuple[str, ...] = cast("Any", row_type)._fields
    pick = itemgetter(*(labels.index(f"{prefix}{field}") for field in fields))
    make = cast("Any", row_type)._make
    return lambda row: cast("Row", make(pick(row)))
