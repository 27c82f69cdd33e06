"""Migrations: find them, compare the database with them, run them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from srm.db.models import SCHEMA
from srm.errors import StartupError

LOCK_SECONDS = 0.3
"""Longest wait of a migration for a table. Every query that comes after it waits as long."""

TRIES = 20
"""Number of tries for a migration that does not get its locks."""

PAUSE_SECONDS = 2
"""Pause between two tries. All tries together take three quarters of a minute."""

RUNNER_SECONDS = 600
"""Longest wait of one run of migrations for another run."""


def _config(attributes: Mapping[str, Any] | None = None) -> Config:
    package = Path(__file__).parent.parent
    in_wheel, in_checkout = package / "migrations", package.parent / "migrations"
    config = Config(attributes=dict(attributes or {}))
    location = in_wheel if in_wheel.is_dir() else in_checkout
    config.set_main_option("script_location", str(location).replace("%", "%%"))
    return config


@cache
def head_revision() -> str:
    """Return the revision that this version needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("no migrations are installed")
    return revision


def current_revision(db: Connection) -> str | None:
    """Return the revision of the database; None before the first migration."""
    return MigrationContext.configure(db, opts={"version_table_schema": SCHEMA}).get_current_revision()


@cache
def _older_revisions() -> frozenset[str | None]:
    """Return all revisions before head, and None for an empty database."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return frozenset({None, *(script.revision for script in scripts)} - {head_revision()})


def is_behind(revision: str | None) -> bool:
    """True when a schema at this revision is too old for this version.

    An unknown revision is newer, and is fine: each release keeps working on the schema of the next one
    (docs/migrations.md).
    """
    return revision in _older_revisions()


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
    command.upgrade(_config({"url": url}), revision, sql=sql)
