"""What other tests run is there, or is installed, or they fail with a line that helps."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tools


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What one test has found is not told to the next, nor to those of other files."""
    tools.need.cache_clear()
    yield
    tools.need.cache_clear()


def test_it_finds_programs_that_are_not_on_the_path_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    assert os.access(tools.need("nginx"), os.X_OK)


@pytest.mark.skipif(os.geteuid() != 0, reason="sudo takes a path of its own, and so not this apt-get")
def test_no_daemon_is_started_by_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """invoke-rc.d(8) asks policy-rc.d, which is there, and answers 101: forbidden; afterwards all is as before."""
    policy = Path("/usr/sbin/policy-rc.d")
    was_there = policy.exists()
    (tmp_path / "apt-get").write_text(f"#!/bin/sh\n{policy} nginx start; echo $? >{tmp_path}/answer\n")
    (tmp_path / "apt-get").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(tools.PACKAGES, "no-such-program", "srm-no-such-package")

    with pytest.raises(pytest.fail.Exception):
        tools.need("no-such-program")

    assert (tmp_path / "answer").read_text() == "101\n"
    assert policy.exists() is was_there


def test_it_fails_with_one_line_where_nothing_can_be_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sudo").write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    (tmp_path / "sudo").chmod(stat.S_IRWXU)
    monkeypatch.setitem(tools.PACKAGES, "no-such-program", "srm-no-such-package")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(pytest.fail.Exception) as failure:
        tools.need("no-such-program")

    assert "apt-get install srm-no-such-package (sudo: a password is required)" in str(failure.value)
    assert "\n" not in str(failure.value)
