"""The ways into the database. All are bounded in time and READ COMMITTED, and raise one error when it is away.

Each way in has connections of its own, so that no kind of request can take the connections of another kind. Frequent
statements are written with SQLAlchemy, `compiled` once, and sent by psycopg. SQLAlchemy's own execution costs several
times as much as the statement. Choose a way in:

- `keep_alives`, `teardowns`, `setup_batches`: batches of a group commit (`srm.playback.lanes`);
- `hot`: one statement that may be lost in a crash of the database because the client repeats it, such as a keep-alive;
- `durable`: one statement that must survive a crash;
- `request()`: several statements of a client's request in one durable transaction;
- `setups`: the transactions of setups, which may have to wait for the lock of their account;
- `keys`: the statement that finds the operator of an Operator-Key;
- `transaction()`, `orm()`: everything that is not done thousands of times a second, with plain SQLAlchemy;
- `monitoring()`: a transaction for /readyz and /metrics;
- `connection()`: several transactions on one connection, with settings and temporary tables that last.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import psycopg
from psycopg.types.string import TextLoader
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session

from srm.db.breaker import CircuitBreaker
from srm.db.connection import (
    CONNECT_FAILURES,
    CONNECT_SECONDS,
    CONNECT_TIMEOUT_SECONDS,
    NEVER,
    BoundedConnection,
    ConnectionPool,
    Cursor,
    InstantLoader,
    Slots,
    conninfo,
    is_hung_up,
    sqlalchemy_url,
)
from srm.deadline import DEADLINE, GRACE_SECONDS, MAX_QUEUE_SECONDS, STATEMENT_TIMEOUT_SECONDS
from srm.errors import CommandError

LANE_CONNECTIONS = 1
"""Connections of the lane of keep-alives, and of the lane of teardowns (`srm.playback.lanes`)."""
SETUP_LANE_CONNECTIONS = 2
"""Connections of the lane of setups: one batch is decided while another one waits for the disk."""
HOT_CONNECTIONS = 3
DURABLE_CONNECTIONS = 3
SETUP_CONNECTIONS = 6
KEY_CONNECTIONS = 1
OPERATOR_CONNECTIONS = 3
MONITORING_CONNECTIONS = 2
CONNECTIONS = (
    2 * LANE_CONNECTIONS
    + SETUP_LANE_CONNECTIONS
    + HOT_CONNECTIONS
    + DURABLE_CONNECTIONS
    + SETUP_CONNECTIONS
    + KEY_CONNECTIONS
    + OPERATOR_CONNECTIONS
    + MONITORING_CONNECTIONS
)
"""Most connections of one `Database`. Each pool opens a connection when a request needs it."""


CONNECTIONS_ALLOWED = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
     - coalesce(current_setting('reserved_connections', true)::int, 0)
"""


