"""What `make` installs, where there is a C compiler and where there is none."""

import stat
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

PIP = """#!/bin/sh
echo "$*" >>{log}
case "$*" in *fast*) exit {exit_code};; esac
"""


@pytest.mark.parametrize(("exit_code", "extras"), [(0, [".[embedded,fast]"]), (1, [".[embedded,fast]", ".[embedded]"])])
def test_it_compiles_the_parser_where_it_can(tmp_path: Path, exit_code: int, extras: list[str]) -> None:
    venv, log = tmp_path / "venv", tmp_path / "log"
    (venv / "bin").mkdir(parents=True)
    (venv / "pip").touch()
    (venv / "bin" / "pip").write_text(PIP.format(log=log, exit_code=exit_code))
    (venv / "bin" / "pip").chmod(stat.S_IRWXU)

    result = subprocess.run(["make", f"VENV={venv}", f"{venv}/run"], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert [line.split()[-1] for line in log.read_text().splitlines()] == extras
    assert (venv / "run").exists()
    assert ("no C compiler?" in result.stdout) is (exit_code != 0)
