"""SQLAlchemy statements compiled once to the text that psycopg sends."""

from sqlalchemy import ClauseElement, ColumnElement, Text, literal_column
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg


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
