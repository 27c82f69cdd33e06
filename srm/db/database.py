"""Connections to PostgreSQL: bounded in time, READ COMMITTED, and one kind of error when it is away.

The statements of a request are written with SQLAlchemy, `compiled` once, and sent by psycopg on connections that
the thread keeps: SQLAlchemy's own way to execute costs several times what the statement does. The ways in:

- `hot`: single statements that may be lost in a crash of the database, as they come again: the keep-alive;
- `durable`: single statements that last;
- `request()`: several statements of a request as one transaction that lasts;
- `transaction()`, `orm()`: all that is not done by the thousand a second; SQLAlchemy as everybody knows it;
- `connection()`: several of these, one after the other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    BoundedConnection,
    ConnectionPool,
    Cursor,
    InstantLoader,
    connection_of,
    conninfo,
    is_hung_up,
    sqlalchemy_url,
)
from srm.deadline import ANSWER_BY, SILENCE_SECONDS, STATEMENT_TIMEOUT_SECONDS
from srm.errors import SrmError, StartupError


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
        self._silence = CircuitBreaker()
        patience = statement_timeout_seconds + SILENCE_SECONDS
        self.hot = ConnectionPool(lambda: self._connect(synchronous_commit="off"), self._silence, patience)
        """For what may be lost in a crash of the database, as it comes again: nothing waits for the disk."""
        self.durable = ConnectionPool(self._connect, self._silence, patience)
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


def _check_out(connection: BoundedConnection, *_: object) -> None:
    if is_hung_up(connection):
        raise DisconnectionError  # the pool opens another one
    connection.answer_by = ANSWER_BY.get()
