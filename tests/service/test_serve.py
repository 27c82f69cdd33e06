"""`srm serve`: starts everything with one command, and ends everything with one signal."""

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

import httpx
import jwt
import psutil
import psycopg
import pytest

from srm.db import schema
from srm.db.embedded import EmbeddedServer
from tests.cli.command import Result, assert_one_line, assert_refused, run, srm
from tests.support import ROOT, SECRET, Process, environment, free_port, python_m, running, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and Unix sockets")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

STOP_SECONDS = 5
"""In which a service stops that has nothing to do."""


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
        """Paste the line that it printed into a shell; the answer."""
        wait_until(self.curl_lines)
        (line,) = self.curl_lines()
        answer: dict[str, Any] = json.loads(run(["bash", "-c", line]).stdout)
        return answer

    def srm(self, *arguments: str) -> Result:
        """The command beside the service, with the same data directory."""
        return srm(*arguments, SRM_DATA_DIR=str(self.data_dir))


def serve_command(port: int, *options: str) -> list[str]:
    return python_m("srm.cli", "serve", "--workers", "1", "--bind", f"127.0.0.1:{port}", *options)


@contextmanager
def serving(data_dir: Path, output: Path, *options: str, variables: Mapping[str, str] = {}) -> Iterator[Service]:
    """`srm serve`, ready or not; nothing of it is left at the end."""
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
    """A folder that other users reach; those of pytest are closed, and again whenever another pytest starts."""
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
    """All processes that have to do with the data directory, but this one."""
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
    """A service that began in a folder that was not there; for tests that leave it running."""
    with open_folder() as folder, serving(folder / "new" / "var", folder / "output", "--demo") as service:
        service.wait_until_ready()
        yield service


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """A data directory as a service leaves it behind."""
    with open_folder() as folder:
        with EmbeddedServer(folder / "var") as server:
            schema.upgrade(server.url)
        yield folder / "var"


@pytest.fixture
def data_dir(stopped: Path, folder: Path) -> Path:
    """A copy of it."""
    subprocess.run(["cp", "-a", str(stopped), str(folder / "var")], check=True)
    return folder / "var"


class TestRunning:
    def test_it_prints_a_line_that_works_as_pasted(self, served: Service) -> None:
        answer = served.paste()

        assert UUID(answer["successResponse"]["sessionId"])
        assert answer["successResponse"]["timeout"] == 30

    def test_it_says_where_it_listens(self, served: Service) -> None:
        base = f"http://127.0.0.1:{served.port}"

        assert f"SRM is ready on {base}" in served.process.text()
        assert httpx.get(f"{base}/readyz").is_success

    def test_it_keeps_the_token_secret_to_itself(self, served: Service) -> None:
        path = served.data_dir / "token_secret"

        assert path.stat().st_mode & 0o777 == 0o600
        assert len(path.read_bytes().strip()) >= 32
        assert path.read_text().strip() not in served.process.text()

    def test_it_gives_the_url_of_its_database(self, served: Service) -> None:
        result = served.srm("db", "url")

        assert (result.returncode, result.stderr) == (0, "")
        with psycopg.connect(result.stdout.strip()) as connection:
            assert connection.execute("SELECT count(*) FROM srm.accounts").fetchall() == [(3,)]

    def test_it_can_be_audited(self, served: Service) -> None:
        result = served.srm("audit")

        assert (result.returncode, result.stderr) == (0, "")
        assert "clean" in result.stdout

    def test_it_takes_tokens_that_are_issued_beside_it(self, served: Service) -> None:
        result = served.srm("token", "issue", "--account", "demo-3", "--device", "demo-3-tv")

        answer = httpx.post(
            f"http://127.0.0.1:{served.port}/srm/v1/sessions",
            json={"content": {"contentID": "100001V3D", "contentType": "COD"}},
            headers={"Client-Token": result.stdout.strip()},
        )
        assert answer.json()["successResponse"].keys() == {"sessionId"}

    def test_it_goes_on_after_other_commands_have_used_its_database(self, served: Service) -> None:
        for arguments in (["demo", "load"], ["db", "upgrade"]):
            assert served.srm(*arguments).returncode == 0

        assert httpx.get(f"http://127.0.0.1:{served.port}/readyz").is_success

    def test_it_reaps(self, served: Service) -> None:
        assert "session_history_" in served.process.text()

    def test_it_keeps_another_run_off_its_data_directory(self, served: Service) -> None:
        port = free_port()

        result = run(serve_command(port), SRM_DATA_DIR=str(served.data_dir))

        assert_refused(result, str(served.data_dir), "in use")
        assert httpx.get(f"http://127.0.0.1:{served.port}/readyz").is_success

    def test_it_refuses_a_port_that_is_in_use(self, served: Service, folder: Path) -> None:
        result = run(serve_command(served.port), SRM_DATA_DIR=str(folder / "var"))

        assert_refused(result, f"127.0.0.1:{served.port}", "SRM_BIND")
        assert left_of(folder) == []


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_it_stops_all_that_it_started(self, data_dir: Path, folder: Path, number: int) -> None:
        """SIGINT as by Ctrl-C: to the whole process group of the terminal."""
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
            assert took < STOP_SECONDS  # Ctrl-C is not followed by a long silence

    def test_it_starts_again_with_all_that_was(self, data_dir: Path, folder: Path) -> None:
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
    def test_it_ends_everything_when_it_is_stopped_while_it_starts(self, folder: Path, moment: str) -> None:
        data_dir = folder / "var"
        with serving(data_dir, folder / "output", "--demo") as service:
            wait_until((data_dir / moment).exists, every=0.001)

            assert service.process.stop() == 0, service.process.text()

            assert_nothing_is_left(data_dir, service.port)
            assert "Traceback" not in service.process.text()

    def test_it_starts_again_after_it_was_stopped_while_it_started(self, folder: Path) -> None:
        data_dir = folder / "var"
        with serving(data_dir, folder / "first") as service:
            wait_until((data_dir / "postgres" / "PG_VERSION").exists, every=0.001)
            service.process.stop()

        with serving(data_dir, folder / "second", "--demo") as service:
            service.wait_until_ready()
            assert "successResponse" in service.paste()


