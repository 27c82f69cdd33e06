"""Everything but `srm import` works through pgbouncer in transaction mode, exact and bounded in time."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import make_url

from srm.db import schema
from srm.db.breaker import is_timeout
from srm.db.database import Database
from srm.errors import DependencyUnavailable
from srm.playback.keep_alive import keep_alive
from srm.playback.listing import list_sessions
from srm.playback.model import Principal
from srm.playback.setup import SetupRequest
from srm.playback.setup import set_up as set_up_in
from srm.playback.teardown import tear_down
from srm.reaper.runner import Reaper
from tests import support, tools
from tests.cli.command import assert_refused, srm
from tests.concurrency.players import FILM, Player, at_once, connections, set_up
from tests.support import ROOT, Factory, free_port, rows, running, session_row, wait_until

SERVER_CONNECTIONS = 4
THREADS = 32
LIMIT = 3
ROUNDS = 8


@dataclass(frozen=True)
class Pooled:
    """A database with two URLs: through pgbouncer, and direct."""

    url: str
    direct: str


@pytest.fixture(scope="module")
def pooled(clone: Callable[[], str]) -> Iterator[Pooled]:
    """pgbouncer as in docs/pgbouncer.md, with fewer server connections than threads."""
    direct = clone()
    target = make_url(direct)
    port = free_port()
    host = str(target.query.get("host", target.host))
    with TemporaryDirectory(prefix="srm-pgbouncer-") as name:
        folder = Path(name)
        (folder / "users").write_text('"srm_application" "password"\n"srm_owner" "password"\n')
        (folder / "pgbouncer.ini").write_text(
            f"""
[databases]
{target.database} = host={host} port={target.port or 5432}
[pgbouncer]
pool_mode = transaction
ignore_startup_parameters = options
default_pool_size = {SERVER_CONNECTIONS}
query_wait_timeout = 2
max_client_conn = 1000
auth_type = trust
auth_file = {folder}/users
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
"""
        )
        arguments = [tools.need("pgbouncer"), str(folder / "pgbouncer.ini")]
        if os.geteuid() == 0:  # it does not run as root
            user = Path(host).owner() if host.startswith("/") else "nobody"
            folder.chmod(0o755)
            arguments[1:1] = ["-u", user]
        url = target.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        with running(arguments, folder / "log") as process:

            def is_there() -> bool:
                assert process.popen.poll() is None, process.text()
                try:
                    psycopg.connect(url).close()
                except psycopg.OperationalError:
                    return False
                return True

            wait_until(is_there)
            yield Pooled(url, direct)


@pytest.fixture
def database(pooled: Pooled) -> Iterator[Database]:
    """The database through pgbouncer."""
    database = Database(pooled.url, application_name="srm-tests")
    yield database
    database.dispose()


def new_account(pooled: Pooled, **limits: Any) -> str:
    database = Database(pooled.direct, application_name="srm-tests")
    account = Factory(database).account(uuid4().hex, *(f"device {n}" for n in range(THREADS)), **limits)
    database.dispose()
    return account


def test_clients_operators_and_the_reaper_work_through_pgbouncer(
    pooled: Pooled, database: Database, tmp_path: Path
) -> None:
    account = new_account(pooled, max_sessions=1)
    operator = Factory(database).operator()
    with support.api(pooled.url, tmp_path / "api.log") as (base, process), support.reaper(pooled.url, tmp_path / "log"):
        with Player(base, account, "device 0") as player, Player(base, account, "device 1") as other:
            for _ in range(10):  # often enough that a direct connection would have prepared its statements
                session = player.set_up().session_id
                assert session is not None
                assert [player.keep_alive(session).status for _ in range(10)] == [200] * 10
                assert other.set_up().error_code == "SRM-0006"
                assert player.tear_down(session).status == 200
            path = f"/srm/v1/accounts/{account}"
            assert player.request("GET", f"{path}/denials", **operator).json["denials"] != []
            assert player.request("PATCH", path, '{"enabled": false}', **operator).status == 200
            assert player.set_up().error_code == "SRM-0004"
        lapsed = Factory(database).session("somebody", silent_for=31)
        wait_until(lambda: session_row(database, lapsed).end_reason == "expired")

    assert "dependency unavailable" not in process.text()
    support.assert_audit_clean(pooled.url)


def test_the_limit_is_exact_through_pgbouncer(pooled: Pooled) -> None:
    """Many threads share few connections to the server."""
    account = new_account(pooled, max_sessions=LIMIT)

    def work(index: int, barrier: threading.Barrier) -> int:
        admitted = 0
        principal = Principal(account, f"device {index}")
        with connections(pooled.url) as database:
            for _ in range(ROUNDS):
                barrier.wait()
                session = set_up(database, account, principal.device_id)
                barrier.wait()
                assert len(list_sessions(database.hot, principal)) == LIMIT
                barrier.wait()
                if session is not None:
                    admitted += 1
                    assert keep_alive(database.hot, principal, session)
                    assert tear_down(database.durable, principal, session)
        return admitted

    assert sum(at_once(THREADS, work)) == ROUNDS * LIMIT
    support.assert_audit_clean(pooled.direct)


def test_statements_are_bounded_in_time_by_the_server(
    pooled: Pooled, database: Database, outside: Callable[[str], str]
) -> None:
    """A client's own timeout would leave the statement running in one of the few server connections."""
    account = new_account(pooled)
    session = set_up(database, account, "device 0")
    assert session is not None
    principal = Principal(account, "device 0")
    with psycopg.connect(outside(pooled.direct)) as somebody:
        somebody.execute("UPDATE srm.sessions SET counts = counts WHERE account_id = %s", [account])
        somebody.execute("UPDATE srm.accounts SET enabled = enabled WHERE account_id = %s", [account])

        with pytest.raises(DependencyUnavailable) as alone:
            keep_alive(database.hot, principal, session)
        with pytest.raises(DependencyUnavailable) as in_transaction, database.request() as db:
            set_up_in(db, SetupRequest(principal, FILM))

    assert is_timeout(alone.value)
    assert is_timeout(in_transaction.value)


