"""`srm serve` starts everything with one command and ends everything with one signal."""

import json
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import psutil
import psycopg
import pytest

from srm.db import schema
from srm.db.embedded import EmbeddedServer
from srm.operators import demo
from tests.cli.command import Result, assert_one_line, assert_refused, run, srm
from tests.support import ROOT, SECRET, Process, environment, free_port, http, python_m, running, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and Unix sockets")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

STOP_SECONDS = 5
"""A service without requests stops within this time."""


@dataclass
class Service:
    """A running `srm serve`."""

    process: Process
    port: int
    data_dir: Path

    def wait_until_ready(self, timeout: float = 30) -> None:
        def is_ready() -> bool:
            assert self.process.popen.poll() is None, self.process.text()
            return "SRM is ready on" in self.process.text()

        wait_until(is_ready, timeout)

    def curl_lines(self) -> list[str]:
        return [line for line in self.process.text().splitlines() if line.startswith("curl ")]

    def paste(self) -> dict[str, Any]:
        """Paste the printed curl line into a shell; return the answer."""
        wait_until(self.curl_lines)
        (line,) = self.curl_lines()
        answer: dict[str, Any] = json.loads(run(["bash", "-c", line]).stdout)
        return answer

    def srm(self, *arguments: str) -> Result:
        """Run `srm` with the data directory of the service."""
        return srm(*arguments, SRM_DATA_DIR=str(self.data_dir))


def serve_command(port: int, *options: str) -> list[str]:
    return python_m("srm.cli", "serve", "--workers", "1", "--bind", f"127.0.0.1:{port}", *options)


@contextmanager
def serving(data_dir: Path, output: Path, *options: str, variables: Mapping[str, str] = {}) -> Iterator[Service]:
    """Run `srm serve` during the block, ready or not; kill what it leaves behind."""
    port = free_port()
    all_variables = {"SRM_DATA_DIR": str(data_dir), **variables}
    with running(serve_command(port, *options), output, variables=all_variables) as process:
        try:
            yield Service(process, port, data_dir)
        finally:
            with suppress(subprocess.TimeoutExpired):
                process.stop()
            for orphan in left_of(data_dir):
                with suppress(psutil.NoSuchProcess):
                    orphan.kill()


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder that other users can enter. pytest closes its own folders to others at each start of a pytest."""
    folder = Path(tempfile.mkdtemp(prefix="srm-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def left_of(data_dir: Path) -> list[psutil.Process]:
    """List all other processes that name the data directory in command, environment or working directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            known = [*process.cmdline(), *process.environ().values(), process.cwd()]
            if process.pid != os.getpid() and any(str(data_dir) in word for word in known):
                found.append(process)
    return found


def assert_nothing_is_left(data_dir: Path, port: int) -> None:
    assert left_of(data_dir) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def log_of(data_dir: Path) -> str:
    return (data_dir / "postgres.log").read_text()


@pytest.fixture(scope="module")
def served() -> Iterator[Service]:
    """A running service that started in a new folder, for tests that leave it running."""
    with open_folder() as folder, serving(folder / "new" / "var", folder / "output", "--demo") as service:
        service.wait_until_ready()
        yield service


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """A data directory with a migrated database that was shut down."""
    with open_folder() as folder:
        with EmbeddedServer(folder / "var") as server:
            schema.upgrade(server.url)
        yield folder / "var"


@pytest.fixture
def data_dir(stopped: Path, folder: Path) -> Path:
    """A copy of the data directory `stopped`."""
    subprocess.run(["cp", "-a", str(stopped), str(folder / "var")], check=True)
    return folder / "var"


