"""tests/tools.py: a missing program is named in a skip, and only `make test-tools` installs programs."""

import os
import stat
from pathlib import Path

import pytest

from tests import tools

NO_PROGRAM = {"no-such-program": "srm-no-such-package"}


def command(path: Path, script: str) -> None:
    """Write a shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(stat.S_IRWXU)


def test_programs_in_sbin_are_found_without_it_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(tools, "PACKAGES", {"chroot": "coreutils"})

    assert tools.need("chroot") in ("/usr/sbin/chroot", "/sbin/chroot")


def test_a_missing_program_skips_the_test_and_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "PACKAGES", NO_PROGRAM)

    with pytest.raises(pytest.skip.Exception) as skipped:
        tools.need("no-such-program")

    assert str(skipped.value) == "no-such-program is not installed (srm-no-such-package): run `make test-tools`"


@pytest.mark.skipif(os.geteuid() != 0, reason="sudo has a PATH of its own, and would run the real apt-get")
def test_installing_starts_no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """invoke-rc.d(8) asks policy-rc.d, which answers 101 (forbidden) only during the installation."""
    policy = Path("/usr/sbin/policy-rc.d")
    was_there = policy.exists()
    command(tmp_path / "apt-get", f"{policy} nginx start; echo $? $* >{tmp_path}/answer")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(tools, "PACKAGES", NO_PROGRAM)

    assert tools.main() == 1

    answer = (tmp_path / "answer").read_text()
    assert answer.startswith("101 ")
    assert answer.endswith(" install --no-install-recommends srm-no-such-package\n")
    assert policy.exists() is was_there


def test_a_failed_installation_names_the_missing_programs_and_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path / "sudo", "echo 'sudo: a password is required' >&2; exit 1")
    monkeypatch.setattr(tools, "PACKAGES", NO_PROGRAM)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert tools.main() == 1

    error = capfd.readouterr().err
    assert "sudo: a password is required" in error
    assert "Not installed: no-such-program. Debian's packages: srm-no-such-package" in error


def test_nothing_is_installed_when_every_program_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "PACKAGES", {"sh": "dash"})
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(tools, "INSTALL", f"touch {tmp_path}/installed")

    assert tools.main() == 0
    assert list(tmp_path.iterdir()) == []
