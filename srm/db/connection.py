"""Connections to PostgreSQL that are bounded in time, and a pool that keeps one for each thread."""

import select
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeAlias, TypeVar, cast
from urllib.parse import quote, urlencode
from weakref import WeakSet

import psycopg
from prometheus_client import Counter, Histogram
from psycopg import generators
from psycopg.abc import Buffer, PQGen
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.types.datetime import TimestamptzLoader
from sqlalchemy.engine import URL, make_url

from srm.db.breaker import CircuitBreaker, ServerSilent
from srm.deadline import DEADLINE, GRACE_SECONDS
from srm.metrics import REGISTRY

Value = TypeVar("Value")
Cursor: TypeAlias = psycopg.Cursor[Any]
Executor: TypeAlias = "Cursor | ConnectionPool"
"""Anything with `execute(statement, parameters)`."""

CONNECT_TIMEOUT_SECONDS = 2
"""Limit for one server of the URL. libpq accepts nothing less."""

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
    """A connection that is closed when the server goes silent or the request is past its deadline.

    The server ends a slow statement itself (`statement_timeout`). A server that is frozen, or behind a network that
    drops packets, ends nothing. Without a limit on this side the request would hang.
    """

    statement_timeout_seconds: float
    begin = b"BEGIN"
    is_pooled = False
    """True behind a transaction pooler. Each transaction may run on another server connection, so settings and prepared
    statements do not last from one to the next."""
    is_durable = True
    """True when the commit of the open transaction waits for the disk."""
    deadline: float | None = None
    """Deadline of the request that uses the connection, by `time.monotonic()`."""

    def wait(self, gen: PQGen[Value], interval: float = 0.1, timeout: float | None = None) -> Value:
        """Wait for the server; psycopg calls this for everything it asks. Closes the connection on a timeout.

        Raises ServerSilent when the server has missed its own statement timeout and the grace. Raises a plain
        OperationalError when only the request is past its deadline.
        """
        if timeout is None:
            timeout = self.statement_timeout_seconds + GRACE_SECONDS
            if self.deadline is not None:
                timeout = max(0.0, min(timeout, self.deadline - time.monotonic()))
        try:
            return super().wait(gen, interval, timeout)
        except psycopg.OperationalError as error:
            is_answered = error.sqlstate is not None
            if is_answered or self.closed or self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            # psycopg's own class for a timeout is private. An open connection still busy tells it as well.
            self.close()
            if timeout < self.statement_timeout_seconds:
                raise psycopg.OperationalError("the request is past its deadline") from error
            raise ServerSilent(str(error)) from error

    def command(self, commands: bytes) -> None:
        """Execute commands without parameters and rows, such as BEGIN and COMMIT, at half the cost of a cursor."""
        self.pgconn.send_query(commands)
        # psycopg.generators is not documented (read in psycopg 3.3.9). tests/unit/test_connection.py fails if it goes.
        for result in self.wait(generators.execute(self.pgconn)):
            if result.status != ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result)


class InstantLoader(TimestamptzLoader):
    """Load `infinity` and `-infinity` as the last and the first instant of Python, instead of raising an error."""

    INFINITE: ClassVar[dict[bytes, datetime]] = {
        b"infinity": datetime.max.replace(tzinfo=UTC),
        b"-infinity": datetime.min.replace(tzinfo=UTC),
    }

    def load(self, data: Buffer) -> datetime:
        """Convert the text of a `timestamptz`."""
        return self.INFINITE.get(bytes(data)) or super().load(data)


def connection_of(cursor: Cursor) -> BoundedConnection:
    """Return the connection of a cursor, typed as the class that this package opens."""
    return cast("BoundedConnection", cursor.connection)


def waive_durability(cursor: Cursor) -> None:
    """Let the commit of the open transaction not wait for the disk: nothing was promised to a client."""
    connection_of(cursor).is_durable = False


class ThreadCursor(threading.local):
    """The cursor that a thread keeps from one request to the next."""

    cursor: Cursor | None = None


class ConnectionPool:
    """One open connection for each thread that asks; threads never wait for each other."""

    def __init__(
        self, connect: Callable[[], BoundedConnection], breaker: CircuitBreaker, timeout_seconds: float
    ) -> None:
        self._connect = connect
        self._breaker = breaker
        self._timeout_seconds = timeout_seconds
        self._local = ThreadCursor()
        self._all: WeakSet[BoundedConnection] = WeakSet()

    def execute(self, statement: str, parameters: dict[str, object], timeout_seconds: float | None = None) -> Cursor:
        """Execute one `compiled` statement as a transaction of its own.

        The statement must be safe to repeat: it is sent again when the connection turns out to be broken. Raises
        DependencyUnavailable when the database is away, after `timeout_seconds`, and at the deadline of the request.
        """
        with self._breaker:
            return self._first(lambda cursor: cursor.execute(statement, parameters), timeout_seconds)

    def begin(self, spent_seconds: float = 0) -> Cursor:
        """Begin a transaction for a request that has spent `spent_seconds` of its time already."""

        def send_begin(cursor: Cursor) -> Cursor:
            connection = connection_of(cursor)
            connection.command(connection.begin)
            connection.is_durable = True
            return cursor

        return self._first(send_begin, self._timeout_seconds - spent_seconds)

    def _first(self, ask: Callable[[Cursor], Cursor], timeout_seconds: float | None = None) -> Cursor:
        """Send the first command of a transaction; repeat it once when the connection turns out to be broken.

        Testing the connection first would cost a system call and a switch of threads for each request. The deadline set
        here holds for every statement of the transaction.
        """
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + timeout
        deadline = min(deadline, DEADLINE.get() or deadline)
        cursor = self._cursor(deadline)
        try:
            return ask(cursor)
        except psycopg.OperationalError:
            if not cursor.connection.broken:
                raise
            return ask(self._cursor(deadline))

    def _cursor(self, deadline: float) -> Cursor:
        """Return this thread's cursor; open a new one when a request left its transaction unfinished."""
        cursor = self._local.cursor
        if cursor is None or cursor.connection.pgconn.transaction_status != TransactionStatus.IDLE:
            cursor = self._new_cursor()
        connection_of(cursor).deadline = deadline
        return cursor

    def _new_cursor(self) -> Cursor:
        if self._local.cursor is not None:
            self._local.cursor.connection.close()
        connection = self._connect()
        connection.autocommit = True
        self._all.add(connection)
        self._local.cursor = connection.cursor()
        return self._local.cursor

    def close(self) -> None:
        """Close all connections. No thread may use the pool any more."""
        for connection in list(self._all):
            connection.close()


def is_hung_up(connection: psycopg.Connection[Any]) -> bool:
    """True when either side has closed an idle connection.

    A server that stops closes its sockets, and a closed socket is readable. Polling the socket takes a microsecond.
    Asking the server (SQLAlchemy's `pool_pre_ping`) would take a round trip.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def sqlalchemy_url(url: str) -> URL:
    """Parse a PostgreSQL URL and select the psycopg driver."""
    return make_url(url).set(drivername="postgresql+psycopg")


def conninfo(url: URL) -> str:
    """Format the URL for libpq and psql, password included."""
    # SQLAlchemy writes a space as " " or, in the query, as "+"; libpq reads neither of them as a space.
    plain = url.set(drivername="postgresql", query={}).render_as_string(hide_password=False).replace(" ", "%20")
    query = urlencode(url.normalized_query, doseq=True, quote_via=quote)
    return f"{plain}?{query}" if query else plain
