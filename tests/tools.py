"""Programs of Debian packages that tests run: nginx, pgbouncer, promtool and others.

Tests install nothing. `python -m tests.tools` (`make test-tools`) installs what is missing: as root, or else with sudo.
A test whose program is missing skips. On CI a skipped test fails: see tests/reporting.py.
"""

import os
import shutil
import subprocess
import sys

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
"""Program → the Debian package that has it."""

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
$apt install --no-install-recommends "$@" || { $apt update; $apt install --no-install-recommends "$@"; }
"""
"""Installs packages and starts none of their daemons: `policy-rc.d` forbids every start meanwhile (invoke-rc.d(8))."""


def need(program: str) -> str:
    """Path of a program in PACKAGES. Skips the test when the program is not installed."""
    package = PACKAGES[program]
    path = _find(program)
    if path is None:
        pytest.skip(f"{program} is not installed ({package}): run `make test-tools`")
    return path


def as_root() -> list[str]:
    """Words that stand before a command that only root may run; sudo asks for no password."""
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def main() -> int:
    """Install the missing packages; the exit code. Says on standard error which programs are still missing."""
    missing = sorted({PACKAGES[program] for program in _missing()})
    if missing:
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        try:
            subprocess.run([*sudo, "sh", "-c", INSTALL, "install", *missing], check=False)
        except FileNotFoundError:
            print("Only root can install packages, and there is no sudo.", file=sys.stderr)
    if still := _missing():
        packages = " ".join(sorted({PACKAGES[program] for program in still}))
        print(f"Not installed: {', '.join(still)}. Debian's packages: {packages}", file=sys.stderr)
        return 1
    print(f"Installed: {', '.join(PACKAGES)}.")
    return 0


def _missing() -> list[str]:
    return [program for program in PACKAGES if _find(program) is None]


def _find(program: str) -> str | None:
    """Path of the program. Looks also where daemons are, which is not on every user's PATH."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


if __name__ == "__main__":
    sys.exit(main())
