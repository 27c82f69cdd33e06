"""Migrations: find them, compare the database with them, run them.

Each process compares the database at its start. Alembic takes longer to import than the rest of SRM, and only `upgrade`
needs it. So the comparison reads the names of the files, which begin with the revision.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Text, column, func, select, table

from srm.db.models import SCHEMA
from srm.errors import StartupError

if TYPE_CHECKING:
    from alembic.config import Config

LOCK_SECONDS = 0.3
"""Longest wait of a migration for a table. Every query that comes after it waits as long."""

TRIES = 20
"""Number of tries for a migration that does not get its locks."""

PAUSE_SECONDS = 2
"""Pause between two tries. All tries together take three quarters of a minute."""

RUNNER_SECONDS = 600
"""Longest wait of one run of migrations for another run."""


VERSION_TABLE = table("alembic_version", column("version_num", Text), schema=SCHEMA)


def _folder() -> Path:
    package = Path(__file__).parent.parent
    in_wheel, in_checkout = package / "migrations", package.parent / "migrations"
    return in_wheel if in_wheel.is_dir() else in_checkout


def _config(attributes: Mapping[str, Any]) -> "Config":
    from alembic.config import Config

    config = Config(attributes=dict(attributes))
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    return config


@cache
def revisions() -> tuple[str, ...]:
    """Return the revisions of all migrations, the oldest first."""
    found = sorted(file.name.partition("_")[0] for file in (_folder() / "versions").glob("[0-9]*.py"))
    if not found:
        raise RuntimeError("no migrations are installed")
    return tuple(found)


def head_revision() -> str:
    """Return the revision that this version needs."""
    return revisions()[-1]


def current_revision(db: Connection) -> str | None:
    """Return the revision of the database; None before the first migration."""
    if db.execute(select(func.to_regclass(VERSION_TABLE.fullname))).scalar_one() is None:
        return None
    return db.execute(select(VERSION_TABLE.c.version_num)).scalar_one_or_none()


def is_behind(revision: str | None) -> bool:
    """True when a schema at this revision is too old for this version.

    An unknown revision is newer, and is fine: each release keeps working on the schema of the next one
    (docs/migrations.md).
    """
    return revision is None or revision in revisions()[:-1]


def check_not_behind(db: Connection) -> None:
    """Raise StartupError when the schema of the database is too old for this version."""
    current, head = current_revision(db), head_revision()
    if is_behind(current):
        raise StartupError(
            f"the schema of the database is at {current or 'nothing'}, this version needs {head}: run `srm db upgrade`"
        )


def upgrade(url: str, revision: str = "head", *, sql: bool = False) -> None:
    """Run the migrations up to `revision`. With `sql`, print their SQL instead and leave the database alone.

    With `sql`, `revision` may be a range such as `0001:0003`. Without a range, the SQL begins with an empty database.
    """
    from alembic import command

    command.upgrade(_config({"url": url}), revision, sql=sql)
