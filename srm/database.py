"""Connections to PostgreSQL: bounded in time, READ COMMITTED, and one kind of error when it is away.

The statements of a request are written with SQLAlchemy, `compiled` once, and sent by psycopg on connections that
the thread keeps: SQLAlchemy's own way to execute costs several times what the statement does. Three ways in:

- `hot()`: the keep-alive, which may be lost in a crash of the database, as it comes again;
- `request()`: all else of the client API, a transaction that lasts;
- `transaction()`: all that is not done by the thousand a second; SQLAlchemy as everybody knows it.
"""

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
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
"""How long a server is waited for after the time in which it should have given up by itself, and then left alone."""

UNAVAILABLE_SQLSTATES = (
    "08",  # connection exceptions
    "25P03",  # idle in transaction for too long: we were frozen
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
    answer_by = float("inf")
    """The end, by `time.monotonic()`, of the patience of the request that uses the connection."""

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Wait for the server. OperationalError, and the connection is closed, when the time is over."""
        try:
            if timeout is None:
                timeout = max(0.0, min(self.answer_timeout_seconds, self.answer_by - time.monotonic()))
            return super().wait(gen, interval, timeout)
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
        self._settings = {
            "statement_timeout": milliseconds,
            "lock_timeout": milliseconds,
            # A host that dies in the middle of a transaction must not keep its locks.
            "idle_in_transaction_session_timeout": milliseconds,
            "default_transaction_isolation": r"read\ committed",
            "timezone": "UTC",
        }
        self._answer_timeout_seconds = statement_timeout_seconds + SILENCE_SECONDS
        self._silent_until: float | None = None
        self._one_asks = threading.Lock()
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
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
        )
        connection.answer_timeout_seconds = self._answer_timeout_seconds
        return connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A READ COMMITTED transaction that is on disk when the block has ended without an exception.

        DependencyUnavailable when the database is away, before, during or after.
        """
        with self._asking(), self._engine.begin() as db:
            yield db

    @contextmanager
    def request(self) -> Iterator[Cursor]:
        """A transaction on the thread's own connection, for `compiled` statements; otherwise as above.

        A refusal (SrmError) is committed too: it is an answer, and what was found on the way to it, such as
        lapsed sessions, stays found. It does not wait for the disk, since nothing was promised. (A rollback
        would also make psycopg forget all prepared statements.) Any other exception rolls back.
        """
        with self._asking():
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
        with self._asking():
            yield self._own_cursor("hot", autocommit=True, synchronous_commit="off")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what tells that the database is away into DependencyUnavailable.

        Once the server has gone silent, nobody asks it for SILENCE_SECONDS, and then one at a time: requests must
        not queue up to find it out one by one.
        """
        is_the_one = False
        silent_until = self._silent_until  # read once: another thread may clear it meanwhile
        if silent_until is not None:
            is_the_one = time.monotonic() >= silent_until and self._one_asks.acquire(blocking=False)
            if not is_the_one:
                raise DependencyUnavailable
        try:
            yield
            self._silent_until = None
        except (DBAPIError, psycopg.Error) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            is_silent = isinstance(cause, psycopg.errors._WaitTimeout | psycopg.errors.ConnectionTimeout)
            self._silent_until = time.monotonic() + SILENCE_SECONDS if is_silent else None
            if is_unavailable(error):
                raise DependencyUnavailable from error
            raise
        except SrmError:
            self._silent_until = None
            raise
        finally:
            if is_the_one:
                self._one_asks.release()

    def _own_cursor(self, name: str, *, autocommit: bool, **settings: str) -> Cursor:
        """The thread's cursor of that name, on a connection of its own; a dead one is replaced."""
        answer_by = time.monotonic() + self._answer_timeout_seconds
        cursor: Cursor | None = getattr(self._thread, name, None)
        if cursor is None or cursor.connection.closed or is_dead(cursor.connection):
            if cursor is not None:
                cursor.connection.close()
            connection = self._connect(**settings)
            connection.autocommit = autocommit
            self._kept_by_threads.add(connection)
            cursor = connection.cursor()
            setattr(self._thread, name, cursor)
        cursor.connection.answer_by = answer_by  # type: ignore[attr-defined]
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


def is_timeout(error: DependencyUnavailable) -> bool:
    """Whether the database is there, and only the statement or a lock took too long."""
    cause = getattr(error.__cause__, "orig", error.__cause__)
    return isinstance(cause, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable)


def is_dead(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has closed the connection while it was idle, or a request has left it unfinished.

    A server that goes down closes its sockets, so a closed one is readable. To look costs a
    microsecond; to ask the server (`pool_pre_ping`) would cost a round trip on every request.
    """
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _refuse_dead_connection(connection: BoundedConnection, *_: object) -> None:
    if is_dead(connection):
        raise DisconnectionError  # the pool opens another one
