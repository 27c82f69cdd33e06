"""The circuit breaker in front of a silent server, and which errors mean that the database is away."""

import threading
import time

import psycopg
from prometheus_client import Counter
from sqlalchemy.exc import DBAPIError

from srm.deadline import ANSWER_BY, SILENCE_SECONDS
from srm.errors import DependencyUnavailable, SrmError
from srm.metrics import REGISTRY

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


NOT_ASKED = Counter(
    "srm_database_not_asked",
    "Times that the database was not asked, because it had just been silent",
    registry=REGISTRY,
)


class CircuitBreaker:
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
