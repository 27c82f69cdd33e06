"""Runs the `srm` command as an operator does: as a process, judged by its output and exit code."""

import subprocess
from pathlib import Path

from tests.support import ROOT, environment, python_m

Result = subprocess.CompletedProcess[str]


def run(command: list[str], cwd: Path = ROOT, **variables: str) -> Result:
    """Run a command with these variables. SRM_… variables of the tests are left out."""
    return subprocess.run(
        command, env=environment(**variables), cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )


def srm(*arguments: str, cwd: Path = ROOT, **variables: str) -> Result:
    """Run `srm` with these arguments."""
    return run(python_m("srm.cli", *arguments), cwd, **variables)


def assert_refused(result: Result, *words: str) -> None:
    """Assert exit code 1, no standard output, and one line on standard error that has the words."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    assert_one_line(result.stderr, *words)


def assert_one_line(text: str, *words: str) -> None:
    """Assert that the text is one line that begins with `srm: ` and has the words."""
    assert len(text.splitlines()) == 1, text
    assert text.startswith("srm: ")
    for word in words:
        assert word in text
