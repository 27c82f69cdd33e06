"""The circuit breaker in front of the database, and the errors that mean it is away."""

import threading
import time

import psycopg
from prometheus_client import Counter
from sqlalchemy.exc import DBAPIError

from srm.deadline import DEADLINE
from srm.errors import DependencyUnavailable, SrmError
from srm.metrics import REGISTRY

UNAVAILABLE_SQLSTATES = (
    "08",  # connection exceptions
    "25P03",  # idle in transaction for too long: this process was frozen
    "25006",  # read-only: the primary has become a standby
    "40",  # rolled back by the server: deadlock, serialization failure
    "53",  # out of connections, memory or disk space
    "55P03",  # lock timeout
    "57",  # statement timeout, shutdown, crash, startup
    "58",  # system error
)
"""SQLSTATE prefixes of errors after which a retry may succeed (PostgreSQL manual, appendix A)."""

OPEN_SECONDS = 1
"""Time that the breaker stays open after the server went silent. Then one request at a time may try again."""

NOT_ASKED = Counter(
    "srm_database_not_asked",
    "Times that the database was not asked, because it had just been silent",
    registry=REGISTRY,
)


class ServerSilent(psycopg.OperationalError):
    """The server did not answer within its own statement timeout and the grace after it."""


class CircuitBreaker:
    """Context manager around everything that is asked of the server; safe to share between threads.

    Raises DependencyUnavailable when the server is away, when the breaker is open, and when the request is past its
    deadline. A silent server opens the breaker: without it, each request would wait for its own timeout. After
    OPEN_SECONDS the breaker is half open and lets one request at a time through. Any answer closes it.
    """

    def __init__(self) -> None:
        self._open_until: float | None = None
        self._probe = threading.Lock()
        self._prober: int | None = None

    def __enter__(self) -> None:
        deadline = DEADLINE.get()
        if deadline is not None and time.monotonic() >= deadline:
            raise DependencyUnavailable from TimeoutError("the request is past its deadline")
        open_until = self._open_until  # read once: another thread may clear it meanwhile
        if open_until is None:
            return
        if time.monotonic() < open_until or not self._probe.acquire(blocking=False):
            NOT_ASKED.inc()
            raise DependencyUnavailable
        self._prober = threading.get_ident()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, SrmError):
            self._open_until = None
        elif isinstance(error, DBAPIError | psycopg.Error):
            cause = error.orig if isinstance(error, DBAPIError) else error
            is_silent = isinstance(cause, ServerSilent | psycopg.errors.ConnectionTimeout)
            self._open_until = time.monotonic() + OPEN_SECONDS if is_silent else None
        if self._prober == threading.get_ident():
            self._prober = None
            self._probe.release()
        if isinstance(error, DBAPIError | psycopg.Error) and is_unavailable(error):
            raise DependencyUnavailable from error


def is_unavailable(error: Exception) -> bool:
    """True when the error says that the database cannot be used now; False when the statement is wrong."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None:  # raised by the driver, not by the server
        return isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)
    return cause.sqlstate.startswith(UNAVAILABLE_SQLSTATES)


def is_timeout(error: DependencyUnavailable) -> bool:
    """True when the database answers, and only this statement or its lock took too long."""
    cause = getattr(error.__cause__, "orig", error.__cause__)
    return isinstance(cause, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable)
