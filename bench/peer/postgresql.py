"""A PostgreSQL of Debian with its default settings, in a folder, on loopback."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from srm.db import system_user

PORT = 18_090
ADMIN_URL = f"postgresql://postgres@127.0.0.1:{PORT}"
"""URL without a database. Whoever is on this machine may log in while the comparison runs."""


def newest_programs() -> Path | None:
    """Return the folder of the programs of Debian's newest PostgreSQL; None when there is none."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in versions), key=lambda path: float(path.parent.name), default=None)


@contextmanager
def server(folder: Path) -> Iterator[None]:
    """Run a new server during the block. Root gives it to the system user of the embedded server."""
    programs = newest_programs()
    if programs is None:
        raise SystemExit("bench-peer: PostgreSQL is missing")
    folder = folder.absolute()
    folder.mkdir()
    user = group = None
    if os.geteuid() == 0:
        user, group = system_user.find_or_create()
        system_user.open_path_to(folder)
        os.chown(folder, user, group)

    def run(program: str, *arguments: str) -> None:
        # The output goes to a file: the server would keep a pipe open.
        with (folder.parent / "postgresql-commands.log").open("a+") as log:
            code = subprocess.run(
                [programs / program, *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                user=user, group=group, extra_groups=None if user is None else [], check=False,
            ).returncode  # fmt: skip
            log.seek(0)
            if code != 0:
                raise SystemExit(f"bench-peer: {program} failed:\n{log.read()[-2000:]}")

    data = str(folder / "data")
    run("initdb", "-D", data, "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8")
    options = f"-c listen_addresses=127.0.0.1 -c port={PORT} -c unix_socket_directories= -c max_connections=200"
    run("pg_ctl", "start", "-w", "-D", data, "-l", str(folder / "postgresql.log"), "-o", options)
    try:
        yield
    finally:
        run("pg_ctl", "stop", "-w", "-m", "fast", "-D", data)