def test_a_longer_statement_timeout_holds_for_its_own_statements_only(pooled: Pooled) -> None:
    """The next user of the server connection has its own, shorter timeout."""
    with_long_timeout = Database(pooled.url, application_name="srm-tests", statement_timeout_seconds=10)
    assert rows(with_long_timeout, "SELECT 1 FROM pg_sleep(1.8)") == [(1,)]
    with_long_timeout.dispose()

    for _ in range(SERVER_CONNECTIONS * 2):
        with psycopg.connect(pooled.url, autocommit=True) as connection:
            assert connection.execute("SHOW statement_timeout").fetchone() == ("1500ms",)


def test_partitions_are_made_through_pgbouncer(
    pooled: Pooled, database: Database, outside: Callable[[str], str]
) -> None:
    with psycopg.connect(outside(pooled.direct)) as owner:
        ((last,),) = owner.execute(
            "SELECT max(relname) FROM pg_inherits JOIN pg_class ON oid = inhrelid "
            "WHERE inhparent = 'srm.denials'::regclass AND relname <> 'denials_default'"
        ).fetchall()
        owner.execute(f"DROP TABLE srm.{last}")

    made = Reaper(database, ended_retention_seconds=300, history_retention_days=90).make_partitions()

    assert made == [last]


def test_migrations_run_through_pgbouncer(pooled: Pooled) -> None:
    owner = support.as_role("srm_owner", pooled.url)
    config = Config(str(ROOT / "alembic.ini"), attributes={"url": owner})

    command.downgrade(config, "-1")
    schema.upgrade(owner)
    command.check(config)


def test_an_import_through_pgbouncer_is_refused_in_one_line(pooled: Pooled, tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    file.write_text("accountId,profileId\nx,y\n")

    result = srm("import", "accounts", str(file), SRM_DATABASE_URL=pooled.url)

    assert_refused(result, "pooler", "SRM_DATABASE_URL")


def test_exports_and_audits_work_through_pgbouncer(pooled: Pooled) -> None:
    new_account(pooled)

    assert srm("export", "accounts", SRM_DATABASE_URL=pooled.url).stdout.startswith("accountId,")
    assert srm("audit", SRM_DATABASE_URL=pooled.url).returncode == 0


def test_a_direct_connection_keeps_its_prepared_statements(pooled: Pooled) -> None:
    database = Database(pooled.direct, application_name="srm-tests")
    for _ in range(10):
        database.hot.execute("SELECT 1", {})
    prepared = database.hot.execute("SELECT statement FROM pg_prepared_statements", {}).fetchall()
    database.dispose()

    assert ("SELECT 1",) in prepared
