"""Connections to PostgreSQL: bounded in time, READ COMMITTED, and one kind of error when it is away.

The statements of a request are written with SQLAlchemy, `compiled` once, and sent by psycopg on connections that
the thread keeps: SQLAlchemy's own way to execute costs several times what the statement does. Three ways in:

- `hot()`: the keep-alive, which may be lost in a crash of the database, as it comes again;
- `request()`: all else of the client API, a transaction that lasts;
- `transaction()`: all that is not done by the thousand a second; SQLAlchemy as everybody knows it.
"""

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import ClauseElement, ColumnElement, Connection, Text, create_engine, event, literal_column
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError

from srm.errors import DependencyUnavailable, SrmError

Result = TypeVar("Result")
Cursor: TypeAlias = psycopg.Cursor[Any]

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
        self._kept_by_threads: WeakSet[BoundedConnection] = WeakSet()
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
    def request(self) -> Iterator[Cursor]:
        """A transaction on the thread's own connection, for `compiled` statements; otherwise as above.

        A refusal (SrmError) is committed too: it is an answer, and what was found on the way to it, such as
        lapsed sessions, stays found. It does not wait for the disk, since nothing was promised. (A rollback
        would also make psycopg forget all prepared statements.) Any other exception rolls back.
        """
        with _unavailable_when_away():
            cursor = self._own_cursor("durable", autocommit=False)
            try:
                yield cursor
            except SrmError:
                cursor.execute("SET LOCAL synchronous_commit = off")
                cursor.connection.commit()
                raise
            except BaseException:
                with suppress(psycopg.Error):
                    cursor.connection.rollback()
                raise
            cursor.connection.commit()

    @contextmanager
    def hot(self) -> Iterator[Cursor]:
        """For `compiled` statements each of which is a transaction, and does not wait for the disk.

        A crash of the database may lose the last fraction of a second of it: only for what is repeated
        anyway. DependencyUnavailable when the database is away.
        """
        with _unavailable_when_away():
            yield self._own_cursor("hot", autocommit=True, synchronous_commit="off")

    def _own_cursor(self, name: str, *, autocommit: bool, **settings: str) -> Cursor:
        """The thread's cursor of that name, on a connection of its own; a dead one is replaced."""
        cursor: Cursor | None = getattr(self._thread, name, None)
        if cursor is None or cursor.connection.closed or is_dead(cursor.connection):
            if cursor is not None:
                cursor.connection.close()
            connection = self._connect(**settings)
            connection.autocommit = autocommit
            connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            self._kept_by_threads.add(connection)
            cursor = connection.cursor()
            setattr(self._thread, name, cursor)
        return cursor

    def dispose(self) -> None:
        """Close all connections. No thread may use one any more."""
        self._engine.dispose()
        for connection in list(self._kept_by_threads):
            connection.close()


def compiled(statement: ClauseElement) -> str:
    """The statement as psycopg sends it, its parameters named as its `bindparam`s are."""
    dialect = PGDialect_psycopg(paramstyle="pyformat")  # type: ignore[no-untyped-call]
    result = statement.compile(dialect=dialect)
    if constants := [name for name, value in result.params.items() if value is not None]:
        raise ValueError(f"write these as constant(): {constants}")
    return str(result)


def constant(word: str) -> ColumnElement[str]:
    """A word of our own, as a literal of the statement instead of a parameter."""
    return literal_column(f"'{word}'", type_=Text())


def sqlalchemy_url(url: str) -> URL:
    """The URL, as people write it, with the driver that we use."""
    return make_url(url).set(drivername="postgresql+psycopg")


def conninfo(url: URL) -> str:
    """The URL as libpq and psql take it, password included."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def is_unavailable(error: Exception) -> bool:
    """Whether the error tells that the database cannot be used now, rather than that we misused it."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None:  # said by the driver, not by the server
        return isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)
    return cause.sqlstate.startswith(UNAVAILABLE_SQLSTATES)


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
