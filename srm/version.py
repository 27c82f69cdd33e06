"""The version of SRM: the release, and the commit that it was built from."""

import os
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

RELEASE = "0.2.0"
"""The one place that names the release."""

ROOT = Path(__file__).resolve().parents[1]
"""The checkout, where the code runs from one."""

GIT_SECONDS = 5
COMMIT = re.compile(r"[0-9a-f]{7,40}(-dirty)?")


@cache
def build() -> str:
    """Return release and commit of the running code: `0.2.0+g1a2b3c4d5e`, with `.dirty` at the end for changed files.

    In a checkout git tells the commit, and the first call takes some milliseconds. Elsewhere the installed package
    carries the commit (`stamp`). `0.2.0` alone where no commit is known. Never raises.
    """
    if _is_checkout():
        return _joined(_commit_of_checkout())
    try:
        package = distribution("srm")
    except PackageNotFoundError:
        return RELEASE
    is_this_code = Path(str(package.locate_file("srm/version.py"))).resolve() == Path(__file__).resolve()
    return package.version if is_this_code else RELEASE


def stamp() -> str:
    """Return the version that setuptools writes into a package that it builds (setup.cfg names this function).

    Where there is no checkout, as in a container build, the environment variable BUILD_COMMIT tells the commit.
    Raises ValueError when its value is not a commit.
    """
    if _is_checkout():
        return _joined(_commit_of_checkout())
    commit = os.environ.get("BUILD_COMMIT", "")
    if commit and not COMMIT.fullmatch(commit):
        raise ValueError(f"BUILD_COMMIT={commit!r}: not a commit as `git describe --always --dirty` prints it")
    return _joined(commit)


def _is_checkout() -> bool:
    return (ROOT / ".git").exists()


def _commit_of_checkout() -> str:
    """Return the commit, with `-dirty` for changed files; empty when git cannot tell."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=10"]
    # In a hook of git, GIT_DIR is set, and may be another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        result = subprocess.run(  # noqa: S603 fixed arguments
            command, env=variables, capture_output=True, text=True, check=True, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    commit = result.stdout.strip()
    return commit if COMMIT.fullmatch(commit) else ""


def _joined(commit: str) -> str:
    """Return a local version identifier (packaging.python.org, "Version specifiers")."""
    return f"{RELEASE}+g{commit.replace('-', '.')}" if commit else RELEASE