class TestExternalDatabase:
    def test_it_uses_it_and_starts_none(self, url: str, folder: Path) -> None:
        data_dir = folder / "var"
        with serving(data_dir, folder / "output", "--demo", variables={"SRM_DATABASE_URL": url}) as service:
            service.wait_until_ready()

            assert service.srm("db", "url").returncode == 1  # none is embedded
            assert [path.name for path in data_dir.iterdir()] == ["token_secret"]
            with psycopg.connect(url) as connection:
                users = connection.execute(
                    "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()"
                ).fetchall()
                accounts = connection.execute("SELECT count(*) FROM srm.accounts").fetchone()

            assert service.process.stop() == 0, service.process.text()
            assert_nothing_is_left(data_dir, service.port)

        with psycopg.connect(url) as connection:  # it is left running
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
        assert ("srm-reaper",) in users
        assert accounts == (0,)  # demo data is for the embedded one
        assert service.curl_lines() == []
        assert "srm demo load" in service.process.text()

    def test_it_shows_an_example_when_the_demo_data_is_there(self, clone: Callable[[], str], folder: Path) -> None:
        url = clone()
        assert srm("demo", "load", SRM_DATABASE_URL=url).returncode == 0
        variables = {"SRM_DATABASE_URL": url, "SRM_TOKEN_SECRET": SECRET}
        with serving(folder / "var", folder / "output", variables=variables) as service:
            service.wait_until_ready()

            assert "successResponse" in service.paste()
            assert not (folder / "var").exists()  # nothing has to be kept in it
            (line,) = service.curl_lines()
            token = shlex.split(line)[shlex.split(line).index("-H") + 1].removeprefix("Client-Token: ")
            assert jwt.decode(token, SECRET, algorithms=["HS256"])["accountId"] == "demo-1"

    def test_it_refuses_a_schema_that_is_behind(
        self, clone: Callable[[], str], outside: Callable[[str], str], folder: Path
    ) -> None:
        url = clone()
        with psycopg.connect(outside(url), autocommit=True) as connection:
            connection.execute("UPDATE srm.alembic_version SET version_num = '0001'")

        result = run(serve_command(free_port()), SRM_DATABASE_URL=url, SRM_DATA_DIR=str(folder / "var"))

        assert_refused(result, "0001", schema.head_revision(), "srm db upgrade")
        assert left_of(folder) == []

    def test_it_refuses_a_database_that_is_out_of_reach(self, folder: Path) -> None:
        url = f"postgresql://srm:hunter2@127.0.0.1:{free_port()}/srm"

        result = run(serve_command(free_port()), SRM_DATABASE_URL=url, SRM_DATA_DIR=str(folder / "var"))

        assert_refused(result, "database unavailable")
        assert "hunter2" not in result.stderr


class TestDataDirectory:
    def test_it_refuses_one_below_a_file(self, folder: Path) -> None:
        (folder / "file").touch()

        result = run(serve_command(free_port()), SRM_DATA_DIR=str(folder / "file" / "var"))

        assert_refused(result, str(folder / "file" / "var"))
        assert left_of(folder) == []

    def test_it_refuses_one_that_is_a_file(self, folder: Path) -> None:
        (folder / "var").touch()

        assert_refused(run(serve_command(free_port()), SRM_DATA_DIR=str(folder / "var")), str(folder / "var"))

    @pytest.mark.parametrize("name", ["v" * 120, "it's ü, 100%"], ids=["long", "odd"])
    def test_it_takes_any_path(self, folder: Path, name: str) -> None:
        """The path of a Unix socket has at most 107 bytes, and goes through a shell and through libpq."""
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
    """An interpreter that the user can run, and what it needs in its environment."""
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
    pytest.skip("nobody can run this Python: it is in a folder that is closed to others")


@as_root
class TestOrdinaryUser:
    """Root may write everywhere, and its server is another user's; for all others both are different."""

    def test_it_serves(self, folder: Path, python: tuple[str, dict[str, str]]) -> None:
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

    def test_it_refuses_a_folder_that_it_may_not_write(self, folder: Path, python: tuple[str, dict[str, str]]) -> None:
        interpreter, variables = python
        command = [interpreter, *serve_command(free_port())[1:]]

        with (folder / "output").open("wb") as output:
            popen = as_nobody(command, {**variables, "SRM_DATA_DIR": str(folder / "var")}, output)

        assert popen.wait(30) == 1
        assert_one_line((folder / "output").read_text(), str(folder / "var"), "Permission denied")