class TestRunning:
    def test_the_printed_curl_line_works_as_pasted(self, served: Service) -> None:
        answer = served.paste()

        assert UUID(answer["successResponse"]["sessionId"])
        assert answer["successResponse"]["timeout"] == 3600

    def test_the_output_says_where_the_service_listens(self, served: Service) -> None:
        base = f"http://127.0.0.1:{served.port}"

        assert f"SRM is ready on {base}" in served.process.text()
        assert http("GET", f"{base}/readyz").is_success

    def test_the_generated_token_secret_is_readable_by_its_owner_only_and_not_printed(self, served: Service) -> None:
        path = served.data_dir / "token_secret"

        assert path.stat().st_mode & 0o777 == 0o600
        assert len(path.read_bytes().strip()) >= 32
        assert path.read_text().strip() not in served.process.text()

    def test_srm_db_url_prints_the_url_of_the_embedded_database(self, served: Service) -> None:
        result = served.srm("db", "url")

        assert (result.returncode, result.stderr) == (0, "")
        with psycopg.connect(result.stdout.strip()) as connection:
            assert connection.execute("SELECT count(*) FROM srm.accounts").fetchall() == [(len(demo.ACCOUNTS),)]

    def test_srm_audit_works_beside_the_service(self, served: Service) -> None:
        result = served.srm("audit")

        assert (result.returncode, result.stderr) == (0, "")
        assert "clean" in result.stdout

    def test_the_service_accepts_tokens_from_srm_token_issue(self, served: Service) -> None:
        result = served.srm("token", "issue", "--account", "demo-3", "--device", "demo-3-tv")

        answer = http(
            "POST",
            f"http://127.0.0.1:{served.port}/srm/v1/sessions",
            json={"content": {"contentID": "100001V3D", "contentType": "COD"}},
            headers={"Client-Token": result.stdout.strip()},
        )
        assert answer.json()["successResponse"].keys() == {"sessionId"}

    def test_the_service_goes_on_after_other_commands_have_used_its_database(self, served: Service) -> None:
        for arguments in (["demo", "load"], ["db", "upgrade"]):
            assert served.srm(*arguments).returncode == 0

        assert http("GET", f"http://127.0.0.1:{served.port}/readyz").is_success

    def test_the_reaper_runs_beside_the_api(self, served: Service) -> None:
        assert "session_history_" in served.process.text()

    def test_a_second_run_in_one_data_directory_is_refused(self, served: Service) -> None:
        port = free_port()

        result = run(serve_command(port), SRM_DATA_DIR=str(served.data_dir))

        assert_refused(result, str(served.data_dir), "in use")
        assert http("GET", f"http://127.0.0.1:{served.port}/readyz").is_success

    def test_a_port_in_use_is_refused(self, served: Service, folder: Path) -> None:
        result = run(serve_command(served.port), SRM_DATA_DIR=str(folder / "var"))

        assert_refused(result, f"127.0.0.1:{served.port}", "SRM_BIND")
        assert left_of(folder) == []


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_stops_every_process_and_shuts_the_database_down(
        self, data_dir: Path, folder: Path, number: int
    ) -> None:
        """SIGINT goes to the whole process group, as Ctrl-C sends it."""
        with serving(data_dir, folder / "output", "--demo") as service:
            service.wait_until_ready()
            assert len(left_of(data_dir)) > 4

            signalled_at = time.monotonic()
            if number == signal.SIGINT:
                os.killpg(service.process.popen.pid, signal.SIGINT)
            else:
                service.process.popen.send_signal(number)

            assert service.process.popen.wait(30) == 0
            took = time.monotonic() - signalled_at
            assert_nothing_is_left(data_dir, service.port)
            assert log_of(data_dir).splitlines()[-1].endswith("database system is shut down")
            assert "Traceback" not in service.process.text()
            assert took < STOP_SECONDS  # Ctrl-C is quick

    def test_sessions_and_secret_survive_a_restart(self, data_dir: Path, folder: Path) -> None:
        with serving(data_dir, folder / "first", "--demo") as service:
            service.wait_until_ready()
            session = service.paste()["successResponse"]["sessionId"]
            secret = (data_dir / "token_secret").read_text()
            assert service.process.stop() == 0, service.process.text()

        with serving(data_dir, folder / "second", "--demo") as service:
            service.wait_until_ready()
            url = service.srm("db", "url").stdout.strip()
            with psycopg.connect(url) as connection:
                kept = connection.execute("SELECT session_id::text FROM srm.sessions").fetchall()

        assert kept == [(session,)]
        assert (data_dir / "token_secret").read_text() == secret
        assert "recovery" not in log_of(data_dir)
        assert "interrupted" not in log_of(data_dir)

    @pytest.mark.parametrize("moment", ["serve.lock", "postgres/PG_VERSION", "postgres/postmaster.pid", "token_secret"])
    def test_a_stop_during_the_start_leaves_no_process(self, folder: Path, moment: str) -> None:
        data_dir = folder / "var"
        with serving(data_dir, folder / "output", "--demo") as service:
            wait_until((data_dir / moment).exists, every=0.001)

            assert service.process.stop() == 0, service.process.text()

            assert_nothing_is_left(data_dir, service.port)
            assert "Traceback" not in service.process.text()

    def test_the_service_starts_after_a_stop_during_its_first_start(self, folder: Path) -> None:
        data_dir = folder / "var"
        with serving(data_dir, folder / "first") as service:
            wait_until((data_dir / "postgres" / "PG_VERSION").exists, every=0.001)
            service.process.stop()

        with serving(data_dir, folder / "second", "--demo") as service:
            service.wait_until_ready()
            assert "successResponse" in service.paste()


