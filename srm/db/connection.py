"""A connection to PostgreSQL that is bounded in time, and a pool of them: one for each thread."""

import select
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeAlias, TypeVar, cast
from weakref import WeakSet

import psycopg
from prometheus_client import Counter, Histogram
from psycopg import generators
from psycopg.abc import Buffer, PQGen
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.types.datetime import TimestamptzLoader
from sqlalchemy.engine import URL, make_url

from srm.db.breaker import CircuitBreaker
from srm.deadline import ANSWER_BY, SILENCE_SECONDS
from srm.metrics import REGISTRY

Result = TypeVar("Result")
Cursor: TypeAlias = psycopg.Cursor[Any]
Executor: TypeAlias = "Cursor | ConnectionPool"
"""Has `execute(statement, parameters)`."""

CONNECT_TIMEOUT_SECONDS = 2
"""To one server; the least that libpq takes."""

CONNECT_SECONDS = Histogram(
    "srm_database_connect_seconds",
    "Seconds that a thread waited for a new connection to the database",
    buckets=(0.005, 0.01, 0.025, 0.1, 0.3, 1, 3),
    registry=REGISTRY,
)
CONNECT_FAILURES = Counter(
    "srm_database_connect_failures", "Connections to the database that could not be had", registry=REGISTRY
)


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is given up when the server, not only a statement, has gone silent.

    The server ends a slow statement itself (`statement_timeout`). A server that is frozen, or behind a
    network that swallows packets, ends nothing; without a bound of our own the request would hang.
    """

    statement_timeout_seconds: float
    begin = b"BEGIN"
    is_pooled = False
    """A pooler stands between, which gives each transaction the server's connection that is free: no two have the same
    settings or prepared statements."""
    answer_by: float | None = None
    """The end, by `time.monotonic()`, of the patience of the request that uses the connection."""

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Wait for the server. OperationalError, and the connection is closed, when the time is over.

        It is a _WaitTimeout when the server is silent: when it should have given up by itself.
        """
        if timeout is None:
            timeout = self.statement_timeout_seconds + SILENCE_SECONDS
            if self.answer_by is not None:
                timeout = max(0.0, min(timeout, self.answer_by - time.monotonic()))
        try:
            return super().wait(gen, interval, timeout)
        except psycopg.errors._WaitTimeout as error:
            self.close()
            if timeout < self.statement_timeout_seconds:
                raise psycopg.OperationalError("the request has waited long enough") from error
            raise

    def command(self, commands: bytes) -> None:
        """Execute what has neither parameters nor rows: BEGIN, COMMIT. For half of what a cursor costs."""
        self.pgconn.send_query(commands)
        for result in self.wait(generators.execute(self.pgconn)):
            if result.status != ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result)


class InstantLoader(TimestamptzLoader):
    """Loads what people write for "always" and "never", too, as the last and the first instant that Python knows."""

    INFINITE: ClassVar[dict[bytes, datetime]] = {
        b"infinity": datetime.max.replace(tzinfo=UTC),
        b"-infinity": datetime.min.replace(tzinfo=UTC),
    }

    def load(self, data: Buffer) -> datetime:
        """The instant."""
        return self.INFINITE.get(bytes(data)) or super().load(data)


def connection_of(cursor: Cursor) -> BoundedConnection:
    """The connection, with what is ours of it."""
    return cast("BoundedConnection", cursor.connection)


class Kept(threading.local):
    """What a thread keeps from one request to the next."""

    cursor: Cursor | None = None


class ConnectionPool:
    """A connection for each thread, kept open."""

    def __init__(
        self, connect: Callable[[], BoundedConnection], silence: CircuitBreaker, patience_seconds: float
    ) -> None:
        self._connect = connect
        self._silence = silence
        self._patience_seconds = patience_seconds
        self._kept = Kept()
        self._all: WeakSet[BoundedConnection] = WeakSet()

    def execute(self, statement: str, parameters: dict[str, object], patience_seconds: float | None = None) -> Cursor:
        """Execute a `compiled` statement, which may be repeated, as a transaction of its own.

        DependencyUnavailable when the database is away, or takes longer than `patience_seconds`, if that is less than
        a request may take.
        """
        with self._silence:
            return self._first(lambda cursor: cursor.execute(statement, parameters), patience_seconds)

    def begin(self, spent_seconds: float = 0) -> Cursor:
        """Begin a transaction of a request that has waited so long already."""

        def begin(cursor: Cursor) -> Cursor:
            connection_of(cursor).command(connection_of(cursor).begin)
            return cursor

        return self._first(begin, self._patience_seconds - spent_seconds)

    def _first(self, ask: Callable[[Cursor], Cursor], patience_seconds: float | None = None) -> Cursor:
        """Ask the first thing of a request; once more when the connection turns out to be broken.

        To look at the connection before would cost a system call and a hand-over of the interpreter lock each time.
        The patience begins here, unless it has begun before (ANSWER_BY), and is for all statements of the transaction.
        """
        patience = self._patience_seconds if patience_seconds is None else patience_seconds
        answer_by = time.monotonic() + patience
        answer_by = min(answer_by, ANSWER_BY.get() or answer_by)
        cursor = self._cursor(answer_by)
        try:
            return ask(cursor)
        except psycopg.OperationalError:
            if not cursor.connection.broken:
                raise
            return ask(self._cursor(answer_by))

    def _cursor(self, answer_by: float) -> Cursor:
        """The cursor of this thread, with a new connection when there is none or a request has left it unfinished."""
        cursor = self._kept.cursor
        if cursor is None or cursor.connection.pgconn.transaction_status != TransactionStatus.IDLE:
            cursor = self._new_cursor()
        connection_of(cursor).answer_by = answer_by
        return cursor

    def _new_cursor(self) -> Cursor:
        if self._kept.cursor is not None:
            self._kept.cursor.connection.close()
        connection = self._connect()
        connection.autocommit = True
        self._all.add(connection)
        self._kept.cursor = connection.cursor()
        return self._kept.cursor

    def close(self) -> None:
        """Close all connections. No thread may use one any more."""
        for connection in list(self._all):
            connection.close()


def is_hung_up(connection: psycopg.Connection[Any]) -> bool:
    """Whether the connection is closed, be it by us or, while it was idle, by the server.

    A server that goes down closes its sockets, so a closed one is readable. To look costs a
    microsecond; to ask the server (`pool_pre_ping`) would cost a round trip.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def sqlalchemy_url(url: str) -> URL:
    """The URL, as people write it, with the driver that we use."""
    return make_url(url).set(drivername="postgresql+psycopg")


def conninfo(url: URL) -> str:
    """The URL as libpq and psql take it, password included."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
