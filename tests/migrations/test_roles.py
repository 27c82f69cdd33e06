"""The roles of deploy/postgres/roles.sql: made before the tables or after them, and what each of them may not do."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from alembic import command

from srm.db import schema
from tests.migrations.test_migrations import config, execute, query
from tests.support import as_role, make_roles

RIGHTS = {
    "relations": """
        SELECT c.relname, c.relkind, c.relowner::regrole::text,
               ARRAY(SELECT x::text FROM unnest(c.relacl) x ORDER BY 1)
        FROM pg_class c WHERE c.relnamespace = 'srm'::regnamespace AND c.relkind <> 'i' AND c.relkind <> 'I' ORDER BY 1
    """,
    "columns": """
        SELECT attrelid::regclass::text, attname, ARRAY(SELECT x::text FROM unnest(attacl) x ORDER BY 1)
        FROM pg_attribute WHERE attacl IS NOT NULL
        AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'srm'::regnamespace) ORDER BY 1, 2
    """,
    "routines": """
        SELECT oid::regprocedure::text, proowner::regrole::text, prosecdef, proconfig,
               ARRAY(SELECT x::text FROM unnest(proacl) x ORDER BY 1)
        FROM pg_proc WHERE pronamespace = 'srm'::regnamespace ORDER BY 1
    """,
    "schema": """
        SELECT nspowner::regrole::text, ARRAY(SELECT x::text FROM unnest(nspacl) x ORDER BY 1)
        FROM pg_namespace WHERE nspname = 'srm'
    """,
    "defaults": """
        SELECT defaclrole::regrole::text, defaclnamespace::regnamespace::text, defaclobjtype,
               ARRAY(SELECT x::text FROM unnest(defaclacl) x ORDER BY 1)
        FROM pg_default_acl ORDER BY 1, 2, 3
    """,
}

NEITHER_MAY = [
    "DROP TABLE srm.sessions",
    "TRUNCATE srm.sessions",
    "ALTER TABLE srm.accounts ADD COLUMN more text",
    "ALTER TABLE srm.session_history DETACH PARTITION srm.session_history_default",
    "CREATE INDEX ON srm.accounts (enabled)",
    "CREATE TABLE srm.mine (a int)",
    "CREATE TABLE public.mine (a int)",
    "CREATE SCHEMA mine",
    "DROP FUNCTION srm.drop_partition",
    "CREATE OR REPLACE FUNCTION srm.drop_partition(of_table text, month timestamptz) RETURNS void LANGUAGE sql AS ''",
    "UPDATE srm.operator_audit SET operator = 'x'",
    "DELETE FROM srm.operator_audit",
    "TRUNCATE srm.operator_audit",
    "UPDATE srm.session_history SET account_id = 'x'",
    "DELETE FROM srm.session_history",
    "DELETE FROM srm.session_history_default",
    "DELETE FROM srm.{partition}",
    "INSERT INTO srm.{partition} SELECT * FROM srm.session_history",
    "UPDATE srm.denials SET reason = 'x'",
    "DELETE FROM srm.denials",
    "DELETE FROM srm.operators",
    "DELETE FROM srm.availability",
    "DELETE FROM srm.reaper_state",
    "INSERT INTO srm.reaper_state (expired, archived) VALUES (0, 0)",
    "UPDATE srm.alembic_version SET version_num = '0001'",
    "SET ROLE srm_owner",
    "ALTER ROLE srm_readonly SUPERUSER",
    "ALTER ROLE srm_owner PASSWORD 'mine'",
    "SELECT rolpassword FROM pg_authid",
    "SELECT pg_read_file('postgresql.conf')",
    "COPY (SELECT 1) TO PROGRAM 'true'",
]

READER_MAY_NOT = [
    "INSERT INTO srm.operators (name, role, key_hash) VALUES ('me', 'admin', '')",
    "INSERT INTO srm.operator_audit (account_id, operator, action, resource) VALUES ('', 'x', 'x', 'x')",
    "UPDATE srm.accounts SET enabled = false",
    "DELETE FROM srm.sessions",
    "SELECT FROM srm.sessions FOR UPDATE",
    "SELECT key_hash FROM srm.operators",
    "SELECT * FROM srm.operators",
    "SELECT srm.make_partition('denials', date_trunc('month', now(), 'UTC'), 1)",
    "SELECT srm.drop_partition('denials', '2020-01-01 00:00+00')",
    "SELECT srm.empty_default_partition('denials', '2020-01-01 00:00+00', 1)",
]

MISUSES = [
    "SELECT srm.make_partition('accounts', '2026-01-01 00:00+00', 1)",
    "SELECT srm.make_partition('session_history; DROP TABLE srm.sessions', '2026-01-01 00:00+00', 1)",
    "SELECT srm.make_partition('denials', '2026-01-02 00:00+00', 1)",
    "SELECT srm.make_partition('denials', 'infinity', 1)",
    "SELECT srm.make_partition('denials', NULL, 1)",
    "SELECT srm.make_partition('denials', '1999-01-01 00:00+00', 1)",
    "SELECT srm.make_partition('denials', date_trunc('month', now() + interval '2 years', 'UTC'), 1)",
    "SELECT srm.drop_partition('operator_audit', '2020-01-01 00:00+00')",
    "SELECT srm.drop_partition('denials', date_trunc('month', now(), 'UTC'))",
    "SELECT srm.drop_partition('denials', date_trunc('month', now() + interval '1 month', 'UTC'))",
    "SELECT srm.empty_default_partition('operator_audit', '2020-01-01 00:00+00', 1)",
    "SELECT srm.empty_default_partition('denials', now(), 1)",
    "SELECT srm.empty_default_partition('denials', 'infinity', 1)",
    "SELECT srm.empty_default_partition('denials', NULL, 1)",
]


def rights(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return the owner and the rights of everything in the database."""
    return {name: query(url, sql) for name, sql in RIGHTS.items()}


