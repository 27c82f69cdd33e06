"""Connections to PostgreSQL: bounded in time, READ COMMITTED, and one kind of error when it is away.

The statements of a request are written with SQLAlchemy, `compiled` once, and sent by psycopg on connections that
the thread keeps: SQLAlchemy's own way to execute costs several times what the statement does. The ways in:

- `hot`: single statements that may be lost in a crash of the database, as they come again: the keep-alive;
- `durable`: single statements that last;
- `request()`: several statements of a request as one transaction that lasts;
- `transaction()`, `orm()`: all that is not done by the thousand a second; SQLAlchemy as everybody knows it;
- `connection()`: several of these, one after the other.
"""

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeAlias, TypeVar, cast
from weakref import WeakSet

import psycopg
from prometheus_client import Counter, Histogram
from psycopg import generators
from psycopg.abc import Buffer, PQGen
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.string import TextLoader
from sqlalchemy import ClauseElement, ColumnElement, Connection, Text, create_engine, event, literal_column
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.orm import Session

from srm.deadline import ANSWER_BY, SILENCE_SECONDS, STATEMENT_TIMEOUT_SECONDS
from srm.errors import DependencyUnavailable, SrmError, StartupError
from srm.metrics import REGISTRY

Result = TypeVar("Result")
Cursor: TypeAlias = psycopg.Cursor[Any]
Executor: TypeAlias = "Cursor | ThreadConnections"
"""Has `execute(statement, parameters)`."""

CONNECT_TIMEOUT_SECONDS = 2
"""To one server; the least that libpq takes."""

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


CONNECT_SECONDS = Histogram(
    "srm_database_connect_seconds",
    "Seconds that a thread waited for a new connection to the database",
    buckets=(0.005, 0.01, 0.025, 0.1, 0.3, 1, 3),
    registry=REGISTRY,
)
CONNECT_FAILURES = Counter(
    "srm_database_connect_failures", "Connections to the database that could not be had", registry=REGISTRY
)
NOT_ASKED = Counter(
    "srm_database_not_asked",
    "Times that the database was not asked, because it had just been silent",
    registry=REGISTRY,
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


class Silence:
    """A context manager around all that is asked of the server: DependencyUnavailable when it is away, or time is over.

    Once the server has gone silent, nobody asks it for SILENCE_SECONDS, and then one thread at a time: requests must
    not queue up to find it out one by one.
    """

    def __init__(self) -> None:
        self._until: float | None = None
        self._one_asks = threading.Lock()
        self._asker: int | None = None

    def __enter__(self) -> None:
        answer_by = ANSWER_BY.get()
        if answer_by is not None and time.monotonic() >= answer_by:
            raise DependencyUnavailable from TimeoutError("the request has waited long enough")
        until = self._until  # read once: another thread may clear it meanwhile
        if until is None:
            return
        if time.monotonic() < until or not self._one_asks.acquire(blocking=False):
            NOT_ASKED.inc()
            raise DependencyUnavailable
        self._asker = threading.get_ident()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, SrmError):
            self._until = None
        elif isinstance(error, DBAPIError | psycopg.Error):
            cause = error.orig if isinstance(error, DBAPIError) else error
            is_silent = isinstance(cause, psycopg.errors._WaitTimeout | psycopg.errors.ConnectionTimeout)
            self._until = time.monotonic() + SILENCE_SECONDS if is_silent else None
        if self._asker == threading.get_ident():
            self._asker = None
            self._one_asks.release()
        if isinstance(error, DBAPIError | psycopg.Error) and is_unavailable(error):
            raise DependencyUnavailable from error


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


