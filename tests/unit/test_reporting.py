"""tests/reporting.py: lines of progress, and the failure of skipped tests on CI."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT, environment, python_m

SKIPPED = """
import pytest

def test_it_skips():
    pytest.skip("there is no moon tonight")

@pytest.mark.xfail
def test_it_is_expected_to_fail():
    assert False
"""
OTHER = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_it_passes(number):
    pass

def test_it_fails():
    assert False

@pytest.mark.long(100)
def test_it_is_long():
    pass

@pytest.mark.long(30)
def test_it_is_long_too():
    pass
"""


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a folder in another pytest."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra\n")
    command = python_m("pytest", "-p", "tests.reporting", "-p", "no:cacheprovider", *arguments, str(folder))
    clean = {name: value for name, value in environment().items() if name not in ("CI", "PYTEST_ADDOPTS")}
    return subprocess.run(command, cwd=ROOT, env={**clean, **variables}, capture_output=True, text=True, check=False)


def test_a_skipped_test_fails_on_ci_alone(tmp_path: Path) -> None:
    (tmp_path / "test_skipped.py").write_text(SKIPPED)

    here, on_ci = run(tmp_path), run(tmp_path, CI="true")

    assert here.returncode == 0, here.stdout
    assert "1 skipped, 1 xfailed" in here.stdout
    assert on_ci.returncode == 1, on_ci.stdout
    assert "1 failed, 1 xfailed" in on_ci.stdout
    assert "there is no moon tonight (with CI set, no test may be skipped)" in on_ci.stdout


@pytest.mark.parametrize("processes", ["0", "1"])
def test_each_finished_file_and_each_failure_is_a_line_with_the_progress(tmp_path: Path, processes: str) -> None:
    (tmp_path / "test_other.py").write_text(OTHER)
    (tmp_path / "test_skipped.py").write_text(SKIPPED)

    output = run(tmp_path, "--numprocesses", processes).stdout

    assert re.search(r"^0:\d\d +\d of 8  .*test_other\.py::test_it_fails FAILED$", output, re.MULTILINE), output
    assert re.search(r"^0:\d\d +\d of 8  .*test_other\.py: 1 failed, 5 passed in \d\.\d s$", output, re.MULTILINE)
    assert re.search(r"^0:\d\d +\d of 8  .*test_skipped\.py: 2 skipped in \d\.\d s$", output, re.MULTILINE)
    assert re.search(r"^FAILED .*test_other\.py::test_it_fails", output, re.MULTILINE)


def test_the_time_of_the_long_tests_is_printed(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(OTHER)

    output = run(tmp_path, "-m", "long").stdout

    assert "2 long tests take about 2:10." in output
