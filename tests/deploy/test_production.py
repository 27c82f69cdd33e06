"""docs/production.md: its install blocks bring up SRM behind nginx, and its upgrade block may be pasted twice.

The blocks run as they stand, on a host that tests/deploy/host.py plays: it says what is real and what is a stub.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from sqlalchemy.engine import make_url

from srm.db.connection import conninfo
from srm.db.embedded import EmbeddedServer
from tests import tools
from tests.deploy.service import make_certificate
from tests.support import ROOT, python_m, wait_until

PAGE = ROOT / "docs" / "production.md"
BLOCK = re.compile(r"^```sh test=tests/deploy/test_production\.py\n(.*?)^```", re.MULTILINE | re.DOTALL)
TYPED = {"srm_owner": "ownerpassword", "srm_application": "applicationpassword"}
PROMPT = re.compile(r'(?:(?:Password of |new password for user ")(\w+)"?|Enter it again): $')
SECONDS = 120


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A PostgreSQL with a superuser `postgres`, where the roles of SRM need their passwords."""
    with TemporaryDirectory(prefix="srm-production-") as name, EmbeddedServer(Path(name)) as server:
        rules = "local all srm trust\nlocal all postgres trust\nlocal all all scram-sha-256\n"
        (Path(name) / "postgres" / "pg_hba.conf").write_text(rules)
        with psycopg.connect(conninfo(make_url(server.url)).replace("/srm?", "/postgres?"), autocommit=True) as db:
            db.execute("DROP DATABASE srm")
            db.execute("CREATE ROLE postgres SUPERUSER LOGIN")
            db.execute("SELECT pg_reload_conf()")
        yield server


@dataclass
class Installed:
    """The host after the blocks: output of the terminal, block by block, and the calls of the stubs."""

    shown: list[str]
    asked: list[str]
    folder: Path


def type_passwords(terminal: int, process: subprocess.Popen[bytes]) -> str:
    """Answer each question for a password by its name; return the output of the terminal until the process ends."""
    shown = ""
    answered_to = 0
    who = ""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # EIO: everybody has closed the terminal
            break
        shown += data.decode(errors="replace").replace("\r\n", "\n")
        if asked := PROMPT.search(shown, answered_to):
            answered_to = len(shown)
            who = asked[1] or who
            os.write(terminal, f"{TYPED[who]}\n".encode())
    process.wait(10)
    return shown


@pytest.fixture(scope="module")
def installed(server: EmbeddedServer) -> Iterator[Installed]:
    """Each install block once, in order, then the block for a new version twice."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"]).returncode:
        pytest.skip("needs root and the right to make namespaces")
    for program in ("curl", "nginx", "openssl"):
        tools.need(program)
    blocks = BLOCK.findall(PAGE.read_text())
    *install, upgrade = blocks
    with TemporaryDirectory(prefix="srm-host-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        checkout = folder / "checkout"
        checkout.mkdir()
        for path in ("deploy", "requirements", "migrations", "srm", "setup.cfg", "pyproject.toml"):
            (checkout / path).symlink_to(ROOT / path)
        make_certificate(checkout)
        look = f"cp -r /etc/srm /etc/nginx/srm {folder}; cp -r /run/stub {folder}/logs\n"
        script = "".join(f"{block}\necho; echo =====\n" for block in (*install, upgrade, upgrade))
        (folder / "script.sh").write_text(f"set -euo pipefail\ntrap '{look}' EXIT\n{script}")
        socket_folder = make_url(server.url).query["host"]
        namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [*namespaces, *python_m("tests.deploy.host", str(folder), str(socket_folder))],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        try:
            shown = type_passwords(ours, process)
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        assert process.returncode == 0, shown
        yield Installed(shown.split("=====\n"), (folder / "stubs.log").read_text().splitlines(), folder)


def shown_by(installed: Installed, command: str) -> str:
    """Return the output of the terminal for the block that has this command."""
    (at,) = (at for at, block in enumerate(BLOCK.findall(PAGE.read_text())) if command in block)
    return installed.shown[at]


def test_the_service_answers_the_world_and_operators(installed: Installed) -> None:
    answers = shown_by(installed, "curl -s https://srm.example")

    assert '"errorCode": "SRM-0002"' in answers
    assert '"status":"ready"' in answers.replace(" ", "")


def test_the_migrations_page_and_the_production_page_upgrade_with_one_command() -> None:
    (block,) = BLOCK.findall((ROOT / "docs" / "migrations.md").read_text())

    assert block in BLOCK.findall(PAGE.read_text())


def test_the_first_operator_gets_a_key(installed: Installed) -> None:
    assert re.search(r"^root\.[\w-]{43}$", shown_by(installed, "srm operator add root"), re.MULTILINE)


def test_secrets_are_readable_by_root_alone_and_survive_the_upgrade(installed: Installed) -> None:
    path = installed.folder / "srm" / "srm.env"

    assert path.stat().st_mode & 0o777 == 0o600
    url, secret = path.read_text().splitlines()
    assert url == "SRM_DATABASE_URL=postgresql://srm_application:applicationpassword@db.example/srm"
    assert re.fullmatch(r"SRM_TOKEN_SECRET=[0-9a-f]{64}", secret)


def test_the_terminal_never_shows_a_password(installed: Installed) -> None:
    for password in TYPED.values():
        assert password not in "".join(installed.shown)


def test_packages_are_installed_from_the_lock_alone(installed: Installed) -> None:
    asked = [line for line in installed.asked if line.startswith("pip ")]

    assert len(asked) == 3 * 3
    assert all("--require-hashes" in line or "--no-deps" in line for line in asked)


def test_the_reaper_works_as_the_application(installed: Installed, server: EmbeddedServer) -> None:
    with psycopg.connect(conninfo(make_url(server.url))) as db:
        wait_until(lambda: db.execute("SELECT ran_at, failure FROM srm.reaper_state").fetchone()[1] is None)  # type: ignore[index]
        owners = db.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'srm'").fetchall()

    assert owners == [("srm_owner",)]
