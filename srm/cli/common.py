"""What several commands share: the database, the priority, and who runs them."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from srm.config import Settings
from srm.db import embedded, schema
from srm.db.database import Database

COMMAND_TIMEOUT_SECONDS = 3600
"""Of one statement: an audit, or the sorting of all rows of an import."""

NICENESS = 10
"""Of an import, and of the reaper: requests go first."""


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """Connect to the database in use; StartupError when its schema is older than this version."""
    with embedded.database_url(settings) as url:
        database = Database(url, application_name="srm-cli", statement_timeout_seconds=COMMAND_TIMEOUT_SECONDS)
        try:
            with database.transaction() as db:
                schema.check_not_behind(db)
            yield database
        finally:
            database.dispose()


def stand_back() -> None:
    """Let whoever answers requests on this machine go first; nothing is asked for that is so already."""
    if os.getpriority(os.PRIO_PROCESS, 0) < NICENESS:
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, 0, NICENESS)


def user() -> str:
    """Who the record of changes says it was."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # as in containers
        return f"cli:{os.getuid()}"
