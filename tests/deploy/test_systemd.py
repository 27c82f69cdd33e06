"""deploy/systemd: systemd accepts the units, their sandbox leaves little exposed, and SRM works inside it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest

from srm.cli.common import NICENESS
from srm.db.database import Database
from srm.serve.gunicorn_conf import graceful_timeout
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
"""Points of `systemd-analyze security`, from 0 to 10; below 2 it calls a service well protected. 0 is out of reach: the
service needs the network for its database."""


STANDARD_TARGETS = ["sysinit", "basic", "shutdown", "sockets", "network-online", "multi-user"]
"""Targets of systemd that SRM's units name, or that every service depends on (systemd.service(5))."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Folder with the shipped units and empty standard targets.

    The units name programs in this virtual environment instead of /opt/srm. The targets are empty so that
    systemd-analyze follows no dependency into the units of this host: it would complain of theirs.
    """
    for path in (DEPLOY / "systemd").rglob("*.*"):
        if path.is_file():
            target = tmp_path / path.relative_to(DEPLOY / "systemd")
            target.parent.mkdir(exist_ok=True)
            target.write_text(path.read_text().replace("/opt/srm/bin", str(Path(sys.executable).parent)))
    for name in STANDARD_TARGETS:
        (tmp_path / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    return tmp_path


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze with that folder as the only one that has units."""
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": str(units)}
    return subprocess.run(
        [tools.need("systemd-analyze"), *arguments], env=environment, cwd=units, capture_output=True, text=True
    )


def verify(units: Path) -> tuple[int, str]:
    """Exit code and complaints of `systemd-analyze verify` about SRM's units."""
    result = analyze(units, "verify", "--man=no", *(f"./{unit}" for unit in UNITS))
    return result.returncode, result.stderr


def setting(unit: str, name: str) -> list[str]:
    """All values of a setting in a unit as shipped."""
    return re.findall(rf"^{name}=(.*)$", (DEPLOY / "systemd" / unit).read_text(), re.MULTILINE)


def test_systemd_accepts_the_shipped_units(units: Path) -> None:
    assert verify(units) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_complains_of_a_deprecated_setting_in_a_unit_of_srm(units: Path, unit: str) -> None:
    section = "Socket" if unit.endswith(".socket") else "Service"
    with (units / unit).open("a") as file:
        file.write(f"\n[{section}]\nKillMode=none\n")

    _, complaints = verify(units)

    assert f"{unit}" in complaints
    assert "KillMode=none" in complaints


def test_systemd_accepts_the_extra_port_for_several_hosts(units: Path) -> None:
    page = (ROOT / "docs" / "production.md").read_text()
    (drop_in,) = re.findall(r"^(\[Socket\]\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    (units / "srm-api.socket.d").mkdir()
    (units / "srm-api.socket.d" / "override.conf").write_text(drop_in)

    assert verify(units) == (0, "")


@pytest.mark.parametrize("service", SERVICES)
def test_the_sandbox_of_each_service_leaves_little_exposed(units: Path, service: str) -> None:
    result = analyze(units, "security", "--offline=true", f"--threshold={MOST_EXPOSED * 10:.0f}", f"./{service}")

    assert result.returncode == 0, result.stdout
    assert float(re.findall(r"Overall exposure level.*: ([0-9.]+)", result.stdout)[0]) <= MOST_EXPOSED


def test_systemd_waits_longer_for_the_stop_than_gunicorn_takes() -> None:
    (seconds,) = setting("srm-api.service", "TimeoutStopSec")

    assert int(seconds) > graceful_timeout


def test_units_name_the_file_of_secrets_and_hold_none() -> None:
    for path in (DEPLOY / "systemd").rglob("*.service"):
        assert setting(path.name, "EnvironmentFile") == ["/etc/srm/srm.env"]
        assert not re.search("SECRET|DATABASE_URL|postgresql:", path.read_text())


class TestSandbox:
    """SRM makes no system call that its sandbox forbids.

    strace shows the calls: systemd itself runs in few of the places where tests do.
    """

    def test_the_api_makes_no_forbidden_call(self, url: str, factory: Factory, tmp_path: Path) -> None:
        factory.account("a")
        bind = f"127.0.0.1:{free_port()}"
        headers = {"Client-Token": issue_token("a", "tv")}
        with instance(url, tmp_path / "log", bind, through=traced(tmp_path)) as process:
            with httpx.Client(verify=False, base_url=f"http://{bind}", headers=headers, timeout=20) as client:
                session = client.post("/srm/v1/sessions", json=SETUP).json()["successResponse"]["sessionId"]
                for method, path in (("PUT", f"/srm/v1/sessions/{session}"), ("GET", "/metrics"), ("PUT", "/x")):
                    client.request(method, path)
            gunicorn = psutil.Process(process.popen.pid).children()[0]
            gunicorn.terminate()
            gunicorn.wait(30)

        assert_allowed(tmp_path, at_least={"accept4", "recvfrom", "sendto"})

    @pytest.fixture
    def lapsed(self, factory: Factory) -> UUID:
        factory.account("a")
        return factory.session(silent_for=60)

    def test_the_reaper_makes_no_forbidden_call(
        self, url: str, database: Database, lapsed: UUID, tmp_path: Path
    ) -> None:
        (niceness,) = setting("srm-reaper.service", "Nice")
        self.reap(url, database, lapsed, tmp_path, ["nice", "-n", niceness, *traced(tmp_path)])

        assert int(niceness) >= NICENESS
        assert_allowed(tmp_path, at_least={"connect", "sendto"})

    def test_the_reaper_works_where_it_may_not_lower_its_priority(
        self, url: str, database: Database, lapsed: UUID, tmp_path: Path
    ) -> None:
        refuse = ["-e", "inject=setpriority:error=EPERM"]
        urgent = ["nice", "-n", "-19"]  # else the reaper of a run that is nice itself asks for nothing
        self.reap(url, database, lapsed, tmp_path, [*urgent, *traced(tmp_path), *refuse])

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
    """Words before a command that write all its system calls to a file `trace` in that folder."""
    return [tools.need("strace"), "-f", "-qq", "-o", str(folder / "trace")]


def assert_allowed(folder: Path, at_least: set[str]) -> None:
    """The trace has no call that SystemCallFilter, MemoryDenyWriteExecute or RestrictAddressFamilies forbid."""
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
    """System calls that SystemCallFilter allows, by systemd's own lists."""
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
