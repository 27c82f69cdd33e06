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

from srm.errors import StartupError
from srm.models import SCHEMA


def _config(attributes: Mapping[str, Any] | None = None) -> Config:
    package = Path(__file__).parent
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


def check_at_head(db: Connection) -> None:
    """StartupError unless the schema is the one that this code is written for."""
    current, head = current_revision(db), head_revision()
    if current != head:
        raise StartupError(
            f"the schema of the database is at {current or 'nothing'}, this version needs {head}: run `srm db upgrade`"
        )


def upgrade(url: str, revision: str = "head", *, sql: bool = False) -> None:
    """Run the migrations up to the revision, or with `sql` print them instead.

    With `sql` the revision may be a range, `0001:0003`; it starts at nothing otherwise.
    """
    command.upgrade(_config({"url": url}), revision, sql=sql)
