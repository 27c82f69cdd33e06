"""Transactions in which only one reaper works, however many run. An advisory lock decides which one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection, func, literal_column, select, true

from srm.db.connection import Cursor
from srm.db.database import Database
from srm.db.sql import compiled, constant, reader

ADVISORY_LOCK = 0x53524D5245  # "SRMRE"


class LockAttempt(NamedTuple):
    """Outcome of TAKE_LOCK; `is_taken` is False when another reaper has the lock."""

    is_taken: bool
    synchronous_commit: str
    """Setting of the transaction from now on."""


TAKE_LOCK = select(
    func.pg_try_advisory_xact_lock(literal_column(str(ADVISORY_LOCK))).label("is_taken"),
    func.set_config(constant("synchronous_commit"), constant("off"), true()).label("synchronous_commit"),
)
TAKE_LOCK_COMPILED = compiled(TAKE_LOCK)
read_lock_attempt = reader(TAKE_LOCK, LockAttempt)


class Busy(Exception):
    """Another reaper is at work."""


class Stopping(Exception):
    """The reaper was told to stop, and begins nothing new."""


class Exclusive:
    """The database as one reaper may use it: in exclusive transactions, until `stop()`.

    The lock lasts as long as the transaction. When a reaper dies, however it dies, the next one gets the lock. Commits
    do not wait for the disk: work that a crash of the database undoes is done again.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Begin no further transaction. The one in progress goes on."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        """True after `stop()`."""
        return self._stopped.is_set()

    def rest(self, seconds: float) -> None:
        """Sleep; `stop()` ends the sleep."""
        self._stopped.wait(seconds)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run the block in an exclusive transaction, for SQLAlchemy.

        Raises Busy when another reaper is at work, Stopping after `stop()`, DependencyUnavailable when the database is
        away.
        """
        self._check_not_stopped()
        with self._database.transaction() as db:
            if not db.execute(TAKE_LOCK).one().is_taken:
                raise Busy
            yield db

    @contextmanager
    def request(self) -> Iterator[Cursor]:
        """Run the block in an exclusive transaction, for `compiled` statements, at a quarter of the cost.

        Raises the errors of `transaction`.
        """
        self._check_not_stopped()
        with self._database.request() as db:
            (row,) = db.execute(TAKE_LOCK_COMPILED).fetchall()
            if not read_lock_attempt(row).is_taken:
                raise Busy
            yield db

    def _check_not_stopped(self) -> None:
        if self.is_stopped:
            raise Stopping