class TestExternalDatabase:
    def test_a_configured_database_is_used_and_no_other_is_started(self, url: str, folder: Path) -> None:
        data_dir = folder / "var"
        with serving(data_dir, folder / "output", "--demo", variables={"SRM_DATABASE_URL": url}) as service:
            service.wait_until_ready()

            assert service.srm("db", "url").returncode == 1  # no embedded database runs
            assert [path.name for path in data_dir.iterdir()] == ["token_secret"]
            with psycopg.connect(url) as connection:
                users = connection.execute(
                    "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()"
                ).fetchall()
                accounts = connection.execute("SELECT count(*) FROM srm.accounts").fetchone()

            assert service.process.stop() == 0, service.process.text()
            assert_nothing_is_left(data_dir, service.port)

        with psycopg.connect(url) as connection:  # the configured database still runs
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
        assert ("srm-reaper",) in users
        assert accounts == (0,)  # --demo loads only into the embedded database
        assert service.curl_lines() == []
        assert "srm demo load" in service.process.text()

    def test_an_example_is_printed_when_a_configured_database_has_the_demo_data(
        self, clone: Callable[[], str], folder: Path
    ) -> None:
        url = clone()
        assert srm("demo", "load", SRM_DATABASE_URL=url).returncode == 0
        variables = {"SRM_DATABASE_URL": url, "SRM_TOKEN_SECRET": SECRET}
        with serving(folder / "var", folder / "output", variables=variables) as service:
            service.wait_until_ready()

            assert "successResponse" in service.paste()
            assert not (folder / "var").exists()  # nothing has to be written there
            (line,) = service.curl_lines()
            token = shlex.split(line)[shlex.split(line).index("-H") + 1].removeprefix("Client-Token: ")
            assert jwt.decode(token, SECRET, algorithms=["HS256"])["accountId"] == "demo-1"

    def test_an_outdated_schema_is_refused(
        self, clone: Callable[[], str], outside: Callable[[str], str], folder: Path
    ) -> None:
        url = clone()
        with psycopg.connect(outside(url), autocommit=True) as connection:
            connection.execute("UPDATE srm.alembic_version SET version_num = '0001'")

        result = run(serve_command(free_port()), SRM_DATABASE_URL=url, SRM_DATA_DIR=str(folder / "var"))

        assert_refused(result, "0001", schema.head_revision(), "srm db upgrade")
        assert left_of(folder) == []

    def test_an_unreachable_database_is_refused_without_its_password(self, folder: Path) -> None:
        url = f"postgresql://srm:hunter2@127.0.0.1:{free_port()}/srm"

        result = run(serve_command(free_port()), SRM_DATABASE_URL=url, SRM_DATA_DIR=str(folder / "var"))

        assert_refused(result, "database unavailable")
        assert "hunter2" not in result.stderr


