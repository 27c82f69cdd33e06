"""How Alembic reaches the database, for `alembic …` in a checkout and for `srm db upgrade`.

The service goes on meanwhile (docs/migrations.md). Each migration is a transaction of its own: it happens or it does
not, and holds its locks no longer than it takes itself. One that has to wait for a table gives way at once, rather than
make every query behind it wait too, and is tried again. One runner works at a time; another one waits for it.
"""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from alembic import context
from alembic.util import CommandError
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, Engine, create_engine, event, pool, text
from sqlalchemy.exc import DBAPIError

from srm import config
from srm.db import embedded, schema
from srm.db.connection import sqlalchemy_url
from srm.db.models import SCHEMA, Base
from srm.errors import first_line

ONE_RUNNER = 0x53524D  # "SRM"
PARTITION = re.compile(r"(session_history|denials)_(\d{4}_\d{2}|default)")

SETTINGS: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "version_table_schema": SCHEMA,
    "include_schemas": True,
}

ALTERS = re.compile(r"\s*ALTER TABLE (?!.* VALIDATE )")

ACCOUNTS_FIRST = f"""
    DO $$ BEGIN
        IF to_regclass('{SCHEMA}.accounts') IS NOT NULL THEN
            LOCK TABLE {SCHEMA}.accounts IN ACCESS EXCLUSIVE MODE;
        END IF;
    END $$
"""

THE_OTHER = """
    SELECT format('process %s of %s since %s', a.pid, coalesce(host(a.client_addr), 'this host'),
                  to_char(a.xact_start, 'HH24:MI:SS'))
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.classid = 0 AND l.objid = :key AND l.objsubid = 1 AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def include_name(name: str | None, kind: str, parents: object) -> bool:
    """Compare what is ours: the schema `srm`, without the partitions, which the reaper makes."""
    if kind == "schema":
        return name == SCHEMA
    return not (kind == "table" and name and PARTITION.fullmatch(name))


def limit_waits(connection: Connection) -> None:
    """Of each transaction, so that it holds by way of a pooler too."""
    cursor = connection.connection.cursor()
    cursor.execute(_lock_timeout(schema.LOCK_SECONDS))
    cursor.close()


def _lock_timeout(seconds: float) -> str:
    return f"SET LOCAL lock_timeout = {int(seconds * 1000)}"


def begin_as_setups_do(_: Connection, cursor: psycopg.Cursor[Any], statement: str, *__: object) -> None:
    """Lock the accounts before any table is altered: a setup, too, has them first, and goes on to the others.

    Otherwise the two hold what the other one wants, again and again while there are many setups.
    """
    if ALTERS.match(statement):
        cursor.connection.execute(ACCOUNTS_FIRST)


def run_offline() -> None:
    """Write the SQL, as one transaction: psql goes on after an error."""
    context.configure(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **SETTINGS)
    with context.begin_transaction():
        context.execute(f"SELECT pg_advisory_xact_lock({ONE_RUNNER})")
        context.execute(_lock_timeout(schema.LOCK_SECONDS))
        context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        context.run_migrations()


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """Wait until no other runner is at work, and keep others waiting. CommandError when it takes too long."""
    with engine.begin() as gate:
        gate.execute(text(_lock_timeout(schema.RUNNER_SECONDS)))
        gate.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        if not gate.execute(text(f"SELECT pg_try_advisory_xact_lock({ONE_RUNNER})")).scalar_one():
            other = gate.execute(text(THE_OTHER), {"key": ONE_RUNNER}).scalar() or "somebody"
            say(f"another run of migrations is at work, {other}: waiting for it")
            try:
                gate.execute(text(f"SELECT pg_advisory_xact_lock({ONE_RUNNER})"))
            except DBAPIError as error:
                if not isinstance(error.orig, LockNotAvailable):
                    raise
                raise CommandError(
                    f"another run of migrations does not end, {other}: waited {schema.RUNNER_SECONDS:g} s for it"
                ) from error
        yield


def run_online(url: str) -> None:
    """Run the migrations on the database, patiently. CommandError when a table stays locked by somebody else."""
    engine = create_engine(
        sqlalchemy_url(url),
        poolclass=pool.NullPool,
        connect_args={
            "application_name": "srm-migrations",
            "connect_timeout": 5,
            # All names are qualified. For a role called srm the schema srm would be the default one, and
            # Alembic would not find the tables of the models in it.
            "options": "-c search_path=public",
            "prepare_threshold": None,
        },
    )
    event.listen(engine, "begin", limit_waits)
    event.listen(engine, "before_cursor_execute", begin_as_setups_do)
    tries = 1 if is_relative() else schema.TRIES
    with alone(engine):
        for attempt in range(1, tries + 1):
            try:
                migrate(engine)
            except (DBAPIError, psycopg.Error) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                if not isinstance(cause, LockNotAvailable | DeadlockDetected):
                    raise
                reason = first_line(cause)
                if attempt == tries:
                    raise CommandError(
                        f"somebody else holds what the next migration needs, tried {attempt} times: {reason}; what ran "
                        "before stays: see who it is (docs/dba.md), and start it again"
                    ) from error
                say(f"{reason}: giving way, and trying again in {schema.PAUSE_SECONDS:g} s")
                time.sleep(schema.PAUSE_SECONDS)
            else:
                return


def is_relative() -> bool:
    """Whether it goes so many steps from where it is: a second try would begin elsewhere."""
    try:
        destination = context.get_revision_argument()
    except KeyError:  # it goes nowhere, as `alembic current`
        return False
    return str(destination).startswith(("+", "-"))


def migrate(engine: Engine) -> None:
    """Run the migrations, each in its transaction."""
    with engine.connect() as connection:
        context.configure(connection=connection, include_name=include_name, transaction_per_migration=True, **SETTINGS)
        if connection.execute(text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}).scalar() is None:
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        connection.commit()
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()  # what is not part of a migration: `alembic stamp`


def say(words: str) -> None:
    """For who watches."""
    sys.stderr.write(f"srm: {words}\n")


if context.is_offline_mode():
    run_offline()
elif "url" in context.config.attributes:
    run_online(context.config.attributes["url"])
else:
    with embedded.database_url(config.load()) as database_url:
        run_online(database_url)
