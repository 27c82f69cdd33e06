"""The system user that runs the embedded server when SRM runs as root; PostgreSQL refuses to run as root."""

import fcntl
import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from srm.errors import StartupError

NAME = "pgserver"

LOCK = Path("/run/srm-system-user.lock")
"""Held while the user is created. Two runs of useradd at once may both succeed, and the second changes the uid."""


class SystemUser(NamedTuple):
    """Ids of the user and of its group."""

    uid: int
    gid: int


def find_or_create(name: str = NAME) -> SystemUser:
    """Return the system user; create it when it is missing. Several processes may do so at once.

    Raises StartupError when the user cannot be created.
    """
    user = _find(name)
    if user is not None:
        return user
    try:
        with _locked():
            if _find(name) is None:  # else another process has created it meanwhile
                subprocess.run(["useradd", name], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except subprocess.CalledProcessError as error:
        raise StartupError(f"system user {name} cannot be created: {error.stderr.strip()}") from None
    except OSError as error:
        raise StartupError(f"system user {name} cannot be created: {error.filename}: {error.strerror}") from None
    user = _find(name)
    if user is None:
        raise StartupError(f"system user {name} is missing although useradd created it")
    return user


@contextmanager
def _locked() -> Iterator[None]:
    with os.fdopen(os.open(LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find(name: str) -> SystemUser | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return SystemUser(entry.pw_uid, entry.pw_gid)


def open_path_to(folder: Path) -> None:
    """Let every user pass through the folder and all folders above it."""
    for each in (folder, *folder.parents):
        mode = each.stat().st_mode
        if not mode & stat.S_IXOTH:
            each.chmod(mode | stat.S_IXOTH)
