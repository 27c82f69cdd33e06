"""Connections to PostgreSQL that are bounded in time, and pools that are bounded in number."""

import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeAlias, TypeVar, cast
from urllib.parse import quote, urlencode

import psycopg
from prometheus_client import Counter, Histogram
from psycopg import generators
from psycopg.abc import Buffer, PQGen
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.types.datetime import TimestamptzLoader
from sqlalchemy.engine import URL, make_url

from srm.db.breaker import CircuitBreaker, ServerSilent
from srm.deadline import DEADLINE, GRACE_SECONDS, MAX_QUEUE_SECONDS
from srm.errors import DependencyUnavailable
from srm.metrics import REGISTRY

Value = TypeVar("Value")
Cursor: TypeAlias = psycopg.Cursor[Any]
Executor: TypeAlias = "Cursor | ConnectionPool"
"""Anything with `execute(statement, parameters)`."""

CONNECT_TIMEOUT_SECONDS = 2
"""Limit for one server of the URL. libpq accepts nothing less."""

MOST_PER_ACCOUNT = 2
"""Connections of one pool that one account may hold at a time."""

NEVER = float("inf")

CONNECT_SECONDS = Histogram(
    "srm_database_connect_seconds",
    "Seconds that a request waited for a new connection to the database",
    buckets=(0.005, 0.01, 0.025, 0.1, 0.3, 1, 3),
    registry=REGISTRY,
)
CONNECT_FAILURES = Counter(
    "srm_database_connect_failures", "Connections to the database that could not be had", registry=REGISTRY
)
NO_CONNECTION = Counter(
    "srm_database_pool_refused",
    "Requests for which no connection of their pool became free in time",
    registry=REGISTRY,
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


class Turns:
    """At most MOST_PER_ACCOUNT requests of one account at a time, so that its locks do not take a whole pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, tuple[threading.Semaphore, list[None]]] = {}

    @contextmanager
    def of(self, account: str, until: float) -> Iterator[None]:
        """Run the block in a turn of the account. Raises DependencyUnavailable when it has none by `until`."""
        with self._lock:
            turn, users = self._turns.setdefault(account, (threading.Semaphore(MOST_PER_ACCOUNT), []))
            users.append(None)
        try:
            _acquire(turn, until)
            try:
                yield
            finally:
                turn.release()
        finally:
            with self._lock:
                users.pop()
                if not users:
                    del self._turns[account]


class ConnectionPool:
    """A share of the connections of a process: at most `size`, opened when needed and kept open.

    Safe to share between threads and greenlets. A request waits at most MAX_QUEUE_SECONDS for a connection.
    """

    def __init__(
        self, connect: Callable[[], BoundedConnection], breaker: CircuitBreaker, timeout_seconds: float, size: int
    ) -> None:
        self._connect = connect
        self._breaker = breaker
        self._timeout_seconds = timeout_seconds
        self._free = threading.Semaphore(size)
        self._idle: deque[BoundedConnection] = deque()
        self._turns = Turns()

    def execute(self, statement: str, parameters: dict[str, Any], timeout_seconds: float | None = None) -> Cursor:
        """Execute one `compiled` statement as a transaction of its own.

        The statement must be safe to repeat: it is sent again when the connection turns out to be broken. Raises
        DependencyUnavailable when the database is away, when no connection becomes free, after `timeout_seconds`, and
        at the deadline of the request. A parameter `account_id` names the account whose turn it is.
        """
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds

        def ask(cursor: Cursor) -> None:
            cursor.execute(statement, parameters)

        with self._lent(timeout, parameters.get("account_id"), ask) as cursor:
            return cursor

    @contextmanager
    def request(self, spent_seconds: float = 0, account: str | None = None) -> Iterator[Cursor]:
        """Run the block in a transaction of a client's request.

        The cursor takes `compiled` statements. `spent_seconds`: the part of the request's time that went to something
        else, such as the entitlement service. `account`: whose turn it is. Raises DependencyUnavailable when the
        database is away, or no connection becomes free.

        The commit waits for the disk, unless the block calls `waive_durability`. Every exception rolls back. Return a
        denial instead of raising it: lapsed sessions that were ended on the way must stay ended. (A rollback would also
        make psycopg forget its prepared statements.)
        """
        with self._lent(self._timeout_seconds - spent_seconds, account, _begin) as cursor:
            connection = connection_of(cursor)
            try:
                yield cursor
            except BaseException:
                with suppress(psycopg.Error):
                    connection.command(b"ROLLBACK")
                raise
            connection.command(b"COMMIT" if connection.is_durable else b"SET LOCAL synchronous_commit = off; COMMIT")

    @contextmanager
    def _lent(self, timeout_seconds: float, account: str | None, ask: Callable[[Cursor], object]) -> Iterator[Cursor]:
        """Lend a cursor whose first command has been sent, to an account that has its turn."""
        now = time.monotonic()
        deadline = min(now + timeout_seconds, DEADLINE.get() or NEVER)
        until = min(now + MAX_QUEUE_SECONDS, deadline)
        with nullcontext() if account is None else self._turns.of(account, until):
            _acquire(self._free, until)
            try:
                with self._breaker:
                    cursor = self._first(ask, deadline)
                    try:
                        yield cursor
                    finally:
                        self._take_back(connection_of(cursor))
            finally:
                self._free.release()

    def _first(self, ask: Callable[[Cursor], object], deadline: float) -> Cursor:
        """Send the first command of a transaction; repeat it once when the connection turns out to be broken.

        Testing the connection first would cost a system call for each request. The deadline set here holds for every
        statement of the transaction.
        """
        with suppress(IndexError):
            idle = self._idle.pop()
            try:
                return self._ask(idle, ask, deadline)
            except psycopg.OperationalError:
                if not idle.broken:
                    raise
        new = self._connect()
        new.autocommit = True
        return self._ask(new, ask, deadline)

    def _ask(self, connection: BoundedConnection, ask: Callable[[Cursor], object], deadline: float) -> Cursor:
        connection.deadline = deadline
        cursor = connection.cursor()
        try:
            ask(cursor)
        except BaseException:
            self._take_back(connection)
            raise
        return cursor

    def _take_back(self, connection: BoundedConnection) -> None:
        """Keep a connection for the next request; close one whose transaction is unfinished."""
        if connection.pgconn.transaction_status == TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close all connections. No one may use the pool any more."""
        while self._idle:
            self._idle.pop().close()


def _begin(cursor: Cursor) -> None:
    connection = connection_of(cursor)
    connection.command(connection.begin)
    connection.is_durable = True


def _acquire(semaphore: threading.Semaphore, until: float) -> None:
    """Acquire the semaphore. Raises DependencyUnavailable when that takes longer than `until`."""
    if semaphore.acquire(blocking=False):
        return
    if not semaphore.acquire(timeout=max(0.0, until - time.monotonic())):
        NO_CONNECTION.inc()
        raise DependencyUnavailable from TimeoutError("no connection of the pool became free")


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
