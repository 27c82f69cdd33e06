"""make installs what is locked, and says what is missing on a host."""

import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT

PIP = """#!/bin/sh
echo "$*" >>{log}
case "$*" in *{failing}*) echo "{error}" >&2; echo noise >&2; exit 1;; esac
"""


@dataclass
class Installed:
    """Result of make with a stub of pip, and the arguments of each call of pip."""

    result: subprocess.CompletedProcess[str]
    pip: list[list[str]]
    venv: Path


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Without the flags and variables of the make that runs the tests.
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES", "PYTHON")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True)


def install(folder: Path, target: str, failing: str = "nothing", error: str = "") -> Installed:
    venv, log = folder / "venv", folder / "log"
    (venv / "bin").mkdir(parents=True)
    (venv / "pip").touch()
    (venv / "bin" / "pip").write_text(PIP.format(log=log, failing=failing, error=error))
    (venv / "bin" / "pip").chmod(stat.S_IRWXU)
    result = make(f"VENV={venv}", f"{venv}/{target}")
    return Installed(result, [line.split() for line in log.read_text().splitlines()], venv)


@pytest.mark.parametrize("target", ["run", "dev"])
def test_make_installs_locked_packages_only(tmp_path: Path, target: str) -> None:
    installed = install(tmp_path, target)

    assert installed.result.returncode == 0, installed.result.stderr
    everything, parser, srm = installed.pip
    assert {"--require-hashes", "--only-binary", f"requirements/{target}.txt"} <= set(everything)
    assert {"--require-hashes", "--no-deps", "--no-build-isolation", "requirements/fast.txt"} <= set(parser)
    assert {"--no-deps", "--no-build-isolation", "--editable", "."} <= set(srm)
    assert installed.result.stdout.count("parser") == 0
    assert (installed.venv / target).exists()


def test_srm_is_installed_without_the_parser_in_c_where_pip_cannot_compile_it(tmp_path: Path) -> None:
    installed = install(tmp_path, "run", failing="fast.txt", error="error: [Errno 2] No such file: 'gcc'")

    assert installed.result.returncode == 0, installed.result.stderr
    assert installed.pip[-1][-1] == "."
    assert (installed.venv / "run").exists()
    said = installed.result.stdout + installed.result.stderr
    assert "parser in C is not installed" in said
    assert said.count("error: [Errno 2] No such file: 'gcc'") == 1
    assert "noise" not in said
    assert "apt-get install gcc python3-dev" in said


@pytest.mark.parametrize("failing", ["run.txt", "--editable"])
def test_any_other_failure_of_pip_is_shown_once_and_stops_make(tmp_path: Path, failing: str) -> None:
    installed = install(tmp_path, "run", failing=failing, error="ERROR: Connection refused")

    assert installed.result.returncode != 0
    assert (installed.result.stdout + installed.result.stderr).count("ERROR: Connection refused") == 1
    assert failing in " ".join(installed.pip[-1])
    assert not (installed.venv / "run").exists()


def a_python(folder: Path, body: str) -> str:
    """Write a shell script that stands in for Python; return its path."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{body}\nexec {sys.executable} "$@"\n')
    path.chmod(stat.S_IRWXU)
    return str(path)


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    python = a_python(tmp_path, "exec " + sys.executable + ' -c "import sys; sys.version_info = (3, 10); $2"')

    result = make(f"VENV={tmp_path}/venv", f"PYTHON={python}", f"{tmp_path}/venv/pip")

    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_debian_without_python3_venv_is_told_what_to_install(tmp_path: Path) -> None:
    """Without python3-venv, Debian's Python has no ensurepip."""
    python = a_python(tmp_path, 'case "$*" in *ensurepip*) exit 1;; esac')

    result = make(f"VENV={tmp_path}/venv", f"PYTHON={python}", f"{tmp_path}/venv/pip")

    assert result.returncode != 0
    assert "apt-get install python3-venv" in result.stdout
    assert not (tmp_path / "venv").exists()


def test_another_python_than_that_of_the_virtual_environment_is_refused(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pip").touch()
    (venv / "bin" / "python").symlink_to(sys.executable)
    python = a_python(tmp_path, 'case "$*" in -V) echo "Python 3.99.0"; exit;; esac')

    refused = make(f"VENV={venv}", f"PYTHON={python}", "python-of-venv")
    taken = make(f"VENV={venv}", f"PYTHON={sys.executable}", "python-of-venv")

    assert refused.returncode != 0
    assert "PYTHON=" in refused.stdout
    assert "Python 3.99.0" in refused.stdout
    assert "make clean" in refused.stdout
    assert taken.returncode == 0, taken.stdout


def test_make_test_passes_a_file_and_a_keyword_to_pytest() -> None:
    wanted = make("--dry-run", "test", "T=tests/api/test_set_up.py", "K=two at once").stdout

    assert 'pytest tests/api/test_set_up.py -k "two at once"' in wanted
    assert "alone" not in wanted


def test_make_help_lists_every_target_that_people_run() -> None:
    targets = {line.split()[1] for line in make("help").stdout.splitlines()}

    assert {"run", "test", "test-latest", "test-python", "lint", "format", "lock", "clean"} <= targets