class TestDataDirectory:
    def test_a_data_directory_below_a_file_is_refused(self, folder: Path) -> None:
        (folder / "file").touch()

        result = run(serve_command(free_port()), SRM_DATA_DIR=str(folder / "file" / "var"))

        assert_refused(result, str(folder / "file" / "var"))
        assert left_of(folder) == []

    def test_a_data_directory_that_is_a_file_is_refused(self, folder: Path) -> None:
        (folder / "var").touch()

        assert_refused(run(serve_command(free_port()), SRM_DATA_DIR=str(folder / "var")), str(folder / "var"))

    @pytest.mark.parametrize("name", ["v" * 120, "it's ü, 100%"], ids=["long", "odd"])
    def test_a_data_directory_may_have_a_long_or_odd_path(self, folder: Path, name: str) -> None:
        """A Unix socket path has at most 107 bytes, and passes through a shell and libpq."""
        data_dir = folder / name / "var"
        with serving(data_dir, folder / "output", "--demo") as service:
            service.wait_until_ready()

            assert "successResponse" in service.paste()
            assert service.srm("audit").returncode == 0
            url = service.srm("db", "url").stdout.strip()
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT count(*) FROM srm.sessions").fetchone() == (1,)
                socket_dir = Path(connection.info.host)
            assert service.process.stop() == 0, service.process.text()
            assert_nothing_is_left(data_dir, service.port)
        if data_dir not in socket_dir.parents:
            socket_dir.rmdir()


def as_nobody(command: list[str], variables: dict[str, str], output: Any = subprocess.DEVNULL) -> Any:
    return subprocess.Popen(
        command,
        user="nobody",
        group=pwd.getpwnam("nobody").pw_gid,
        extra_groups=[],
        env=environment(HOME="/nonexistent", **variables),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def python() -> tuple[str, dict[str, str]]:
    """An interpreter that the user nobody can run, and the variables that it needs."""
    site_packages = sysconfig.get_path("purelib")
    path = os.pathsep.join([str(ROOT), site_packages])
    same_version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter, variables in (
        (sys.executable, {}),
        (shutil.which(same_version, path="/usr/local/bin:/usr/bin"), {"PYTHONPATH": path}),
    ):
        with suppress(OSError):
            if interpreter and not as_nobody([interpreter, "-c", "import srm.cli.main"], variables).wait(30):
                return interpreter, variables
    pytest.skip("the user nobody cannot run this Python: its folder is closed to others")


@as_root
class TestOrdinaryUser:
    """Root may write everywhere and runs the server as another user. An ordinary user does neither."""

    def test_an_ordinary_user_can_run_everything(self, folder: Path, python: tuple[str, dict[str, str]]) -> None:
        interpreter, variables = python
        data_dir, port = folder / "var", free_port()
        data_dir.mkdir()
        shutil.chown(data_dir, "nobody")
        command = [interpreter, *serve_command(port, "--demo")[1:]]

        with (folder / "output").open("wb") as output:
            popen = as_nobody(command, {**variables, "SRM_DATA_DIR": str(data_dir)}, output)
        service = Service(Process(popen, folder / "output"), port, data_dir)
        try:
            service.wait_until_ready()
            users = {process.username() for process in left_of(data_dir)}
            assert "successResponse" in service.paste()
            assert service.process.stop() == 0, service.process.text()
            assert_nothing_is_left(data_dir, port)
        finally:
            for process in left_of(data_dir):
                process.kill()
            popen.wait()

        assert users == {"nobody"}
        assert (data_dir / "token_secret").stat().st_mode & 0o777 == 0o600

    def test_a_data_directory_without_write_permission_is_refused(
        self, folder: Path, python: tuple[str, dict[str, str]]
    ) -> None:
        interpreter, variables = python
        command = [interpreter, *serve_command(free_port())[1:]]

        with (folder / "output").open("wb") as output:
            popen = as_nobody(command, {**variables, "SRM_DATA_DIR": str(folder / "var")}, output)

        assert popen.wait(30) == 1
        assert_one_line((folder / "output").read_text(), str(folder / "var"), "Permission denied")
