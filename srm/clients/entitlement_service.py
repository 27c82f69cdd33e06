"""Client of the operator's entitlement service, which says what an account may watch (docs/entitlement-service.json).

A setup asks the service before it locks anything. Within the timeout the setup has an answer, or knows what to do
without one. The service cannot slow down anything else:

- one deadline ends the whole exchange, however slowly the bytes come (srm.clients.bounded_http);
- the number of concurrent calls is limited (CALLS_AT_ONCE);
- after several failures in a row a circuit breaker keeps calls away for a while (srm.clients.breaker).
"""

import base64
import json
import math
import threading
import time
from typing import Annotated, Literal, TypeAlias
from uuid import uuid4

import httpcore
import httpx
import structlog
from cachetools import TLRUCache
from prometheus_client import Counter, Histogram
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srm.clients.bounded_http import BoundedBackend, ExchangeDeadline
from srm.clients.breaker import FailureBreaker
from srm.config import OnFailure
from srm.deadline import DEADLINE
from srm.errors import ContentAccessDenied, DependencyUnavailable, SrmError
from srm.logs import CORRELATION_ID
from srm.metrics import REGISTRY
from srm.playback.entitlements import Access
from srm.playback.model import ContentRef, Principal
from srm.values import Text, Whole

log = structlog.get_logger("srm.entitlement_service")

MAX_ANSWER_BYTES = 64 * 1024
"""Longest body of an answer that is read."""

MAX_KEEP_SECONDS = 3600
"""Longest time for which an answer is cached, whatever its `keepForSeconds`."""

CACHED_ANSWERS = 100_000
"""Most answers in the cache of one process; about 110 MB."""

CALLS_AT_ONCE = 32
"""Most concurrent calls of the service in one process."""

IDLE_SECONDS = 30
"""An unused connection is closed after this time."""

ANSWERS = Counter(
    "srm_entitlement_answers",
    "Answers on content access: granted or denied, by the service itself or from what was kept of it",
    ["answer", "source"],
    registry=REGISTRY,
)
FAILURES = Counter(
    "srm_entitlement_failures",
    "Setups without an answer on content access, by kind of failure, and what was done then: deny, allow, unavailable",
    ["kind", "answered_as"],
    registry=REGISTRY,
)
SECONDS = Histogram(
    "srm_entitlement_seconds",
    "Seconds that calls of the entitlement service took, with an answer or without",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2),
    registry=REGISTRY,
)
BROKEN = (httpcore.NetworkError, httpcore.ProtocolError)
"""The connection was refused or broke, or the answer is no HTTP."""

Question: TypeAlias = tuple[str, str, str, str]
"""Account, device, content type and content: the key of the cache."""

FailureKind = Literal["timeout", "connection", "answer", "busy", "left alone"]


