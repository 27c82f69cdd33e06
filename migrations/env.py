"""How Alembic reaches the database, for `alembic …` in a checkout and for `srm db upgrade`.

All migrations of one run are one transaction: all or nothing. A runner that comes second waits for the
first. A statement that waits for a table longer than `lock_timeout` fails rather than make every query
behind it wait too; run it again.
"""

import re
from typing import Any

from alembic import context
from sqlalchemy import create_engine, pool

from srm import config, embedded
from srm.database import sqlalchemy_url
from srm.models import SCHEMA, Base

LOCK_TIMEOUT = "5s"
ONE_RUNNER = 0x53524D  # "SRM"
PARTITION = re.compile(r"(session_history|denials)_\d{4}_\d{2}")

SETTINGS: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "version_table_schema": SCHEMA,
    "include_schemas": True,
}


def include_name(name: str | None, kind: str, parents: dict[str, str | None]) -> bool:
    """Compare what is ours: the schema `srm`, without the partitions, which the reaper makes."""
    if kind == "schema":
        return name == SCHEMA
    return not (kind == "table" and name and PARTITION.fullmatch(name))


def prepare() -> None:
    """What every run begins with."""
    context.execute(f"SELECT pg_advisory_xact_lock({ONE_RUNNER})")
    context.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")


def run_offline() -> None:
    """Write the SQL."""
    context.configure(dialect_name="postgresql", literal_binds=True, **SETTINGS)
    with context.begin_transaction():
        prepare()
        context.run_migrations()


def run_online(url: str) -> None:
    """Run the migrations on the database."""
    engine = create_engine(
        sqlalchemy_url(url),
        poolclass=pool.NullPool,
        connect_args={
            "application_name": "srm-migrations",
            "connect_timeout": 5,
            # All names are qualified. For a role called srm the schema srm would be the default one, and
            # Alembic would not find the tables of the models in it.
            "options": "-c search_path=public",
        },
    )
    with engine.connect() as connection:
        context.configure(connection=connection, include_name=include_name, **SETTINGS)
        with context.begin_transaction():
            prepare()
            context.run_migrations()


if context.is_offline_mode():
    run_offline()
elif "url" in context.config.attributes:
    run_online(context.config.attributes["url"])
else:
    with embedded.database_url(config.load()) as database_url:
        run_online(database_url)
