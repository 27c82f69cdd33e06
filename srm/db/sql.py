"""Statements of SQLAlchemy as psycopg sends them: compiled once."""

from sqlalchemy import ClauseElement, ColumnElement, Text, literal_column
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg


def compiled(statement: ClauseElement) -> str:
    """The statement as psycopg sends it, its parameters named as its `bindparam`s are."""
    dialect = PGDialect_psycopg(paramstyle="pyformat")  # type: ignore[no-untyped-call]
    result = statement.compile(dialect=dialect)
    if constants := [name for name, value in result.params.items() if value is not None]:
        raise ValueError(f"write these as constant(): {constants}")
    return str(result)


def constant(word: str) -> ColumnElement[str]:
    """A word of our own, as a literal of the statement instead of a parameter."""
    return literal_column(f"'{word}'", type_=Text())
