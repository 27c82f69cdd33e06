"""Connections to PostgreSQL that are bounded in time, and pools that are bounded in number."""

import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from srm.db.waiting import SocketWaiter, is_cooperative
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
"""Most connections of one pool that one account may hold at a time."""

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
    _waiter: SocketWaiter | None = None

    def wait_cooperatively(self) -> None:
        """Let other requests go on during each wait, if the process has an event loop."""
        if is_cooperative():
            self._waiter = SocketWaiter(self.fileno())

    def close(self) -> None:
        """Close the connection."""
        if self._waiter is not None:
            self._waiter.close()
            self._waiter = None
        super().close()

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
            if self._waiter is None:
                return super().wait(gen, interval, timeout)
            return self._waiter.wait(gen, timeout)
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


class Result:
    """Rows of a statement, and the number of rows that it found or changed."""

    __slots__ = ("_rows", "rowcount")

    def __init__(self, cursor: Cursor) -> None:
        self.rowcount = cursor.rowcount
        self._rows: list[Any] = cursor.fetchall() if cursor.description else []

    def fetchone(self) -> Any:
        """Return the next row, None after the last."""
        return self._rows.pop(0) if self._rows else None

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        return self._rows


class Slots:
    """A semaphore that serves its waiters in the order in which they came. Free, it costs a microsecond."""

    __slots__ = ("_free", "_lock", "_waiters")

    def __init__(self, size: int) -> None:
        self._free = size
        self._lock = threading.Lock()
        self._waiters: deque[Any] = deque()

    def take(self, until: float) -> None:
        """Take a slot. Raises DependencyUnavailable when none is free by `until`."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            waiter = threading.Lock()
            waiter.acquire()
            self._waiters.append(waiter)
        if waiter.acquire(timeout=max(0.0, until - time.monotonic())):
            return
        with self._lock:
            if waiter in self._waiters:  # otherwise the waiter got a slot at the last moment
                self._waiters.remove(waiter)
                NO_CONNECTION.inc()
                raise DependencyUnavailable from TimeoutError("no connection of the pool became free")

    def give_back(self) -> None:
        """Give a slot back. The waiter that has waited longest gets it."""
        with self._lock:
            if self._waiters:
                self._waiters.popleft().release()
            else:
                self._free += 1


class Turns:
    """MOST_PER_ACCOUNT slots for each account, so that a locked account does not take all connections of a pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accounts: dict[str, tuple[Slots, list[None]]] = {}

    def take(self, account: str, until: float) -> None:
        """Take a slot of the account. Raises DependencyUnavailable when none is free by `until`."""
        with self._lock:
            slots, users = self._accounts.get(account) or self._accounts.setdefault(
                account, (Slots(MOST_PER_ACCOUNT), [])
            )
            users.append(None)
        try:
            slots.take(until)
        except DependencyUnavailable:
            self._forget(account)
            raise

    def give_back(self, account: str) -> None:
        """Give the slot of an account back."""
        self._accounts[account][0].give_back()
        self._forget(account)

    def _forget(self, account: str) -> None:
        with self._lock:
            users = self._accounts[account][1]
            users.pop()
            if not users:
                del self._accounts[account]