def refused(url: str, statement: str) -> psycopg.errors.Error:
    """Return the error that the statement gets in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        if "srm_readonly" in url:
            connection.execute("SET default_transaction_read_only = off")  # anybody may
        with pytest.raises(psycopg.Error) as error:
            connection.execute(statement)
    return error.value


@pytest.fixture
def blank(clone: Callable[[], str]) -> str:
    """A database without roles and schema, for a superuser."""
    url = clone()
    execute(url, "DROP SCHEMA srm CASCADE")
    execute(url, "ALTER DEFAULT PRIVILEGES FOR ROLE srm_owner GRANT EXECUTE ON FUNCTIONS TO PUBLIC")
    assert query(url, RIGHTS["defaults"]) == []
    return url


@pytest.fixture(scope="module")
def url(clone: Callable[[], str]) -> str:
    """A database for a superuser. The roles were made first, then the owner made the tables."""
    return clone()


@pytest.fixture(scope="module")
def partition(url: str) -> str:
    ((name,),) = query(url, "SELECT min(relname) FROM pg_class WHERE relname ~ '^session_history_[0-9_]+$'")
    return str(name)


def test_owners_and_rights_do_not_depend_on_whether_roles_or_tables_come_first(
    blank: str, clone: Callable[[], str]
) -> None:
    """Also when a superuser made and owns the tables."""
    schema.upgrade(blank)
    make_roles(blank)
    tables_first = rights(blank)

    execute(blank, "DROP SCHEMA srm CASCADE")
    make_roles(blank)
    schema.upgrade(as_role("srm_owner", blank))
    roles_first = rights(blank)

    assert tables_first == roles_first
    owners = {owner for _, _, owner, _ in roles_first["relations"]}
    assert owners == {"srm_owner"}


@pytest.mark.parametrize("revision", ["0004", "0012", "0016"])
def test_roles_can_be_made_in_a_database_of_an_older_release(blank: str, revision: str) -> None:
    command.upgrade(config(blank), revision)
    make_roles(blank)

    schema.upgrade(as_role("srm_owner", blank))

    in_steps = rights(blank)
    execute(blank, "DROP SCHEMA srm CASCADE")
    make_roles(blank)
    schema.upgrade(as_role("srm_owner", blank))
    assert in_steps == rights(blank)


def test_making_the_roles_again_changes_nothing(url: str) -> None:
    """With partitions that the application has made."""
    before = rights(url)

    make_roles(url)

    assert rights(url) == before


def test_making_the_roles_again_takes_excess_rights_away(url: str) -> None:
    execute(url, "ALTER ROLE srm_application SUPERUSER; GRANT UPDATE ON srm.operator_audit TO srm_application")

    make_roles(url)

    assert query(url, "SELECT rolsuper FROM pg_roles WHERE rolname = 'srm_application'") == [(False,)]
    assert query(url, "SELECT has_table_privilege('srm_application', 'srm.operator_audit', 'UPDATE')") == [(False,)]


def test_the_owner_migrates_up_and_down_without_being_a_superuser(blank: str) -> None:
    make_roles(blank)
    owner = as_role("srm_owner", blank)

    schema.upgrade(owner)
    command.downgrade(config(owner), "base")
    schema.upgrade(owner)

    assert query(owner, "SELECT usesuper FROM pg_user WHERE usename = current_user") == [(False,)]


def test_later_tables_and_functions_get_their_rights(url: str) -> None:
    execute(
        as_role("srm_owner", url),
        "CREATE TABLE srm.later (a int); CREATE FUNCTION srm.later() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )
    try:
        application, readonly = as_role("srm_application", url), as_role("srm_readonly", url)
        execute(application, "INSERT INTO srm.later VALUES (1); UPDATE srm.later SET a = 2; SELECT srm.later()")
        assert query(readonly, "SELECT a FROM srm.later") == [(2,)]
        assert isinstance(refused(readonly, "SELECT srm.later()"), psycopg.errors.InsufficientPrivilege)
        execute(application, "DELETE FROM srm.later")
    finally:
        execute(url, "DROP TABLE srm.later; DROP FUNCTION srm.later()")


@pytest.mark.parametrize("statement", NEITHER_MAY)
@pytest.mark.parametrize("role", ["srm_application", "srm_readonly"])
def test_neither_application_nor_reader_may_do_this(url: str, partition: str, role: str, statement: str) -> None:
    error = refused(as_role(role, url), statement.format(partition=partition))

    assert isinstance(error, psycopg.errors.InsufficientPrivilege), error


@pytest.mark.parametrize("statement", READER_MAY_NOT)
def test_a_reader_may_not_do_this(url: str, statement: str) -> None:
    error = refused(as_role("srm_readonly", url), statement)

    assert isinstance(error, psycopg.errors.InsufficientPrivilege), error


def test_a_reader_sees_everything_but_key_hashes(url: str) -> None:
    tables = query(
        url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'srm'::regnamespace AND relkind IN ('r', 'p', 'v') "
        "AND relname <> 'operators'",
    )
    reader = as_role("srm_readonly", url)

    for (table,) in tables:
        query(reader, f"SELECT count(each) FROM srm.{table} AS each")
    query(reader, "SELECT name, role, created_at, revoked_at FROM srm.operators")


def test_a_reader_cannot_block_the_service_for_long(url: str) -> None:
    reader = as_role("srm_readonly", url)
    settings = ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout")

    assert [query(reader, f"SHOW {name}") for name in settings] == [[("30s",)], [("30s",)], [("1s",)]]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        execute(reader, "CREATE TABLE srm.mine (a int)")


@pytest.mark.parametrize("call", MISUSES)
def test_the_partition_functions_refuse_everything_out_of_bounds(url: str, call: str) -> None:
    before = query(url, "SELECT relname FROM pg_class WHERE relnamespace = 'srm'::regnamespace ORDER BY 1")

    error = refused(as_role("srm_application", url), call)

    assert isinstance(error, psycopg.errors.InvalidParameterValue | psycopg.errors.NullValueNotAllowed), error
    assert query(url, "SELECT relname FROM pg_class WHERE relnamespace = 'srm'::regnamespace ORDER BY 1") == before


def test_the_partition_functions_ignore_objects_of_their_caller(url: str) -> None:
    """The caller has tables named like those of pg_catalog. A table that is no partition is still refused."""
    execute(url, "CREATE TABLE srm.denials_2020_01 (account_id text)")
    try:
        with psycopg.connect(as_role("srm_application", url), autocommit=True) as connection:
            connection.execute(
                "CREATE TEMP TABLE pg_inherits AS SELECT 'srm.denials_2020_01'::regclass::oid AS inhrelid, "
                "'srm.denials'::regclass::oid AS inhparent"
            )
            connection.execute("SET search_path = pg_temp, pg_catalog")
            with pytest.raises(psycopg.errors.UndefinedTable, match="is no partition"):
                connection.execute("SELECT srm.drop_partition('denials', '2020-01-01 00:00+00')")
    finally:
        execute(url, "DROP TABLE srm.denials_2020_01")