class Answer(BaseModel):
    """Body of an answer of the service."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    granted: bool
    reason: Text | None = None
    keepForSeconds: Annotated[int, Field(ge=0), Whole] = 0  # noqa: N815 the name is the contract's


class NoAnswer(Exception):
    """The service gave no answer. `kind` is the label of the metric; the message is for the log."""

    def __init__(self, kind: FailureKind, cause: str) -> None:
        self.kind = kind
        super().__init__(cause)


class EntitlementService:
    """Asks the service, caches its answers as long as they allow, and decides without them as configured.

    Safe to share between threads.
    """

    def __init__(self, url: str, timeout_seconds: float, on_failure: OnFailure) -> None:
        parts = httpx.URL(url)
        self._url = httpcore.URL(scheme=parts.raw_scheme, host=parts.raw_host, port=parts.port, target=parts.raw_path)
        self._headers = [("Content-Type", "application/json"), ("Accept", "application/json")]
        if parts.userinfo:
            credentials = base64.b64encode(f"{parts.username}:{parts.password}".encode())
            self._headers.append(("Authorization", f"Basic {credentials.decode()}"))
        self._timeout_seconds = timeout_seconds
        self._on_failure = on_failure
        self._deadline = ExchangeDeadline()
        self._pool = httpcore.ConnectionPool(
            # One context for all: reading the certificates takes longer than connecting.
            ssl_context=httpcore.default_ssl_context() if parts.scheme == "https" else None,
            max_connections=CALLS_AT_ONCE,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=BoundedBackend(self._deadline),
        )
        self._calls = threading.Semaphore(CALLS_AT_ONCE)
        self._breaker = FailureBreaker(timeout_seconds)
        self._cache: TLRUCache[Question, Answer] = TLRUCache(CACHED_ANSWERS, _cached_until, time.monotonic)
        self._cache_lock = threading.Lock()

    def access_to(self, principal: Principal, content: ContentRef) -> Access:
        """Return what the service says, or what `on_failure` says without an answer. Never raises."""
        question = (principal.account_id, principal.device_id, content.content_type, content.content_id)
        with self._cache_lock:
            answer = self._cache.get(question)
        if answer is not None:
            return Access(denial=_denial(answer, "cache"))
        began_at = time.monotonic()
        if began_at >= (DEADLINE.get() or math.inf):
            return Access(denial=DependencyUnavailable())
        try:
            answer = self._ask(principal, content)
        except NoAnswer as failure:
            denial = self._decide_without(failure, principal, content)
            return Access(denial=denial, spent_seconds=self._spent_since(began_at))
        if answer.keepForSeconds:
            with self._cache_lock:
                self._cache[question] = answer
        return Access(denial=_denial(answer, "service"), spent_seconds=self._spent_since(began_at))

    def _spent_since(self, began_at: float) -> float:
        """Return the seconds since `began_at`, at most the timeout, so that time for the database is left."""
        return min(time.monotonic() - began_at, self._timeout_seconds)

    def _decide_without(self, failure: NoAnswer, principal: Principal, content: ContentRef) -> SrmError | None:
        """Return the denial or error for a setup without an answer, None to admit it. Count and log the failure."""
        FAILURES.labels(failure.kind, self._on_failure).inc()
        log.warning(
            "no answer of the entitlement service",
            kind=failure.kind,
            cause=str(failure),
            answered_as=self._on_failure,
            account=principal.account_id,
            device=principal.device_id,
            content_type=content.content_type,
            content_id=content.content_id,
        )
        match self._on_failure:
            case "allow":
                return None
            case "deny":
                return ContentAccessDenied("entitlement service unavailable")
        denial = DependencyUnavailable()
        denial.__cause__ = failure
        return denial

    def _ask(self, principal: Principal, content: ContentRef) -> Answer:
        """Ask the service. Raises NoAnswer when it does not answer or must not be asked now."""
        if not self._calls.acquire(blocking=False):
            raise NoAnswer("busy", "too many calls are under way")
        try:
            if not self._breaker.allows_call():
                raise NoAnswer("left alone", "the circuit breaker is open")
            try:
                with SECONDS.time():
                    answer = _read(self._exchange(principal, content))
            except NoAnswer:
                self._breaker.failed()
                raise
            self._breaker.succeeded()
            return answer
        finally:
            self._calls.release()

    def _exchange(self, principal: Principal, content: ContentRef) -> bytes:
        """Send the question and return the body of the answer. Try twice if the connection breaks. Raises NoAnswer."""
        correlation_id = CORRELATION_ID.get() or str(uuid4())
        question = {
            "accountId": principal.account_id,
            "deviceId": principal.device_id,
            "contentID": content.content_id,
            "contentType": content.content_type,
            "correlationId": correlation_id,
        }
        body = json.dumps(question).encode()
        headers = [*self._headers, ("X-Correlation-Id", correlation_id)]
        self._deadline.at = time.monotonic() + self._timeout_seconds
        try:
            try:
                return self._post(headers, body)
            except BROKEN:  # the service may have closed an idle connection at this moment
                return self._post(headers, body)
        except httpcore.TimeoutException:
            raise NoAnswer("timeout", f"no answer after {self._timeout_seconds} s") from None
        except BROKEN as error:
            raise NoAnswer("connection", str(error)) from error

    def _post(self, headers: list[tuple[str, str]], body: bytes) -> bytes:
        """Return the body of an answer with status 200. Raises NoAnswer for other statuses and for too large a body."""
        timeouts = {"timeout": {"pool": self._deadline.seconds_left()}}
        with self._pool.stream("POST", self._url, headers=headers, content=body, extensions=timeouts) as answer:
            if answer.status != httpx.codes.OK:
                raise NoAnswer("answer", f"HTTP status {answer.status}")
            received = bytearray()
            for chunk in answer.iter_stream():
                received += chunk
                if len(received) > MAX_ANSWER_BYTES:
                    raise NoAnswer("answer", f"more than {MAX_ANSWER_BYTES} bytes")
            return bytes(received)

    def close(self) -> None:
        """Close all connections. No request may use the client any more."""
        self._pool.close()


def _read(body: bytes) -> Answer:
    """Parse the body of an answer. Raises NoAnswer when it is not as agreed."""
    try:
        return Answer.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise NoAnswer("answer", " ".join(("not as agreed:", *map(str, first["loc"]), first["msg"]))) from error


def _denial(answer: Answer, source: Literal["service", "cache"]) -> SrmError | None:
    """Return the denial in an answer, None when access is granted. Count the answer."""
    ANSWERS.labels("granted" if answer.granted else "denied", source).inc()
    return None if answer.granted else ContentAccessDenied(answer.reason)


def _cached_until(_: Question, answer: Answer, now: float) -> float:
    return now + min(answer.keepForSeconds, MAX_KEEP_SECONDS)
