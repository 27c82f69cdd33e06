"""deploy/systemd: the units are right, shut in, and let SRM do all that it does."""

import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest

from srm.cli import NICENESS
from srm.database import Database
from srm.gunicorn_conf import graceful_timeout
from tests import tools
from tests.deploy.service import DEPLOY, instance
from tests.support import (
    ROOT,
    SECRET,
    SETUP,
    Factory,
    free_port,
    issue_token,
    python_m,
    running,
    session_row,
    wait_until,
)

SERVICES = ["srm-api.service", "srm-reaper.service"]
UNITS = [*SERVICES, "srm-api.socket"]
MOST_EXPOSED = 1.5
"""Of 10; below 2 systemd calls a service well protected. The database has to be reached over the network."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as shipped, but for where the programs are."""
    for path in (DEPLOY / "systemd").rglob("*.*"):
        if path.is_file():
            target = tmp_path / path.relative_to(DEPLOY / "systemd")
            target.parent.mkdir(exist_ok=True)
            target.write_text(path.read_text().replace("/opt/srm/bin", str(Path(sys.executable).parent)))
    return tmp_path


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}
    return subprocess.run(
        [tools.need("systemd-analyze"), *arguments], env=environment, cwd=units, capture_output=True, text=True
    )


def setting(unit: str, name: str) -> list[str]:
    """All values of a setting in a unit as shipped."""
    return re.findall(rf"^{name}=(.*)$", (DEPLOY / "systemd" / unit).read_text(), re.MULTILINE)


def test_systemd_finds_nothing_wrong(units: Path) -> None:
    result = analyze(units, "verify", "--man=no", *(f"./{unit}" for unit in UNITS))

    assert (result.returncode, result.stderr) == (0, "")


def test_nor_with_the_port_of_the_readme_for_several_hosts(units: Path) -> None:
    (drop_in,) = re.findall(r"^(\[Socket\]\n.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (units / "srm-api.socket.d").mkdir()
    (units / "srm-api.socket.d" / "override.conf").write_text(drop_in)

    result = analyze(units, "verify", "--man=no", *(f"./{unit}" for unit in UNITS))

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("service", SERVICES)
def test_it_is_shut_in(units: Path, service: str) -> None:
    result = analyze(units, "security", "--offline=true", f"--threshold={MOST_EXPOSED * 10:.0f}", f"./{service}")

    assert result.returncode == 0, result.stdout
    assert float(re.findall(r"Overall exposure level.*: ([0-9.]+)", result.stdout)[0]) <= MOST_EXPOSED


def test_systemd_waits_longer_than_gunicorn() -> None:
    (seconds,) = setting("srm-api.service", "TimeoutStopSec")

    assert int(seconds) > graceful_timeout


def test_secrets_are_in_a_file_alone() -> None:
    for path in (DEPLOY / "systemd").rglob("*.service"):
        assert setting(path.name, "EnvironmentFile") == ["/etc/srm/srm.env"]
        assert not re.search("SECRET|DATABASE_URL|postgresql:", path.read_text())


class TestSandbox:
    """What it forbids is never asked for: by strace, since systemd itself runs in few of the places where tests do."""

    def test_of_the_api(self, url: str, factory: Factory, tmp_path: Path) -> None:
        factory.account("a")
        bind = f"127.0.0.1:{free_port()}"
        headers = {"Client-Token": issue_token("a", "tv")}
        with instance(url, tmp_path / "log", bind, through=traced(tmp_path)) as process:
            with httpx.Client(base_url=f"http://{bind}", headers=headers, timeout=20) as client:
                session = client.post("/srm/v1/sessions", json=SETUP).json()["successResponse"]["sessionId"]
                for method, path in (("PUT", f"/srm/v1/sessions/{session}"), ("GET", "/metrics"), ("PUT", "/x")):
                    client.request(method, path)
            gunicorn = psutil.Process(process.popen.pid).children()[0]
            gunicorn.terminate()
            gunicorn.wait(30)

        assert_bearable(tmp_path, at_least={"accept4", "recvfrom", "sendto", "clone3"})

    @pytest.fixture
    def lapsed(self, factory: Factory) -> UUID:
        factory.account("a")
        return factory.session(silent_for=60)

    def test_of_the_reaper(self, url: str, database: Database, lapsed: UUID, tmp_path: Path) -> None:
        (niceness,) = setting("srm-reaper.service", "Nice")
        self.reap(url, database, lapsed, tmp_path, ["nice", "-n", niceness, *traced(tmp_path)])

        assert int(niceness) >= NICENESS
        assert_bearable(tmp_path, at_least={"connect", "sendto"})

    def test_the_reaper_works_where_it_may_not_stand_back(
        self, url: str, database: Database, lapsed: UUID, tmp_path: Path
    ) -> None:
        refuse = ["-e", "inject=setpriority:error=EPERM"]
        self.reap(url, database, lapsed, tmp_path, [*traced(tmp_path), *refuse])

        assert "(INJECTED)" in (tmp_path / "trace").read_text()

    def reap(self, url: str, database: Database, lapsed: UUID, folder: Path, through: list[str]) -> None:
        """Run the reaper through a command until it has ended the session."""
        variables = {"SRM_DATABASE_URL": url, "SRM_TOKEN_SECRET": SECRET, "SRM_REAPER_INTERVAL_SECONDS": "0.1"}
        command = [*through, *python_m("srm.cli", "reaper")]
        with running(command, folder / "log", variables=variables) as process:
            wait_until(lambda: session_row(database, lapsed).end_reason == "expired")
            reaper = psutil.Process(process.popen.pid).children()[0]
            reaper.terminate()
            reaper.wait(30)


def traced(folder: Path) -> list[str]:
    """What to put before a command so that all its system calls are on record."""
    return [tools.need("strace"), "-f", "-qq", "-o", str(folder / "trace")]


def assert_bearable(folder: Path, at_least: set[str]) -> None:
    """No call that SystemCallFilter, MemoryDenyWriteExecute or RestrictAddressFamilies forbid."""
    lines = (folder / "trace").read_text().splitlines()
    calls = {found[1] for line in lines if (found := re.match(r"\d+ +(\w+)\(", line))}
    sockets = {found[1] for line in lines if (found := re.search(r"socket\((AF_\w+)", line))}
    allowed = allowed_calls()

    assert at_least <= calls
    assert calls - allowed == set()
    assert sockets <= set(setting("srm-.service.d/sandbox.conf", "RestrictAddressFamilies")[0].split())
    assert [line for line in lines if re.search(r"m(map|protect)\(.*PROT_WRITE\|PROT_EXEC", line)] == []
    assert [line for line in lines if re.search(r"mprotect\(.*PROT_EXEC", line)] == []


def allowed_calls() -> set[str]:
    """What SystemCallFilter leaves, by systemd's own lists."""
    output = subprocess.run([tools.need("systemd-analyze"), "syscall-filter"], capture_output=True, text=True).stdout
    sets: dict[str, list[str]] = {}
    for line in output.splitlines():
        word = line.strip()
        if line.startswith("@"):
            name = word
            sets[name] = []
        elif word and not word.startswith("#"):
            sets[name].append(word)

    def calls(name: str) -> set[str]:
        return {name} if name not in sets else set().union(*(calls(part) for part in sets[name]))

    first, second = setting("srm-.service.d/sandbox.conf", "SystemCallFilter")
    forbidden = set().union(*(calls(name) for name in second.removeprefix("~").split()))
    return set().union(*(calls(name) for name in first.split())) - forbidden