class ThreadConnections:
    """A connection for each thread, kept open."""

    def __init__(self, connect: Callable[[], BoundedConnection], silence: Silence, patience_seconds: float) -> None:
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
        limits = {
            "statement_timeout": milliseconds,
            "lock_timeout": milliseconds,
            # A host that dies in the middle of a transaction must not keep its locks.
            "idle_in_transaction_session_timeout": milliseconds,
        }
        self._settings = {**limits, "default_transaction_isolation": r"read\ committed", "timezone": "UTC"}
        self._limits = "; ".join(f"SET LOCAL {name} = {value}" for name, value in limits.items()).encode()
        self._statement_timeout_seconds = statement_timeout_seconds
        self._silence = Silence()
        patience = statement_timeout_seconds + SILENCE_SECONDS
        self.hot = ThreadConnections(lambda: self._connect(synchronous_commit="off"), self._silence, patience)
        """For what may be lost in a crash of the database, as it comes again: nothing waits for the disk."""
        self.durable = ThreadConnections(self._connect, self._silence, patience)
        """For what is on disk when it has been executed."""
        self._engine = create_engine(
            self.url,
            creator=self._connect,
            isolation_level="READ COMMITTED",
            pool_size=0,  # no limit; the number of threads is one
            use_native_hstore=False,
        )
        event.listen(self._engine, "checkout", _check_out)
        event.listen(self._engine, "begin", self._set_limits)

    def _connect(self, **options: Any) -> BoundedConnection:
        settings = {**self._settings, **options}
        with CONNECT_FAILURES.count_exceptions(psycopg.Error), CONNECT_SECONDS.time():
            connection = BoundedConnection.connect(
                conninfo(self.url),
                application_name=self._application_name,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
            )
        connection.adapters.register_loader("inet", TextLoader)  # an address is compared, and shown; nothing else
        connection.adapters.register_loader("timestamptz", InstantLoader)
        connection.statement_timeout_seconds = self._statement_timeout_seconds
        connection.answer_by = ANSWER_BY.get()
        try:
            self._look_for_pooler(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _look_for_pooler(self, connection: BoundedConnection) -> None:
        """Who has a pooler in between is not answered by the process that it connected to, nor has the settings."""
        connection.autocommit = True
        ((process,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
        connection.autocommit = False
        if process != connection.info.backend_pid:
            connection.is_pooled = True
            connection.prepare_threshold = None
            connection.begin = b"BEGIN ISOLATION LEVEL READ COMMITTED; " + self._limits

    def _set_limits(self, db: Connection) -> None:
        connection = cast("BoundedConnection", db.connection.dbapi_connection)
        if connection.is_pooled:
            connection.execute(self._limits)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A READ COMMITTED transaction that is on disk when the block has ended without an exception.

        DependencyUnavailable when the database is away, before, during or after.
        """
        with self._silence, self._engine.begin() as db:
            yield db

    @contextmanager
    def orm(self) -> Iterator[Session]:
        """The same, for SQLAlchemy's ORM."""
        with self.transaction() as connection, Session(connection) as db:
            yield db

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection for several transactions, one after the other; otherwise as above.

        Nobody else has it before or afterwards: its settings and temporary tables go with it. StartupError where there
        is a pooler in between, which gives no such thing.
        """
        with self._silence, self._engine.connect() as db:
            db.detach()
            if cast("BoundedConnection", db.connection.dbapi_connection).is_pooled:
                raise StartupError(
                    "this needs a connection of its own, and SRM_DATABASE_URL leads to a pooler: name PostgreSQL itself"
                )
            yield db

    @contextmanager
    def request(self, spent_seconds: float = 0, after_commit: Callable[[], object] = lambda: None) -> Iterator[Cursor]:
        """A transaction on the thread's own connection, for `compiled` statements; otherwise as above.

        The database is waited for so much less as the request has waited for something else: `spent_seconds`.

        A refusal (SrmError) is committed too: it is an answer, and what was found on the way to it, such as
        lapsed sessions, stays found. It does not wait for the disk, since nothing was promised. (A rollback
        would also make psycopg forget all prepared statements.) Any other exception rolls back. `after_commit` is
        called once it is committed, in either case.
        """
        with self._silence:
            cursor = self.durable.begin(spent_seconds)
            connection = connection_of(cursor)
            try:
                yield cursor
            except SrmError:
                connection.command(b"SET LOCAL synchronous_commit = off; COMMIT")
                after_commit()
                raise
            except BaseException:
                with suppress(psycopg.Error):
                    connection.command(b"ROLLBACK")
                raise
            connection.command(b"COMMIT")
            after_commit()

    def dispose(self) -> None:
        """Close all connections. No thread may use one any more."""
        self._engine.dispose()
        self.hot.close()
        self.durable.close()


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


def _check_out(connection: BoundedConnection, *_: object) -> None:
    if is_hung_up(connection):
        raise DisconnectionError  # the pool opens another one
    connection.answer_by = ANSWER_BY.get()