class ConnectionPool:
    """A pool of at most `size` connections, opened when needed and kept open.

    Safe to share between threads and greenlets. A request waits at most MAX_QUEUE_SECONDS for a connection.
    """

    def __init__(
        self, connect: Callable[[], BoundedConnection], breaker: CircuitBreaker, timeout_seconds: float, size: int
    ) -> None:
        self._connect = connect
        self._breaker = breaker
        self._timeout_seconds = timeout_seconds
        self._slots = Slots(size)
        self._turns = Turns()
        self._idle: deque[Cursor] = deque()
        """Cursors of idle connections. A new cursor would have to look up again how to convert each type."""

    def execute(self, statement: str, parameters: dict[str, Any], timeout_seconds: float | None = None) -> Result:
        """Execute one `compiled` statement as a transaction of its own.

        The statement must be safe to repeat: it is sent again when the connection turns out to be broken. Raises
        DependencyUnavailable when the database is away, when no connection becomes free, after `timeout_seconds`, and
        at the deadline of the request. A parameter `account_id` names the account that uses the connection.
        """
        account: str | None = parameters.get("account_id")
        deadline = self._take_slots(account, self._timeout_seconds if timeout_seconds is None else timeout_seconds)
        try:
            with self._breaker:
                cursor = self._first(lambda cursor: cursor.execute(statement, parameters), deadline)
                try:
                    return Result(cursor)
                finally:
                    self._keep(cursor)
        finally:
            self._give_slots_back(account)

    @contextmanager
    def request(self, spent_seconds: float = 0, account: str | None = None) -> Iterator[Cursor]:
        """Run the block in a transaction of a client's request.

        The cursor takes `compiled` statements. `spent_seconds`: the part of the request's time that went to something
        else, such as the entitlement service. `account`: the account that uses the connection. Raises
        DependencyUnavailable when the database is away, or no connection becomes free.

        The commit waits for the disk, unless the block calls `waive_durability`. Every exception rolls back. Return a
        denial instead of raising it: lapsed sessions that were ended on the way must stay ended. (A rollback would also
        make psycopg forget its prepared statements.)
        """
        deadline = self._take_slots(account, self._timeout_seconds - spent_seconds)
        try:
            with self._breaker:
                cursor = self._first(_begin, deadline)
                try:
                    yield cursor
                    _commit(connection_of(cursor))
                except BaseException:
                    with suppress(psycopg.Error):
                        connection_of(cursor).command(b"ROLLBACK")
                    raise
                finally:
                    self._keep(cursor)
        finally:
            self._give_slots_back(account)

    def _take_slots(self, account: str | None, timeout_seconds: float) -> float:
        """Wait for a slot of the account and for one of the pool; return the deadline of the request."""
        now = time.monotonic()
        deadline = min(now + timeout_seconds, DEADLINE.get() or NEVER)
        until = min(now + MAX_QUEUE_SECONDS, deadline)
        if account is not None:
            self._turns.take(account, until)
        try:
            self._slots.take(until)
        except DependencyUnavailable:
            if account is not None:
                self._turns.give_back(account)
            raise
        return deadline

    def _give_slots_back(self, account: str | None) -> None:
        self._slots.give_back()
        if account is not None:
            self._turns.give_back(account)

    def _first(self, ask: Callable[[Cursor], object], deadline: float) -> Cursor:
        """Send the first command of a transaction; repeat it once when the connection turns out to be broken.

        Testing the connection first would cost a system call for each request. The deadline set here holds for every
        statement of the transaction.
        """
        idle = self._pop_idle()
        if idle is not None:
            try:
                return self._ask(idle, ask, deadline)
            except psycopg.OperationalError:
                if not idle.connection.broken:
                    raise
        connection = self._connect()
        connection.autocommit = True
        return self._ask(connection.cursor(), ask, deadline)

    def _pop_idle(self) -> Cursor | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _ask(self, cursor: Cursor, ask: Callable[[Cursor], object], deadline: float) -> Cursor:
        connection_of(cursor).deadline = deadline
        try:
            ask(cursor)
        except BaseException:
            self._keep(cursor)
            raise
        return cursor

    def _keep(self, cursor: Cursor) -> None:
        """Keep a connection for the next request; close one whose transaction is unfinished."""
        if cursor.connection.pgconn.transaction_status == TransactionStatus.IDLE:
            self._idle.append(cursor)
        else:
            cursor.connection.close()

    def close(self) -> None:
        """Close all connections. No one may use the pool any more."""
        while self._idle:
            self._idle.pop().connection.close()


def _begin(cursor: Cursor) -> None:
    connection = connection_of(cursor)
    connection.command(connection.begin)
    connection.is_durable = True


def _commit(connection: BoundedConnection) -> None:
    connection.command(b"COMMIT" if connection.is_durable else b"SET LOCAL synchronous_commit = off; COMMIT")


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
