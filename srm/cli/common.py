"""Parts that several commands use: the database, the priority, the name of the user."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from srm.config import Settings
from srm.db import embedded, schema
from srm.db.database import Database

COMMAND_TIMEOUT_SECONDS = 3600
"""Limit of one statement, such as a check of all limits or the sorting of all rows of an import."""

NICENESS = 10
"""Niceness of imports and of the reaper (nice(2)): the API goes first."""


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """Connect to the configured database, or run the embedded one during the block.

    Raises StartupError when the schema is too old for this version, DependencyUnavailable when the database is away.
    """
    with embedded.database_url(settings) as url:
        database = Database(url, application_name="srm-cli", statement_timeout_seconds=COMMAND_TIMEOUT_SECONDS)
        try:
            with database.transaction() as db:
                schema.check_not_behind(db)
            yield database
        finally:
            database.dispose()


def lower_priority() -> None:
    """Let the API on this machine go first. Never raise the priority."""
    if os.getpriority(os.PRIO_PROCESS, 0) < NICENESS:
        with suppress(OSError):  # a sandbox may forbid the call
            os.setpriority(os.PRIO_PROCESS, 0, NICENESS)


def user() -> str:
    """Return the author for the change log: `cli:` and the name of the system user."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # in a container the user may have no name
        return f"cli:{os.getuid()}"
