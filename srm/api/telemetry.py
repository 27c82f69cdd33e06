"""What is seen of each request from outside: numbers for Prometheus, and a line of the log where it is worth one.

Everything in `answered` is paid by every keep-alive. No label has more values than the code has words: never an id, and
of what a client makes up, as paths and methods, only that it did.
"""

from collections.abc import Callable, Iterable
from random import random
from time import perf_counter
from typing import Any
from uuid import UUID
from wsgiref.types import WSGIEnvironment

import structlog
from prometheus_client import Counter, Histogram

from srm import logs
from srm.errors import SessionLimitReached, SrmError
from srm.metrics import REGISTRY
from srm.playback.model import EndedSession

log = structlog.get_logger("srm.api")

BEGAN_AT = "srm.began_at"
"""Key of the WSGI environment: when the request came in, by `perf_counter()`."""

PRINCIPAL = "srm.principal"
"""The same: which client asks, once that is proved."""

OPERATOR = "srm.operator"
"""The same: which operator asks."""

SESSION = "srm.session"
"""The same: the session that was set up."""

ERROR_CODE = "srm.error_code"
"""The same: errorCode of the answer, if it has one."""

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

REQUESTS = Histogram(
    "srm_request_seconds",
    "Seconds that requests took, by route, method and outcome: errorCode, or else the class of the HTTP status",
    ["route", "method", "outcome"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.3, 1, 3),
    registry=REGISTRY,
)
WAITED = Histogram(
    "srm_thread_wait_seconds",
    "Seconds that requests waited for a thread of their process",
    buckets=(0.001, 0.005, 0.025, 0.1, 0.3, 1, 3),
    registry=REGISTRY,
)
UNREADABLE = Counter("srm_unreadable_requests", "Requests that the HTTP server could not read", registry=REGISTRY)
SETUPS = Counter("srm_setups", "Setups that were admitted, repeats included", registry=REGISTRY)
REFUSALS = Counter(
    "srm_refusals",
    "Setups that were refused by a business rule, or would have been (observed), by errorCode and, of SRM-0006, rule",
    ["error_code", "rule", "observed"],
    registry=REGISTRY,
)
ENDED = Counter(
    "srm_sessions_ended",
    "Sessions that requests have ended, by reason; expired: a request found them lapsed before the reaper did",
    ["reason"],
    registry=REGISTRY,
)

_observers: dict[tuple[str | None, str, str], Callable[[float], None]] = {}
"""What counts and times the requests of a route, method, and errorCode or HTTP status."""


def answered(environ: WSGIEnvironment, status: str, log_sample: float) -> None:
    """Count and time a request whose answer begins; log that share of those that leave no other line."""
    seconds = perf_counter() - environ[BEGAN_AT]
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)  # Flask has not seen it, or knows no such path
    route = None if rule is None else rule.rule
    method = environ["REQUEST_METHOD"]
    if route is None and method not in METHODS:
        method = "other"
    error_code = environ.get(ERROR_CODE)
    key = (route, method, error_code or status)
    observe = _observers.get(key)
    if observe is None:
        labels = (route or "none", method, error_code or f"{status[0]}xx")
        observe = _observers[key] = REQUESTS.labels(*labels).observe
    observe(seconds)
    if error_code is None and random() < log_sample:
        log.info("request", **facts(environ, int(status[:3])))


def facts(environ: WSGIEnvironment, status: int) -> dict[str, object]:
    """What a log line tells of a request: all that is known at that moment, and nothing that is secret."""
    found: dict[str, object] = {
        "method": environ["REQUEST_METHOD"] if environ["REQUEST_METHOD"] in METHODS else "other",
        "route": None,
        "status": status,
        "duration_ms": round((perf_counter() - environ[BEGAN_AT]) * 1000, 2),
    }
    request: Any = environ.get("werkzeug.request")
    named: dict[str, Any] = {}
    if getattr(request, "url_rule", None) is not None:
        found["route"] = request.url_rule.rule
        named = request.view_args or {}
    if (principal := environ.get(PRINCIPAL)) is not None:
        found.update(account=principal.account_id, device=principal.device_id)
    if (operator := environ.get(OPERATOR)) is not None:
        found.update(operator=operator.name)
        found.update({name: named[f"{name}_id"] for name in ("account", "device") if f"{name}_id" in named})
    session = environ.get(SESSION) or _uuid(named.get("session_id"))
    if session is not None:
        found["session"] = str(session)
    return found


def _uuid(text: str | None) -> UUID | None:
    """The id in a path. A client may have put anything there; only an id goes to the log."""
    try:
        return None if text is None else UUID(text)
    except ValueError:
        return None


def refused(refusal: SrmError, *, observed: bool = False) -> None:
    """Count a setup that a business rule refuses, or would."""
    rule = refusal.rule.partition(":")[0] if isinstance(refusal, SessionLimitReached) else ""  # not of which group
    REFUSALS.labels(refusal.error_code, rule, "true" if observed else "false").inc()


def ended(sessions: Iterable[EndedSession], ended_for: str | None = None) -> None:
    """Count and log sessions that have been ended, once that is committed; `ended_for`: the device that needed room."""
    for session in sessions:
        for_another = {"ended_for": ended_for} if session.end_reason in ("evicted", "replaced") else {}
        session_ended(session.account_id, session.device_id, session.session_id, session.end_reason, **for_another)


def session_ended(account: str, device: str, session: UUID, end_reason: str, **more: object) -> None:
    """The same, for one."""
    ENDED.labels(end_reason).inc()
    logs.session_ended(log, account, device, session, end_reason, **more)