class Database:
    """The connections of one process. They are opened when needed, and stay open."""

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
            # The server must release the locks of a host that died in the middle of a transaction.
            "idle_in_transaction_session_timeout": milliseconds,
        }
        self._settings = {**limits, "default_transaction_isolation": r"read\ committed", "timezone": "UTC"}
        self._limits = "; ".join(f"SET LOCAL {name} = {value}" for name, value in limits.items()).encode()
        self._statement_timeout_seconds = statement_timeout_seconds
        self._breaker = CircuitBreaker()
        # Otherwise the server would plan each batch of one anew: it looks so much cheaper than the average batch.
        planned_once = {"plan_cache_mode": "force_generic_plan"}
        self.keep_alives = self._pool(LANE_CONNECTIONS, synchronous_commit="off", **planned_once)
        self.teardowns = self._pool(LANE_CONNECTIONS, **planned_once)
        self.setup_batches = self._pool(SETUP_LANE_CONNECTIONS, **planned_once)
        self.hot = self._pool(HOT_CONNECTIONS, synchronous_commit="off")
        """Commits do not wait for the disk. A crash of the database may lose the last fraction of a second."""
        self.durable = self._pool(DURABLE_CONNECTIONS)
        """Commits wait for the disk."""
        self.setups = self._pool(SETUP_CONNECTIONS)
        self.keys = self._pool(KEY_CONNECTIONS)
        self._operators = Slots(OPERATOR_CONNECTIONS)
        self._monitoring = Slots(MONITORING_CONNECTIONS)
        self._engine = create_engine(
            self.url,
            creator=self._connect,
            isolation_level="READ COMMITTED",
            pool_size=OPERATOR_CONNECTIONS + MONITORING_CONNECTIONS,
            max_overflow=0,
            use_native_hstore=False,
        )
        event.listen(self._engine, "checkout", _check_out)
        event.listen(self._engine, "begin", self._set_limits)

    def _pool(self, size: int, **options: str) -> ConnectionPool:
        timeout_seconds = self._statement_timeout_seconds + GRACE_SECONDS
        return ConnectionPool(lambda: self._connect(**options), self._breaker, timeout_seconds, size)

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
        connection.wait_cooperatively()
        connection.adapters.register_loader("inet", TextLoader)  # addresses are only compared and shown
        connection.adapters.register_loader("timestamptz", InstantLoader)
        connection.statement_timeout_seconds = self._statement_timeout_seconds
        connection.deadline = DEADLINE.get()
        try:
            self._look_for_pooler(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _look_for_pooler(self, connection: BoundedConnection) -> None:
        """Detect a pooler: another process answers than the one the connection names, and the settings are lost."""
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
        """Run the block in a READ COMMITTED transaction; commit it to disk, or roll back on an exception.

        Raises DependencyUnavailable when the database is away at any point, or no connection becomes free.
        """
        with self._transaction(self._operators) as db:
            yield db

    @contextmanager
    def monitoring(self) -> Iterator[Connection]:
        """Run the block in a `transaction()` on a connection that only /readyz and /metrics use."""
        with self._transaction(self._monitoring) as db:
            yield db

    @contextmanager
    def _transaction(self, slots: Slots) -> Iterator[Connection]:
        slots.take(min(time.monotonic() + MAX_QUEUE_SECONDS, DEADLINE.get() or NEVER))
        try:
            with self._breaker, self._engine.begin() as db:
                yield db
        finally:
            slots.give_back()

    @contextmanager
    def orm(self) -> Iterator[Session]:
        """Run the block in a `transaction()`, with an ORM session of SQLAlchemy."""
        with self.transaction() as connection, Session(connection) as db:
            yield db

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Open a connection for several transactions. Its settings and temporary tables last as long as the block.

        No one else uses the connection before or afterwards. Raises CommandError behind a pooler, which offers no such
        connection, and DependencyUnavailable when the database is away.
        """
        with self._breaker, self._engine.connect() as db:
            db.detach()
            if cast("BoundedConnection", db.connection.dbapi_connection).is_pooled:
                raise CommandError(
                    "this command needs a direct connection, but SRM_DATABASE_URL names a pooler: "
                    "set it to PostgreSQL itself"
                )
            yield db

    def connections_allowed(self) -> int | None:
        """Return the number of connections that the server allows to ordinary roles; None behind a pooler."""
        with self.transaction() as db:
            if cast("BoundedConnection", db.connection.dbapi_connection).is_pooled:
                return None
            allowed: int = db.exec_driver_sql(CONNECTIONS_ALLOWED).scalar_one()
            return allowed

    def request(self, spent_seconds: float = 0, account: str | None = None) -> AbstractContextManager[Cursor]:
        """Run the block in a durable transaction of a client's request; `ConnectionPool.request` describes it."""
        return self.durable.request(spent_seconds, account)

    def dispose(self) -> None:
        """Close all connections. No one may use the database any more."""
        self._engine.dispose()
        for pool in (
            self.keep_alives,
            self.teardowns,
            self.setup_batches,
            self.hot,
            self.durable,
            self.setups,
            self.keys,
        ):
            pool.close()


def _check_out(connection: BoundedConnection, *_: object) -> None:
    if is_hung_up(connection):
        raise DisconnectionError  # SQLAlchemy opens another one
    connection.deadline = DEADLINE.get()
