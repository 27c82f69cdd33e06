"""Errors that an operator can mend, each as one line of text."""

from alembic.util import CommandError as MigrationError
from psycopg.errors import DataError, InsufficientPrivilege
from sqlalchemy.exc import DBAPIError

from srm.db.breaker import is_unavailable
from srm.errors import CommandError, Conflict, DependencyUnavailable, StartupError, first_line


def one_line(error: Exception) -> str | None:
    """Return the line that tells an operator about the error; None for an error of the program."""
    match error:
        case StartupError() | CommandError() | MigrationError() | Conflict():
            return str(error)
        case DependencyUnavailable():
            return f"database unavailable: {_first_line(error.__cause__)}"
        case DBAPIError() if is_unavailable(error):
            return f"database unavailable: {_first_line(error)}"
        case DBAPIError(orig=InsufficientPrivilege() | DataError()):
            return f"database: {_first_line(error)}"
    return None


def _first_line(error: BaseException | None) -> str:
    return first_line(error.orig if isinstance(error, DBAPIError) else error)
