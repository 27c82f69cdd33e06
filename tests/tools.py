"""Programs of Debian packages that tests run: nginx, pgbouncer, promtool and the like.

A test that needs one is never skipped for the want of it: what is missing is installed, and where that cannot be done
the test fails and says what to install.
"""

import os
import shutil
import subprocess
from functools import cache

import pytest

PACKAGES = {
    "chromium": "chromium",
    "curl": "curl",
    "nginx": "nginx",
    "openssl": "openssl",
    "pgbouncer": "pgbouncer",
    "promtool": "prometheus",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "wrk": "wrk",
}
"""Program → the package that has it."""

INSTALL_SECONDS = 600
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
"""Daemons are in folders that are not on everybody's path."""

INSTALL = """
set -e
exec 9>/run/lock/srm-tests; flock 9
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\\nexit 101\\n' >$policy
    chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt='apt-get --quiet --yes --option DPkg::Lock::Timeout=300'
$apt install --no-install-recommends "$1" || { $apt update; $apt install --no-install-recommends "$1"; }
"""
"""Install a package, one at a time, and start no daemon of it: `policy-rc.d` forbids it (invoke-rc.d(8)) meanwhile."""


@cache
def need(program: str) -> str:
    """The path of a program in PACKAGES, which is installed when it is not there. The test fails when it cannot be."""
    package = PACKAGES[program]
    cause = "" if _find(program) else _install(package)
    found = _find(program)
    if found is None:
        pytest.fail(f"this test needs {program}: apt-get install {package} ({cause})", pytrace=False)
    return found


def as_root() -> list[str]:
    """What stands before a command that only root may run."""
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def _find(program: str) -> str | None:
    return shutil.which(program, path=PATH)


def _install(package: str) -> str:
    """Install it as root; what went wrong, if anything."""
    command = [*as_root(), "sh", "-c", INSTALL, "install", package]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error).split("\n")[0]
    return (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
