"""The schema of the database: where its migrations are, and whether they have been run."""

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
"""How long a migration waits for a table, and with it all who come behind."""

TRIES = 20
PAUSE_SECONDS = 2
"""Of a migration that did not get its locks: three quarters of a minute."""

RUNNER_SECONDS = 600
"""How long a run of migrations waits for another one."""


def _config(attributes: Mapping[str, Any] | None = None) -> Config:
    package = Path(__file__).parent.parent
    in_wheel, in_checkout = package / "migrations", package.parent / "migrations"
    config = Config(attributes=dict(attributes or {}))
    location = in_wheel if in_wheel.is_dir() else in_checkout
    config.set_main_option("script_location", str(location).replace("%", "%%"))
    return config


@cache
def head_revision() -> str:
    """The revision that this code is written for."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("no migrations are installed")
    return revision


def current_revision(db: Connection) -> str | None:
    """The revision that the database is at; None when no migration has been run."""
    return MigrationContext.configure(db, opts={"version_table_schema": SCHEMA}).get_current_revision()


@cache
def _older_revisions() -> frozenset[str | None]:
    """What the schema was at before, from nothing on."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return frozenset({None, *(script.revision for script in scripts)} - {head_revision()})


def is_behind(revision: str | None) -> bool:
    """Whether a schema at that revision is older than this code.

    At a revision that this code does not know it is newer: a release goes on while the next one is brought in, and the
    migrations of that one leave it what it needs (docs/migrations.md).
    """
    return revision in _older_revisions()


def check_not_behind(db: Connection) -> None:
    """StartupError when the schema is older than this code."""
    current, head = current_revision(db), head_revision()
    if is_behind(current):
        raise StartupError(
            f"the schema of the database is at {current or 'nothing'}, this version needs {head}: run `srm db upgrade`"
        )


def upgrade(url: str, revision: str = "head", *, sql: bool = False) -> None:
    """Run the migrations up to the revision, or with `sql` print them instead.

    With `sql` the revision may be a range, `0001:0003`; it starts at nothing otherwise.
    """
    command.upgrade(_config({"url": url}), revision, sql=sql)
