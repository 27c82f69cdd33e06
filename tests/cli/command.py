"""Runs the `srm` command as an operator does: a process of its own, judged by what it prints and its exit code."""

import subprocess
from pathlib import Path

from tests.support import ROOT, environment, python_m

Result = subprocess.CompletedProcess[str]


def run(command: list[str], cwd: Path = ROOT, **variables: str) -> Result:
    """Any command, with no SRM_… variables but these."""
    return subprocess.run(
        command, env=environment(**variables), cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )


def srm(*arguments: str, cwd: Path = ROOT, **variables: str) -> Result:
    """`srm …`."""
    return run(python_m("srm.cli", *arguments), cwd, **variables)


def assert_refused(result: Result, *words: str) -> None:
    """Exit code 1, one line on standard error that has the words, and nothing else."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    assert_one_line(result.stderr, *words)


def assert_one_line(text: str, *words: str) -> None:
    """What an operator can mend is said in one line, and without a stack trace."""
    assert len(text.splitlines()) == 1, text
    assert text.startswith("srm: ")
    for word in words:
        assert word in text
