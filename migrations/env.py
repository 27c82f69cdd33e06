"""Environment of Alembic, for `alembic …` in a checkout and for `srm db upgrade`.

The service goes on during migrations (docs/migrations.md). Each migration is a transaction of its own, so it holds its
locks only while it runs. A migration that has to wait for a table gives up soon and is tried again; otherwise every
later query would wait too. One run of migrations works at a time, and others wait for it.
"""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from alembic import context
from alembic.util import CommandError as MigrationError
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, Engine, create_engine, event, pool, text
from sqlalchemy.exc import DBAPIError

from srm import config
from srm.db import embedded, schema
from srm.db.connection import sqlalchemy_url
from srm.db.models import SCHEMA, Base
from srm.errors import first_line

ADVISORY_LOCK = 0x53524D  # "SRM"
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

OTHER_RUN = """
    SELECT format('process %s of %s since %s', a.pid, coalesce(host(a.client_addr), 'this host'),
                  to_char(a.xact_start, 'HH24:MI:SS'))
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.classid = 0 AND l.objid = :key AND l.objsubid = 1 AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def include_name(name: str | None, kind: str, parents: object) -> bool:
    """Tell Alembic what to compare: the schema `srm` without the partitions, which the reaper makes."""
    if kind == "schema":
        return name == SCHEMA
    return not (kind == "table" and name and PARTITION.fullmatch(name))


def limit_waits(connection: Connection) -> None:
    """Set the lock timeout in each transaction. A setting of the session would not last behind a pooler."""
    cursor = connection.connection.cursor()
    cursor.execute(_lock_timeout(schema.LOCK_SECONDS))
    cursor.close()


def _lock_timeout(seconds: float) -> str:
    return f"SET LOCAL lock_timeout = {int(seconds * 1000)}"


def lock_accounts_first(_: Connection, cursor: psycopg.Cursor[Any], statement: str, *__: object) -> None:
    """Lock `accounts` before any ALTER TABLE, in the order of a setup.

    In another order the migration and a setup would each hold what the other one wants: a deadlock, again and again.
    """
    if ALTERS.match(statement):
        cursor.connection.execute(ACCOUNTS_FIRST)


def run_offline() -> None:
    """Print the SQL as one transaction, because psql goes on after an error."""
    context.configure(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **SETTINGS)
    with context.begin_transaction():
        context.execute(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
        context.execute(_lock_timeout(schema.LOCK_SECONDS))
        context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        context.run_migrations()


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """Wait until no other run is at work, and let later ones wait. Raises MigrationError after RUNNER_SECONDS."""
    with engine.begin() as gate:
        gate.execute(text(_lock_timeout(schema.RUNNER_SECONDS)))
        gate.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        if not gate.execute(text(f"SELECT pg_try_advisory_xact_lock({ADVISORY_LOCK})")).scalar_one():
            other = gate.execute(text(OTHER_RUN), {"key": ADVISORY_LOCK}).scalar() or "which has just ended"
            say(f"another run of migrations is at work, {other}: waiting for it to end")
            try:
                gate.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
            except DBAPIError as error:
                if not isinstance(error.orig, LockNotAvailable):
                    raise
                raise MigrationError(
                    f"another run of migrations did not end within {schema.RUNNER_SECONDS:g} s: {other}"
                ) from error
        yield


def run_online(url: str) -> None:
    """Run the migrations; try again while a table is locked. Raises MigrationError when it stays locked."""
    engine = create_engine(
        sqlalchemy_url(url),
        poolclass=pool.NullPool,
        connect_args={
            "application_name": "srm-migrations",
            "connect_timeout": 5,
            # For a role called srm, the schema srm would be the default. Alembic would then not find the tables of the
            # models, which are qualified.
            "options": "-c search_path=public",
            "prepare_threshold": None,
        },
    )
    event.listen(engine, "begin", limit_waits)
    event.listen(engine, "before_cursor_execute", lock_accounts_first)
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
                    raise MigrationError(
                        f"another transaction holds a lock that the next migration needs, tried {attempt} times: "
                        f"{reason}; migrations that ran before stay: find the holder (docs/dba.md), and start again"
                    ) from error
                say(f"{reason}: giving way, trying again in {schema.PAUSE_SECONDS:g} s")
                time.sleep(schema.PAUSE_SECONDS)
            else:
                return


def is_relative() -> bool:
    """True for a relative revision such as +1. A second try would begin elsewhere and go too far."""
    try:
        destination = context.get_revision_argument()
    except KeyError:  # a command without a destination, such as `alembic current`
        return False
    return str(destination).startswith(("+", "-"))


def migrate(engine: Engine) -> None:
    """Run the migrations, each in a transaction of its own."""
    with engine.connect() as connection:
        context.configure(connection=connection, include_name=include_name, transaction_per_migration=True, **SETTINGS)
        if connection.execute(text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}).scalar() is None:
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        connection.commit()
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()  # for `alembic stamp`, which is no migration


def say(words: str) -> None:
    """Print a line for the operator."""
    sys.stderr.write(f"srm: {words}\n")


if context.is_offline_mode():
    run_offline()
elif "url" in context.config.attributes:
    run_online(context.config.attributes["url"])
else:
    with embedded.database_url(config.load()) as database_url:
        run_online(database_url)
