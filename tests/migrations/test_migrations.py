"""Migrations: up, down and up again, written or run, alone or together; and what the schema promises a DBA.

docs/design.md, Invariant 5 (one clock) and docs/design.md, "Data rules".
"""

import ast
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from srm.db import schema
from srm.db.models import Base
from tests.cli.command import assert_refused, run, srm
from tests.support import ROOT, environment, python_m, wait_until

CATALOGUE = {
    "relations": """
        SELECT c.relname, c.relkind, c.relpersistence, c.reloptions, pg_get_partkeydef(c.oid),
               obj_description(c.oid, 'pg_class')
        FROM pg_class c WHERE c.relnamespace = 'srm'::regnamespace ORDER BY 1
    """,
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
               a.attgenerated, a.attcollation, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
        FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'srm'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY c.relname, a.attnum
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, convalidated, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'srm'::regnamespace ORDER BY 1, 2
    """,
    "indexes": """
        SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'srm' ORDER BY 1, 2
    """,
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'srm' ORDER BY 1",
    "triggers": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2",
    "routines": """
        SELECT proname, pg_get_functiondef(oid), proacl IS NULL, obj_description(oid, 'pg_proc')
        FROM pg_proc WHERE pronamespace = 'srm'::regnamespace ORDER BY 1
    """,
    "types": "SELECT typname FROM pg_type WHERE typnamespace = 'srm'::regnamespace ORDER BY 1",
    "version": "SELECT version_num FROM srm.alembic_version",
}

WAITING = """
    SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted
"""

OURS = "c.relnamespace = 'srm'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition"

KEYS = {
    "account_profiles": ["profile_id"],
    "accounts": ["account_id"],
    "devices": ["account_id", "device_id"],
    "contents": ["content_id"],
    "products": ["product_id"],
    "product_contents": ["product_id", "content_type", "content_id"],
    "content_groups": ["content_id", "content_group"],
    "profile_device_groups": ["profile_id", "device_group"],
    "profile_content_groups": ["profile_id", "content_group"],
    "entitlements": ["account_id", "product_id"],
    "sessions": ["account_id", "session_id"],
    "session_history": ["account_id", "session_id", "ended_at"],
    "denials": ["account_id", "denied_at", "denial_id"],
}
CATALOGUE_TABLES = {
    "account_profiles",
    "profile_device_groups",
    "profile_content_groups",
    "contents",
    "content_groups",
    "products",
    "product_contents",
}


def config(url: str) -> Config:
    return Config(str(ROOT / "alembic.ini"), attributes={"url": url})


def revisions() -> list[str]:
    """List all revisions, the first one first."""
    return [script.revision for script in ScriptDirectory.from_config(config("")).walk_revisions()][::-1]


def query(url: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql, parameters or None).fetchall()


def execute(url: str, sql: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql)


def catalogue(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return everything visible in the schema, without what depends on the time of its creation."""
    with psycopg.connect(url, autocommit=True) as connection:
        return {name: connection.execute(sql).fetchall() for name, sql in CATALOGUE.items()}


@pytest.fixture(scope="module")
def module_url(clone: Callable[[], str]) -> str:
    return clone()


@pytest.fixture
def blank(module_url: str) -> str:
    """A database without the schema."""
    execute(module_url, "DROP SCHEMA IF EXISTS srm CASCADE")
    return module_url


@pytest.fixture(scope="module")
def head(clone: Callable[[], str]) -> str:
    """A database at head, without partitions, for tests that only read."""
    url = clone()
    execute(url, "DROP SCHEMA srm CASCADE")
    schema.upgrade(url)
    return url


@pytest.fixture(params=["srm", "somebody"])
def url_of_role(request: pytest.FixtureRequest, server_url: str, clone: Callable[[], str]) -> Iterator[str]:
    """A database owned by a role, as that role. For the role `srm` PostgreSQL searches the schema `srm` first."""
    url = clone()
    execute(url, "DROP SCHEMA srm CASCADE")
    if make_url(url).username == request.param:
        yield url
        return
    role = request.param if request.param == "srm" else f"{request.param}_{uuid4().hex[:8]}"
    name = make_url(url).database
    execute(url, f"CREATE ROLE {role} LOGIN PASSWORD 'password'")
    execute(url, f'ALTER DATABASE "{name}" OWNER TO {role}')
    yield make_url(url).set(username=role, password="password").render_as_string(hide_password=False)
    execute(url, f"REASSIGN OWNED BY {role} TO CURRENT_USER")
    execute(url, f"DROP ROLE {role}")


def test_migrations_go_up_down_to_nothing_and_up_again(blank: str) -> None:

    schema.upgrade(blank)
    at_head = catalogue(blank)
    command.downgrade(config(blank), "base")
    left = catalogue(blank)
    schema.upgrade(blank)

    assert at_head["version"] == [(schema.head_revision(),)]
    assert [relation[0] for relation in left["relations"]] == ["alembic_version", "alembic_version_pkc"]
    assert (left["version"], left["routines"], left["views"]) == ([], [], [])
    assert catalogue(blank) == at_head


def test_migrations_go_down_from_a_database_with_rows(clone: Callable[[], str]) -> None:
    url = clone()  # with partitions and a catalogue

    command.downgrade(config(url), "base")

    assert query(url, "SELECT relname FROM pg_class WHERE relnamespace = 'srm'::regnamespace AND relkind <> 'i'") == [
        ("alembic_version",)
    ]


def test_each_migration_goes_up_down_and_up_again(blank: str) -> None:
    execute(blank, "CREATE SCHEMA srm")
    command.stamp(config(blank), "base")

    for revision in revisions():
        before = catalogue(blank)
        command.upgrade(config(blank), revision)
        after = catalogue(blank)
        command.downgrade(config(blank), "-1")
        assert catalogue(blank) == before, revision
        command.upgrade(config(blank), revision)
        assert catalogue(blank) == after != before, revision


def test_migration_0005_keeps_the_rows_of_a_database_in_use(blank: str) -> None:
    """0005: profiles, accounts and sessions of the schema before mean what they meant."""
    command.upgrade(config(blank), "0004")
    execute(
        blank,
        """
        INSERT INTO srm.account_profiles (profile_id, max_sessions, timeout_seconds) VALUES ('p', 2, 30);
        INSERT INTO srm.accounts (account_id, profile_id, enabled) VALUES ('a', 'p', false);
        INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, max_sessions)
        VALUES ('a', '00000000-0000-4000-8000-000000000001', 'tv', 'COD', 'film', 2)
        """,
    )
    sessions = query(blank, "SELECT started_at, last_keep_alive_at, max_sessions FROM srm.sessions")

    command.upgrade(config(blank), "0005")

    assert query(
        blank, "SELECT profile_id, max_sessions, timeout_seconds, on_limit, same_device FROM srm.account_profiles"
    ) == [("p", 2, 30, "deny", "count")]
    assert query(blank, "SELECT account_id, profile_id, enabled, max_sessions FROM srm.accounts") == [
        ("a", "p", False, None)
    ]
    assert query(blank, "SELECT account_id, max_sessions, active_sessions FROM srm.account_usage") == [("a", 2, 1)]
    assert (
        query(blank, "SELECT started_at, last_keep_alive_at, max_sessions FROM srm.sessions WHERE ended_by IS NULL")
        == sessions
    )

    command.downgrade(config(blank), "0004")

    assert query(blank, "SELECT started_at, last_keep_alive_at, max_sessions FROM srm.sessions") == sessions


BEFORE_LIMITS = """
    INSERT INTO srm.account_profiles (profile_id, max_sessions, timeout_seconds, on_limit, same_device)
    VALUES ('p', 2, 30, 'evict_oldest', 'replace');
    INSERT INTO srm.accounts (account_id, profile_id, max_sessions) VALUES ('a', 'p', 3);
    INSERT INTO srm.devices (account_id, device_id, device_group, name) VALUES ('a', 'phone', 'mobile', 'Phone');
    INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds,
                              max_sessions, idempotency_key)
    VALUES ('a', '00000000-0000-4000-8000-000000000001', 'phone', 'COD', 'film', 30, 3, 'k');
    CREATE TABLE srm.session_history_2020_02 PARTITION OF srm.session_history
    FOR VALUES FROM ('2020-02-01 00:00+00') TO ('2020-03-01 00:00+00');
    INSERT INTO srm.session_history (account_id, session_id, device_id, content_type, content_id, max_sessions,
                                     started_at, ended_at, end_reason, ended_by)
    VALUES ('a', '00000000-0000-4000-8000-000000000002', 'phone', 'COD', 'film', 3,
            '2020-02-01 10:00+00', '2020-02-01 11:00+00', 'evicted', 'TV')
"""
"""Rows of the schema 0006."""


@pytest.mark.parametrize("revision", ["0007", "0008", "0009", "0010", "0011", "0012", "0013"])
def test_later_migrations_keep_the_rows_of_a_database_in_use(blank: str, revision: str) -> None:
    """Existing rows stay as they were, and no new limit holds for them. A downgrade keeps them too."""
    tables = ("account_profiles", "accounts", "devices", "sessions", "session_history")
    views = ("active_sessions", "account_usage")

    def seen() -> dict[str, list[dict[str, Any]]]:
        return {
            what: [row for (row,) in query(blank, f"SELECT to_jsonb(t) FROM srm.{what} t")] for what in tables + views
        }

    command.upgrade(config(blank), "0006")
    execute(blank, BEFORE_LIMITS)
    command.upgrade(config(blank), f"{int(revision) - 1:04}")
    before = seen()

    command.upgrade(config(blank), revision)

    after = seen()
    for what in tables + views:
        for old, new in zip(before[what], after[what], strict=True):
            assert {name: new[name] for name in old} == old
            added = {name: new[name] for name in new.keys() - old.keys()}
            assert {name: value for name, value in added.items() if value is not None} in (
                {},
                {"counts": True},
                {"mode": "enforce"},
            )
    command.downgrade(config(blank), "-1")
    assert seen() == before


def test_migration_0013_keeps_recorded_denials(clone: Callable[[], str]) -> None:
    """0013: those from before have none, and stay when the reasons go again."""
    url = clone()
    command.downgrade(config(url), "0012")
    denial = "INSERT INTO srm.denials (account_id, device_id, content_type, content_id, error_code{0}) VALUES {1}"
    execute(url, denial.format("", "('a', 'tv', 'COD', 'film', 'SRM-0007')"))

    command.upgrade(config(url), "0013")
    execute(url, denial.format(", reason", "('b', 'tv', 'COD', 'film', 'SRM-0007', 'not in the package')"))

    assert query(url, "SELECT account_id, reason FROM srm.denials ORDER BY 1") == [
        ("a", None),
        ("b", "not in the package"),
    ]
    command.downgrade(config(url), "0012")
    assert query(url, "SELECT account_id FROM srm.denials ORDER BY 1") == [("a",), ("b",)]


def test_the_schema_equals_the_models(url_of_role: str) -> None:
    schema.upgrade(url_of_role)

    command.check(config(url_of_role))  # raises when there is one


def test_the_schema_equals_the_models_with_partitions(clone: Callable[[], str]) -> None:
    url = clone()
    for table in ("session_history", "denials"):
        assert query(url, "SELECT 1 FROM pg_inherits WHERE inhparent = %s::regclass", f"srm.{table}")

    command.check(config(url))


@pytest.mark.parametrize(
    "upgrade",
    [python_m("alembic", "upgrade", "head"), python_m("srm.cli", "db", "upgrade")],
    ids=["alembic upgrade head", "srm db upgrade"],
)
def test_migrations_run_from_the_command_line(head: str, blank: str, upgrade: list[str]) -> None:

    result = run(upgrade, SRM_DATABASE_URL=blank)

    assert result.returncode == 0, result.stderr
    assert catalogue(blank) == catalogue(head)


def test_the_printed_sql_makes_the_schema(head: str, blank: str, tmp_path: Path) -> None:

    result = srm("db", "upgrade", "--sql", cwd=tmp_path)
    execute(blank, result.stdout)

    assert (result.returncode, result.stderr) == (0, "")
    assert catalogue(blank) == catalogue(head)
    assert list(tmp_path.iterdir()) == []  # it needs no database, and starts none


def test_the_sql_of_a_range_can_be_printed(head: str, blank: str) -> None:
    first, last = revisions()[0], revisions()[-1]

    for range_ in (first, f"{first}:{last}"):
        execute(blank, srm("db", "upgrade", range_, "--sql").stdout)

    assert catalogue(blank) == catalogue(head)


def test_the_sql_of_a_downgrade_can_be_printed(clone: Callable[[], str]) -> None:
    url = clone()

    result = run(python_m("alembic", "downgrade", f"{schema.head_revision()}:base", "--sql"))
    execute(url, result.stdout)

    assert result.returncode == 0, result.stderr
    assert query(url, "SELECT relname FROM pg_class WHERE relnamespace = 'srm'::regnamespace AND relkind <> 'i'") in (
        [],
        [("alembic_version",)],
    )


def test_several_runs_at_once_all_succeed(head: str, blank: str) -> None:
    with psycopg.connect(blank) as gate:
        gate.execute("SELECT pg_advisory_xact_lock(%s)", [0x53524D])  # so that all of them wait at the same door
        runners = [
            subprocess.Popen(
                python_m("srm.cli", "db", "upgrade"),
                env=environment(SRM_DATABASE_URL=blank),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(3)
        ]
        wait_until(lambda: query(blank, WAITING) == [(len(runners),)])

    said = [runner.communicate(timeout=60)[0] for runner in runners]

    assert [runner.returncode for runner in runners] == [0, 0, 0], said
    assert catalogue(blank) == catalogue(head)


def test_a_run_names_the_run_it_waits_for_and_gives_up_in_the_end(
    blank: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that hangs does not block others for ever."""
    monkeypatch.setattr(schema, "RUNNER_SECONDS", 0.2)
    with psycopg.connect(blank) as hanging:
        hanging.execute("SELECT pg_advisory_xact_lock(%s)", [0x53524D])
        process = hanging.info.backend_pid
        with pytest.raises(CommandError, match=f"did not end within 0.2 s: process {process} of this host since"):
            schema.upgrade(blank)

    assert f"another run of migrations is at work, process {process}" in capfd.readouterr().err
    schema.upgrade(blank)


@contextmanager
def held(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Read a table that the next migration locks, in a transaction that lasts as long as the block."""
    with psycopg.connect(url) as somebody:
        somebody.execute("SELECT FROM srm.accounts")
        yield somebody


def test_a_run_gives_up_on_a_table_that_stays_locked_and_keeps_earlier_migrations(
    blank: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run can be repeated. No query waited behind it longer than the lock timeout."""
    monkeypatch.setattr(schema, "TRIES", 3)
    monkeypatch.setattr(schema, "PAUSE_SECONDS", 0.1)
    schema.upgrade(blank, "0003")
    with held(blank):
        began_at = time.monotonic()
        with pytest.raises(
            CommandError, match=r"another transaction holds .* tried 3 times: canceling .* lock timeout"
        ):
            schema.upgrade(blank)
        assert time.monotonic() - began_at > 3 * schema.LOCK_SECONDS

    assert capfd.readouterr().err.count("giving way") == 2
    assert query(blank, "SELECT version_num FROM srm.alembic_version") == [("0004",)]
    assert (
        query(
            blank, "SELECT 1 FROM pg_attribute WHERE attrelid = 'srm.account_profiles'::regclass AND attname = 'mode'"
        )
        == []
    )
    schema.upgrade(blank)


def test_a_run_goes_on_when_the_table_is_free(
    blank: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schema, "PAUSE_SECONDS", 0.1)
    schema.upgrade(blank, "0004")
    with held(blank) as somebody, ThreadPoolExecutor(1) as thread:
        upgrading = thread.submit(schema.upgrade, blank)
        wait_until(
            lambda: query(blank, "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'") != [(0,)]
        )
        wait_until(
            lambda: query(blank, "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'") == [(0,)]
        )
        somebody.rollback()
        upgrading.result()

    assert "giving way" in capfd.readouterr().err
    assert query(blank, "SELECT version_num FROM srm.alembic_version") == [(schema.head_revision(),)]


def test_a_relative_revision_is_tried_once(blank: str) -> None:
    """A second try would begin at another revision and go too far."""
    schema.upgrade(blank, "0003")
    with held(blank), pytest.raises(CommandError, match="tried 1 times"):
        schema.upgrade(blank, "+3")

    assert query(blank, "SELECT version_num FROM srm.alembic_version") == [("0004",)]


def test_a_locked_table_is_one_line_on_the_command_line(blank: str) -> None:
    schema.upgrade(blank, "0004")
    with held(blank):
        assert_refused(srm("db", "upgrade", "+1", SRM_DATABASE_URL=blank), "lock timeout", "docs/dba.md")


def test_rows_without_a_partition_are_kept_since_0016_and_stop_a_downgrade(blank: str) -> None:
    schema.upgrade(blank, "0013")
    denial = "INSERT INTO srm.denials (account_id, device_id, content_type, content_id, error_code) VALUES {}"
    denial = denial.format("('a', 'tv', 'COD', 'film', 'SRM-0007')")
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(blank, denial)

    schema.upgrade(blank, "0016")
    execute(blank, denial)
    with pytest.raises(DBAPIError, match="denials_default holds rows"):
        command.downgrade(config(blank), "0013")
    schema.upgrade(blank)
    with psycopg.connect(blank) as connection:
        connection.execute(
            "SELECT srm.make_partition('denials', date_trunc('month', statement_timestamp(), 'UTC'), 10)"
        )
    command.downgrade(config(blank), "0013")

    assert query(blank, "SELECT account_id FROM srm.denials") == [("a",)]


def test_an_unknown_revision_is_refused(head: str) -> None:
    assert_refused(srm("db", "upgrade", "9999", SRM_DATABASE_URL=head), "9999")


def test_the_schema_of_a_newer_release_is_not_migrated(blank: str) -> None:
    schema.upgrade(blank)
    execute(blank, "UPDATE srm.alembic_version SET version_num = '9999'")

    assert_refused(srm("db", "upgrade", SRM_DATABASE_URL=blank), "9999")


def test_there_is_one_head_and_files_are_named_by_number_verb_and_object() -> None:
    scripts = ScriptDirectory.from_config(config(""))

    assert len(scripts.get_heads()) == 1
    assert schema.revisions() == tuple(revisions())
    for number, revision in enumerate(revisions(), start=1):
        path = Path(scripts.get_revision(revision).path)
        assert revision == f"{number:04}"
        assert re.fullmatch(rf"{revision}_[a-z]+(_[a-z0-9]+)+\.py", path.name)
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        why = docstring.split("Revision ID:")[0].strip().split("\n", 1)
        assert len(why) == 2, f"{path.name} does not say why"


def test_every_table_and_view_has_a_comment(head: str) -> None:
    """Alembic's table has one too, because DBAs see it in the schema."""
    without = query(
        head, f"SELECT c.relname FROM pg_class c WHERE {OURS} AND obj_description(c.oid, 'pg_class') IS NULL"
    )

    assert without == []


def test_every_column_has_a_comment(head: str) -> None:
    without = query(
        head,
        f"""
        SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE {OURS} AND a.attnum > 0 AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL
        """,
    )

    assert without == []


def test_every_constraint_and_index_is_named_by_the_convention(head: str) -> None:
    """NOT NULL constraints are left out: they have no names before PostgreSQL 18."""
    constraints = query(
        head,
        """
        SELECT t.relname, c.conname FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
        WHERE c.connamespace = 'srm'::regnamespace AND c.contype <> 'n' AND t.relname <> 'alembic_version'
          AND NOT t.relispartition
        """,
    )
    indexes = query(
        head,
        """
        SELECT tablename, indexname FROM pg_indexes
        WHERE schemaname = 'srm' AND tablename NOT IN ('alembic_version', 'session_history_default', 'denials_default')
          AND indexname NOT IN (SELECT conname FROM pg_constraint)
        """,
    )

    tables = Base.metadata.tables.values()
    assert set(constraints) == {(table.name, str(c.name)) for table in tables for c in table.constraints}
    assert set(indexes) == {(table.name, str(index.name)) for table in tables for index in table.indexes}
    for table, name in (*constraints, *indexes):
        assert re.fullmatch(rf"{table}_(pkey|\w+_(fkey|key|check|idx))", name)


@pytest.mark.parametrize("table", KEYS)
def test_each_table_has_its_primary_key(head: str, table: str) -> None:
    columns = query(
        head,
        """
        SELECT a.attname FROM pg_constraint c, unnest(c.conkey) WITH ORDINALITY AS k(number, position)
        JOIN pg_attribute a ON a.attnum = k.number
        WHERE c.contype = 'p' AND c.conrelid = %s::regclass AND a.attrelid = c.conrelid ORDER BY k.position
        """,
        f"srm.{table}",
    )

    assert [column for (column,) in columns] == KEYS[table]


def test_the_schema_can_be_distributed_by_account(head: str) -> None:
    """account_id is first in every key of, and between, the tables that grow with the accounts."""
    keys = query(
        head,
        """
        SELECT t.relname, f.relname, c.conname, a.attname
        FROM pg_constraint c
        JOIN pg_class t ON t.oid = c.conrelid
        LEFT JOIN pg_class f ON f.oid = c.confrelid
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = c.conkey[1]
        WHERE c.connamespace = 'srm'::regnamespace AND c.contype IN ('p', 'u', 'f')
        """,
    )
    unique_indexes = query(
        head,
        """
        SELECT t.relname, NULL, i.indexrelid::regclass::text, a.attname
        FROM pg_index i
        JOIN pg_class t ON t.oid = i.indrelid
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0]
        WHERE i.indisunique AND t.relnamespace = 'srm'::regnamespace
        """,
    )

    growing = KEYS.keys() - CATALOGUE_TABLES
    relevant = [key for key in (*keys, *unique_indexes) if key[0] in growing and key[1] in growing | {None}]
    assert len(relevant) >= 12
    assert {column for *_, column in relevant} == {"account_id"}


def test_there_are_no_triggers_and_only_the_functions_for_partitions(head: str) -> None:
    """The functions run as their owner, search only pg_catalog, and are not granted to PUBLIC."""
    assert catalogue(head)["triggers"] == []
    assert query(
        head,
        """
        SELECT proname, prosecdef, proconfig[1], has_function_privilege(
            (SELECT oid FROM pg_roles WHERE rolname = 'pg_read_all_stats'), oid, 'EXECUTE')
        FROM pg_proc WHERE pronamespace = 'srm'::regnamespace ORDER BY 1
        """,
    ) == [
        (name, True, "search_path=pg_catalog, pg_temp", False)
        for name in ("drop_partition", "empty_default_partition", "make_partition")
    ]


def test_keep_alives_can_be_heap_only_updates(head: str) -> None:
    """No index has last_keep_alive_at, and the fill factor leaves room."""
    indexes = query(head, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'srm' AND tablename = 'sessions'")
    (options,) = query(head, "SELECT reloptions FROM pg_class WHERE oid = 'srm.sessions'::regclass")

    assert indexes
    assert not any("last_keep_alive_at" in definition for (definition,) in indexes)
    assert "fillfactor=70" in options[0]


def test_every_default_time_is_the_statement_clock(head: str) -> None:
    defaults = query(
        head,
        """
        SELECT table_name, column_name, column_default, data_type FROM information_schema.columns
        WHERE table_schema = 'srm' AND data_type LIKE '%timestamp%' AND table_name NOT LIKE '%default'
        """,
    )

    clocks = {(table, column): default for table, column, default, _ in defaults if default is not None}
    assert clocks == {
        ("sessions", "started_at"): "statement_timestamp()",
        ("sessions", "last_keep_alive_at"): "statement_timestamp()",
        ("session_history", "started_at"): "statement_timestamp()",
        ("session_history", "last_keep_alive_at"): "statement_timestamp()",
        ("entitlements", "valid_from"): "statement_timestamp()",
        ("denials", "denied_at"): "statement_timestamp()",
        ("operators", "created_at"): "statement_timestamp()",
        ("operator_audit", "changed_at"): "statement_timestamp()",
    }
    assert {kind for *_, kind in defaults} == {"timestamp with time zone"}


@pytest.mark.parametrize("url_of_role", ["somebody"], indirect=True)
@pytest.mark.parametrize(
    "change",
    ["UPDATE srm.operator_audit SET operator = 'x'", "DELETE FROM srm.operator_audit", "TRUNCATE srm.operator_audit"],
)
def test_the_owner_cannot_change_the_change_log(url_of_role: str, change: str) -> None:
    schema.upgrade(url_of_role)
    execute(url_of_role, "INSERT INTO srm.operator_audit VALUES ('a', DEFAULT, DEFAULT, 'joe', 'create', 'accounts/a')")

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(url_of_role, change)
