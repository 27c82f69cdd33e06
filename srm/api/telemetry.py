"""Telemetry of requests: metrics for Prometheus, and log lines.

Every keep-alive pays for `record_request`. Labels of metrics take few values. They have no ids, and nothing that a
client makes up, such as a path or a method that does not exist.
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
from srm.playback.statements import OwnSession

log = structlog.get_logger("srm.api")

# Keys of the WSGI environment, for facts about a request.

BEGAN_AT = "srm.began_at"
"""Time at which the request came in, by `perf_counter()`."""

PRINCIPAL = "srm.principal"
"""The client that asks, once its token is verified."""

OPERATOR = "srm.operator"
"""The operator who asks, once his key is verified."""

SESSION = "srm.session"
"""Id of the session that was set up; of each session on the lane (`srm.api.v1.client.lane`)."""

ROUTE = "srm.route"
"""Rule of the route of a request that the lane has answered."""

ERROR_CODE = "srm.error_code"
"""errorCode of the answer, if it has one."""

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
    "Seconds that the event loop of a process was late, measured twice a second; its requests wait as long",
    buckets=(0.001, 0.005, 0.025, 0.1, 0.3, 1, 3),
    registry=REGISTRY,
)
UNREADABLE = Counter("srm_unreadable_requests", "Requests that the HTTP server could not read", registry=REGISTRY)
SETUPS = Counter("srm_setups", "Setups that were admitted, repeats included", registry=REGISTRY)
DENIALS = Counter(
    "srm_refusals",
    "Setups that were denied by a business rule, or would have been (observed), by errorCode and, of SRM-0006, rule",
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
"""Functions that count and time a request, by route, method, and errorCode or HTTP status.

To find the labels of the histogram for each request costs more than all the rest of `record_request`.
"""


def record_request(environ: WSGIEnvironment, status: str, log_sample: float) -> None:
    """Count and time a request whose answer begins.

    `log_sample`: share from 0 to 1 of the requests to log, of those that have no errorCode and so no other log line.
    """
    seconds = perf_counter() - environ[BEGAN_AT]
    route = environ.get(ROUTE)
    if route is None:
        # There is no rule when Flask has not seen the request, or knows no such path.
        rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
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
        log.info("request", **facts_of(environ, int(status[:3])))


def facts_of(environ: WSGIEnvironment, status: int) -> dict[str, object]:
    """Return the members of a log line about a request, as far as they are known now. None of them is secret."""
    facts: dict[str, object] = {
        "method": environ["REQUEST_METHOD"] if environ["REQUEST_METHOD"] in METHODS else "other",
        "route": environ.get(ROUTE),
        "status": status,
        "duration_ms": round((perf_counter() - environ[BEGAN_AT]) * 1000, 2),
    }
    request: Any = environ.get("werkzeug.request")
    in_path: dict[str, Any] = {}
    if getattr(request, "url_rule", None) is not None:
        facts["route"] = request.url_rule.rule
        in_path = request.view_args or {}
    if (principal := environ.get(PRINCIPAL)) is not None:
        facts.update(account=principal.account_id, device=principal.device_id)
    if (operator := environ.get(OPERATOR)) is not None:
        facts.update(operator=operator.name)
        facts.update({name: in_path[f"{name}_id"] for name in ("account", "device") if f"{name}_id" in in_path})
    session = environ.get(SESSION) or _uuid(in_path.get("session_id"))
    if session is not None:
        facts["session"] = str(session)
    return facts


def _uuid(text: str | None) -> UUID | None:
    """Return the session id in a path; None where the client has put something else there, which is not logged."""
    try:
        return None if text is None else UUID(text)
    except ValueError:
        return None


def count_denial(denial: SrmError, *, observed: bool = False) -> None:
    """Count a setup that a business rule denied, or with `observed` would have denied."""
    # Without the name of the group in "device_group:mobile": a label takes few values.
    rule = denial.rule.partition(":")[0] if isinstance(denial, SessionLimitReached) else ""
    DENIALS.labels(denial.error_code, rule, "true" if observed else "false").inc()


def record_ended_sessions(sessions: Iterable[EndedSession], ended_for: str | None = None) -> None:
    """Count and log sessions that a committed transaction has ended. `ended_for`: device whose setup needed room."""
    for session in sessions:
        for_another = {"ended_for": ended_for} if session.end_reason in ("evicted", "replaced") else {}
        record_ended_session(
            session.account_id, session.device_id, session.session_id, session.end_reason, **for_another
        )


def record_teardown(session: OwnSession) -> None:
    """Count and log a session that its client has torn down."""
    record_ended_session(session.account_id, session.device_id, session.session_id, "teardown")


def record_ended_session(account: str, device: str, session: UUID | str, end_reason: str, **more: object) -> None:
    """Count and log one ended session; `more` are further members of the log line."""
    ENDED.labels(end_reason).inc()
    logs.session_ended(log, account, device, session, end_reason, **more)
