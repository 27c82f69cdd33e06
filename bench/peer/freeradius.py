"""FreeRADIUS as Debian ships it, with PostgreSQL behind it, and the load on it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.peer.postgresql import ADMIN_URL, newest_programs
from bench.peer.postgresql import PORT as DATABASE_PORT
from bench.rounds import Run

HERE = Path(__file__).parent
PORT = 18_091
"""UDP port of access requests. Accounting has the next one."""
SECRET = "bench"
USERS = 20_000
IN_FLIGHT = 64
"""Requests at once. FreeRADIUS has eight threads and eight connections to the database."""
STOCK = Path("/etc/freeradius/3.0/mods-config/sql/main/postgresql")
"""Debian's schema and queries, which the package freeradius-postgresql brings."""
URL = f"{ADMIN_URL}/radius"

PACKAGES = ("freeradius", "freeradius-postgresql", "postgresql", "gcc", "libc6-dev", "libssl-dev", "wrk")


def check() -> None:
    """Exit with the line that installs what is missing, or that says who may read Debian's configuration."""
    # /usr/sbin is not on the PATH of every user.
    found = (
        program(),
        STOCK.exists() if os.access("/etc/freeradius", os.X_OK) else Path("/usr/lib/freeradius").exists(),
        newest_programs(),
        shutil.which("gcc"),
        Path("/usr/include/stdio.h").exists(),
        Path("/usr/include/openssl/evp.h").exists(),
        shutil.which("wrk"),
    )
    missing = [package for package, there in zip(PACKAGES, found, strict=True) if not there]
    if missing:
        sys.exit(
            f"bench-peer: not installed: {', '.join(missing)}. As root, on Debian:\n"
            f"  apt-get install --no-install-recommends {' '.join(PACKAGES)}\n"
            "Then stop the daemons that Debian has started: systemctl disable --now freeradius postgresql"
        )
    if not os.access(STOCK / "queries.conf", os.R_OK):
        sys.exit("bench-peer: only root and the group freerad may read /etc/freeradius; run it as one of them")


def program() -> str | None:
    """Return the path of FreeRADIUS; None when it is not installed."""
    return shutil.which("freeradius", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@dataclass
class FreeRadius:
    """A FreeRADIUS with its files in a folder, and the generator of its load."""

    folder: Path

    @classmethod
    def prepared(cls, folder: Path) -> "FreeRadius":
        """Write the configuration, compile the generator, and fill a new database with users."""
        folder.mkdir()
        shutil.copy(HERE / "radiusd.conf", folder)
        (folder / "dictionary").touch()
        subprocess.run(["gcc", "-O2", "-o", folder / "radload", HERE / "radload.c", "-lcrypto"], check=True)
        with psycopg.connect(f"{ADMIN_URL}/postgres", autocommit=True) as admin:
            admin.execute("CREATE ROLE radius LOGIN")
            admin.execute("CREATE DATABASE radius OWNER radius")
        with psycopg.connect(URL.replace("postgres@", "radius@"), autocommit=True) as owner:
            owner.execute((STOCK / "schema.sql").read_text())
            owner.execute((HERE / "users.sql").read_text())
            owner.execute("VACUUM ANALYZE")
        return cls(folder)

    @contextmanager
    def running(self, synchronous_commit: str) -> Iterator[None]:
        """Run FreeRADIUS during the block, with this setting of its role in the database."""
        with psycopg.connect(URL, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE radius SET synchronous_commit = {synchronous_commit}")
        variables = {
            "BENCH_FOLDER": str(self.folder.absolute()),
            "BENCH_AUTH_PORT": str(PORT),
            "BENCH_ACCT_PORT": str(PORT + 1),
            "BENCH_DATABASE_PORT": str(DATABASE_PORT),
        }
        command = [program() or "freeradius", "-f", "-n", "radiusd", "-d", str(self.folder.absolute())]
        with (self.folder / "output.log").open("a") as log:
            child = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)
        try:
            self._wait(child)
            yield
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait()

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + 30
        while _is_free(PORT + 1):
            if child.poll() is not None or time.monotonic() > give_up_at:
                logs = [path.read_text() for path in self.folder.glob("*.log")]
                raise SystemExit("bench-peer: FreeRADIUS has not started:\n" + "\n".join(logs)[-2000:])
            time.sleep(0.1)
        time.sleep(0.5)  # for its threads and connections

    def load(self, mode: str, seconds: int, sessions_each: int = 1, tag: str = "new") -> Run:
        """Give each user open sessions, then measure this kind of request. Exit when an answer is missing or wrong."""
        with psycopg.connect(URL, autocommit=True) as connection:
            connection.execute((HERE / "sessions.sql").read_text().format(sessions_each=sessions_each))
            connection.execute("VACUUM ANALYZE radacct")
            connection.execute("CHECKPOINT")
            command = [str(self.folder / "radload"), mode, str(PORT), str(PORT + 1), SECRET, str(IN_FLIGHT)]
            command += [str(seconds), str(USERS), str(sessions_each), tag]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            run: Run = json.loads(output)
            row = connection.execute(CHANGED[mode]).fetchone()
        changed = row[0] if row else 0
        # Of repeated interim updates the table shows the last one only.
        expected = min(run["requests"], USERS) if mode == "interim" else run["requests"]
        if changed < expected:
            raise SystemExit(f"bench-peer: {mode}: {expected:.0f} requests answered, {changed} rows changed")
        return {**run, "rps": run["requests"] / run["seconds"]}


CHANGED = {
    "interim": "SELECT count(*) FROM radacct WHERE acctsessiontime > 0",
    "stop": "SELECT count(*) FROM radacct WHERE acctstoptime IS NOT NULL",
    "pair": "SELECT count(*) FROM radacct WHERE acctsessionid NOT LIKE 'b%'",
}
"""Number of rows in which the requests of a mode are seen."""


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
