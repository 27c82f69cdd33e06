"""`srm db shell`: psql on the database in use."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from srm.cli import psql
from srm.db import embedded
from srm.errors import CommandError, StartupError
from tests.cli.command import Result, assert_refused, srm
from tests.support import ROOT, environment, python_m

PSQL = """#!{python}
import json, os, sys
print(json.dumps([sys.argv[1:], dict(os.environ), sys.stdin.read()]))
sys.exit(7)
"""
"""Tells what it was given, and fails."""


@pytest.fixture
def fake_psql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A psql that tells what it was given, in a folder on the PATH; and no embedded server."""
    path = tmp_path / "psql"
    path.write_text(PSQL.format(python=sys.executable))
    path.chmod(stat.S_IRWXU)
    return path


def shell(url: str, *arguments: str, script: str = "") -> Result:
    """`srm db shell` on that database, with the script as its standard input."""
    return subprocess.run(
        python_m("srm.cli", "db", "shell", *arguments),
        env=environment(SRM_DATABASE_URL=url),
        cwd=ROOT,
        input=script,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_standard_input_goes_to_psql(url: str) -> None:
    result = shell(url, script="\\set ON_ERROR_STOP\nSELECT 6 * 7 AS answer;\nSELECT content_id FROM srm.contents;\n")

    assert (result.returncode, result.stderr) == (0, "")
    assert [line.strip() for line in result.stdout.splitlines() if line.strip() in ("42", "film")] == ["42", "film"]


def test_arguments_go_to_psql(url: str) -> None:
    result = shell(url, "-Atc", "SELECT current_user, current_database()", "--", "--no-psqlrc")

    database = make_url(url).database
    assert (result.returncode, result.stdout, result.stderr) == (0, f"srm_application|{database}\n", "")


@pytest.mark.parametrize("arguments", [(), ("-f", "-")])
def test_a_statement_that_fails_ends_the_script_with_exit_code_3(url: str, arguments: tuple[str, ...]) -> None:
    result = shell(url, *arguments, script="SELECT 1 / 0;\nSELECT 'still here';\n")

    assert result.returncode == 3
    assert "division by zero" in result.stderr
    assert "still here" not in result.stdout


def test_ps_shows_no_password_while_psql_runs(url: str) -> None:
    """As another user sees it while psql runs."""
    with_password = make_url(url).set(password="hunter2").render_as_string(hide_password=False)
    with subprocess.Popen(
        python_m("srm.cli", "db", "shell", "-Atc", "SELECT 'ready'", "-c", "SELECT pg_sleep(60)"),
        env=environment(SRM_DATABASE_URL=with_password),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            shown = Path(f"/proc/{process.pid}/cmdline").read_text()
        finally:
            process.kill()
    assert "psql" in shown  # it has taken the place of srm
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("url", "variables", "others"),
    [
        (
            "postgresql://srm:p%40ss%2Fword@db.example:5433/srm?sslmode=require",
            {
                "PGUSER": "srm",
                "PGPASSWORD": "p@ss/word",
                "PGHOST": "db.example",
                "PGPORT": "5433",
                "PGDATABASE": "srm",
                "PGSSLMODE": "require",
            },
            [],
        ),
        ("postgresql+psycopg://a,b/srm", {"PGHOST": "a,b", "PGPORT": ",", "PGDATABASE": "srm"}, []),
        ("postgresql:///?service=srm", {"PGSERVICE": "srm"}, []),
        (
            "postgresql://db.example/srm?keepalives_idle=5&application_name=me",
            {"PGHOST": "db.example", "PGDATABASE": "srm", "PGAPPNAME": "me"},
            ["--dbname=keepalives_idle=5"],
        ),
    ],
)
def test_psql_gets_every_option_of_the_url(
    fake_psql: Path, url: str, variables: dict[str, str], others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed() -> Path:
        raise StartupError("no embedded server")

    def execute(program: str, command: list[str], given: dict[str, str]) -> None:
        result = subprocess.run([program, *command[1:]], env=given, input="typed", capture_output=True, text=True)
        arguments, seen, typed = json.loads(result.stdout)
        assert (program, result.returncode, typed) == (str(fake_psql), 7, "typed")
        assert arguments == ["--set=ON_ERROR_STOP=1", *others, "-c", "SELECT 1"]
        assert {name: value for name, value in seen.items() if name.startswith("PG")} == variables
        raise SystemExit

    monkeypatch.setattr(embedded, "programs", not_installed)
    monkeypatch.setattr(os, "execve", execute)
    monkeypatch.setenv("PATH", str(fake_psql.parent))
    with pytest.raises(SystemExit):
        psql.run(url, ["-c", "SELECT 1"])


def test_a_missing_psql_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def not_installed() -> Path:
        raise StartupError("no embedded server")

    monkeypatch.setattr(embedded, "programs", not_installed)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CommandError, match="no psql here"):
        psql.run("postgresql:///srm", [])


def test_a_secret_that_ps_would_show_is_refused(call: Callable[..., Result]) -> None:
    result = call("db", "shell", SRM_DATABASE_URL="postgresql://db.example/srm?sslpassword=hunter2")

    assert_refused(result, "sslpassword")
    assert "hunter2" not in result.stderr


def test_the_shell_does_not_start_the_embedded_database(tmp_path: Path) -> None:
    assert_refused(srm("db", "shell", cwd=tmp_path), "embedded", "srm serve")
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_database_is_an_error_of_psql() -> None:
    result = shell("postgresql://srm:hunter2@127.0.0.1:1/srm", "-c", "SELECT 1")

    assert result.returncode == 2
    assert "127.0.0.1" in result.stderr
    assert "hunter2" not in result.stderr
