"""Connections to PostgreSQL: bounded in time, READ COMMITTED, and one kind of error when it is away.

Two ways in: `transaction()` for all that must last, by SQLAlchemy; `hot()` for the keep-alive, by psycopg
itself on a connection that the thread keeps. Keep-alives are a hundred to one, and the way through the
pool and the statement cache of SQLAlchemy costs more than the statement (`make bench`).
"""

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError

from srm.errors import DependencyUnavailable

Result = TypeVar("Result")

CONNECT_TIMEOUT_SECONDS = 2
"""To one server; the least that libpq takes."""

STATEMENT_TIMEOUT_SECONDS = 1.5
"""Of a request, lock waits included, by the clock of the server."""

SILENCE_SECONDS = 1
"""How long a server is waited for after the time in which it should have given up by itself."""

UNAVAILABLE_SQLSTATES = (
    "08",  # connection exceptions
    "25006",  # read-only: a standby that was the primary a moment ago
    "40",  # rolled back by the server: deadlock, serialisation
    "53",  # out of connections, memory or disk
    "55P03",  # a lock could not be had in time
    "57",  # statement timeout, shutdown, crash, starting up
    "58",  # system error
)
"""Beginnings of the SQLSTATEs after which the same request may well succeed (PostgreSQL manual, appendix A)."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is given up when the server, not only a statement, has gone silent.

    The server ends a slow statement itself (`statement_timeout`). A server that is frozen, or behind a
    network that swallows packets, ends nothing; without a bound of our own the request would hang.
    """

    answer_timeout_seconds: float

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Wait for the server. OperationalError, and the connection is closed, when the time is over."""
        try:
            return super().wait(gen, interval, self.answer_timeout_seconds if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            self.close()
            raise


class Database:
    """The connections of one process: as many as threads use at once, kept open."""

    def __init__(
        self,
        url: str,
        *,
        application_name: str,
        statement_timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS,
    ) -> None:
        self.url = sqlalchemy_url(url)
        self._application_name = application_name
        milliseconds = int(statement_timeout_seconds * 1000)
        self._settings = {"statement_timeout": milliseconds, "lock_timeout": milliseconds, "timezone": "UTC"}
        self._answer_timeout_seconds = statement_timeout_seconds + SILENCE_SECONDS
        self._thread = threading.local()
        self._engine = create_engine(
            self.url,
            creator=self._connect,
            isolation_level="READ COMMITTED",
            pool_size=0,  # no limit; the number of threads is one
            use_native_hstore=False,
        )
        event.listen(self._engine, "checkout", _refuse_dead_connection)

    def _connect(self, **options: Any) -> BoundedConnection:
        settings = {**self._settings, **options}
        connection = BoundedConnection.connect(
            conninfo(self.url),
            application_name=self._application_name,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
        )
        connection.answer_timeout_seconds = self._answer_timeout_seconds
        return connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A READ COMMITTED transaction that is on disk when the block has ended without an exception.

        DependencyUnavailable when the database is away, before, during or after.
        """
        with _unavailable_when_away(), self._engine.begin() as db:
            yield db

    @contextmanager
    def hot(self) -> Iterator[psycopg.Cursor[Any]]:
        """The thread's own cursor, on which a statement is a transaction and does not wait for the disk.

        A crash of the database may lose the last fraction of a second of it: only for what is repeated
        anyway. DependencyUnavailable when the database is away.
        """
        with _unavailable_when_away():
            cursor: psycopg.Cursor[Any] | None = getattr(self._thread, "cursor", None)
            if cursor is None or cursor.connection.closed or is_dead(cursor.connection):
                connection = self._connect(synchronous_commit="off")
                connection.autocommit = True
                self._thread.cursor = cursor = connection.cursor()
            yield cursor

    def dispose(self) -> None:
        """Close all connections that are not in use."""
        self._engine.dispose()


def sqlalchemy_url(url: str) -> URL:
    """The URL, as people write it, with the driver that we use."""
    return make_url(url).set(drivername="postgresql+psycopg")


def conninfo(url: URL) -> str:
    """The URL as libpq and psql take it, password included."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def is_unavailable(error: Exception) -> bool:
    """Whether the error tells that the database cannot be used now, rather than that we misused it."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    return cause.sqlstate is None or cause.sqlstate.startswith(UNAVAILABLE_SQLSTATES)


def is_dead(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has closed the connection while it was idle.

    A server that goes down closes its sockets, so a closed one is readable. To look costs a
    microsecond; to ask the server (`pool_pre_ping`) would cost a round trip on every request.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _refuse_dead_connection(connection: BoundedConnection, *_: object) -> None:
    if is_dead(connection):
        raise DisconnectionError  # the pool opens another one


@contextmanager
def _unavailable_when_away() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        if is_unavailable(error):
            raise DependencyUnavailable from error
        raise
