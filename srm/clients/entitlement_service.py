"""The operator's own service that says whether an account may watch a content: docs/entitlement-service.json.

It is asked before anything is locked. Whatever it does, or does not do, a setup learns within the time-out what to do
without it, and all else goes on as if it were not there:

- one deadline for the whole exchange, however slowly the bytes come (`Deadline`);
- at most so many calls at once, so that some threads of the process never wait for it (`leave_threads`);
- after several failures in a row it is left alone for a while, and then tried by one thread (`Breaker`).

httpcore is what httpx is made of; it alone lets every read and write have the time that is left. pybreaker is no help
with the last: it holds a lock during the call that it guards, so that all callers go one after the other.
"""

import base64
import json
import math
import socket
import threading
import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias
from uuid import uuid4

import httpcore
import httpx
import structlog
from cachetools import TLRUCache
from prometheus_client import Counter, Gauge, Histogram
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srm.config import ENTITLEMENT_CALLS_AT_ONCE, OnFailure
from srm.deadline import DEADLINE
from srm.errors import ContentAccessDenied, DependencyUnavailable, SrmError
from srm.logs import CORRELATION_ID
from srm.metrics import REGISTRY
from srm.playback.entitlements import Access
from srm.playback.model import ContentRef, Principal
from srm.values import Text, Whole

log = structlog.get_logger("srm.entitlement_service")

MAX_DEADLINETES = 64 * 1024

MAX_KEEP_SECONDS = 3600
"""An answer is kept no longer, whatever it says itself."""
CACHED_ANSWERS = 100_000
"""Answers that one process keeps; some 110 MB when full."""

FAILURES_IN_A_ROW = 3
LEFT_ALONE_SECONDS = 1
IDLE_SECONDS = 30
"""A connection on which nothing is asked for so long is closed."""
THREADS_FOR_OTHERS = 2

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
BREAKERS_OPEN = Gauge(
    "srm_entitlement_breakers_open",
    "Processes for which the entitlement service has failed so often that they ask it only now and then",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)

BROKEN = (httpcore.NetworkError, httpcore.ProtocolError)
"""The connection was refused or broke, or what came on it is no HTTP."""

Key: TypeAlias = tuple[str, str, str, str]
Kind = Literal["timeout", "connection", "answer", "busy", "left alone"]


class Answer(BaseModel):
    """What the service says."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    granted: bool
    reason: Text | None = None
    keepForSeconds: Annotated[int, Field(ge=0), Whole] = 0  # noqa: N815 the name is the contract's


class Failure(Exception):
    """There is no answer. `kind` tells one cause from another, the message is for people."""

    def __init__(self, kind: Kind, cause: str) -> None:
        self.kind = kind
        super().__init__(cause)


class Deadline(threading.local):
    """The end of the exchange that this thread is in, by `time.monotonic()`."""

    at = 0.0

    def seconds_left(self) -> float:
        """More than 0. `httpcore.TimeoutException` when nothing is left."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore.TimeoutException
        return left


class BoundedStream(httpcore.NetworkStream):
    """A connection whose every operation has the time that is left of the exchange.

    The time-outs of httpcore are for each operation anew: a server that sends a byte now and then never meets them.
    """

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """See NetworkStream."""
        return self._stream.read(max_bytes, self._deadline.seconds_left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """See NetworkStream."""
        self._stream.write(buffer, self._deadline.seconds_left())

    def start_tls(
        self,
        ssl_context: Any,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """See NetworkStream."""
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.seconds_left())
        return BoundedStream(stream, self._deadline)

    def close(self) -> None:
        """See NetworkStream."""
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        """See NetworkStream."""
        return self._stream.get_extra_info(info)


class BoundedBackend(httpcore.NetworkBackend):
    """Opens connections that keep to the deadline, and in time.

    To look up a name is up to the resolver of the system, and to its own time-out.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._sockets = httpcore.SyncBackend()
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """See NetworkBackend. The addresses of the host share the time that is left."""
        error: Exception = httpcore.ConnectError("the host has no address")
        addresses = _look_up(host, port)
        for number, address in enumerate(addresses):
            patience = self._deadline.seconds_left() / (len(addresses) - number)
            try:
                stream = self._sockets.connect_tcp(address, port, patience, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as cause:
                error = cause
            else:
                return BoundedStream(stream, self._deadline)
        raise error


def _look_up(host: str, port: int) -> list[str]:
    """The addresses of the host. `httpcore.ConnectError` when it has none."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:  # UnicodeError: it cannot be a name
        raise httpcore.ConnectError(str(error)) from error


class Breaker:
    """Whether the service is asked: after FAILURES_IN_A_ROW not for LEFT_ALONE_SECONDS, and then by one at a time.

    A try that is not heard of within `patience_seconds` is over.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._failures = 0
        self._next_try_at = float("-inf")
        BREAKERS_OPEN.set(0)

    def lets_through(self) -> bool:
        """Whether the caller may ask; it says afterwards whether it `succeeded` or `failed`."""
        with self._lock:
            if self._failures < FAILURES_IN_A_ROW:
                return True
            now = time.monotonic()
            if now < self._next_try_at:
                return False
            self._next_try_at = now + self._patience_seconds
            return True

    def succeeded(self) -> None:
        """An answer came: everybody may ask again."""
        with self._lock:
            was_open, self._failures = self._failures >= FAILURES_IN_A_ROW, 0
        if was_open:
            BREAKERS_OPEN.set(0)
            log.info("entitlement service is back")

    def failed(self) -> None:
        """No answer came."""
        with self._lock:
            self._failures += 1
            opens = self._failures == FAILURES_IN_A_ROW
            self._next_try_at = time.monotonic() + LEFT_ALONE_SECONDS
        if opens:
            BREAKERS_OPEN.set(1)
            log.error("entitlement service is left alone", failures=FAILURES_IN_A_ROW, seconds=LEFT_ALONE_SECONDS)


class EntitlementService:
    """Asks the service, remembers what it says as long as it allows, and knows what to do without it.

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
        self._deadline = Deadline()
        self._pool = httpcore.ConnectionPool(
            # Made once: to read the certificates for each connection takes longer than to connect.
            ssl_context=httpcore.default_ssl_context() if parts.scheme == "https" else None,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=BoundedBackend(self._deadline),
        )
        self._free = threading.Semaphore(ENTITLEMENT_CALLS_AT_ONCE)
        self._breaker = Breaker(timeout_seconds)
        self._kept: TLRUCache[Key, Answer] = TLRUCache(CACHED_ANSWERS, _keep_until, time.monotonic)
        self._kept_lock = threading.Lock()

    def leave_threads(self, threads: int) -> None:
        """Use, of so many threads of the process, all but THREADS_FOR_OTHERS at once; one, where there are no more.

        To be called before the first request.
        """
        self._free = threading.Semaphore(max(1, min(ENTITLEMENT_CALLS_AT_ONCE, threads - THREADS_FOR_OTHERS)))

    def access_to(self, principal: Principal, content: ContentRef) -> Access:
        """Whether the account may watch the content: as the service says, or as is done without it. Never raises."""
        key = (principal.account_id, principal.device_id, content.content_type, content.content_id)
        with self._kept_lock:
            answer = self._kept.get(key)
        if answer is not None:
            return Access(refusal=_refusal(answer, "cache"))
        began_at = time.monotonic()
        if began_at >= (DEADLINE.get() or math.inf):  # it has waited for a thread too long already
            return Access(refusal=DependencyUnavailable())
        try:
            answer = self._ask(principal, content)
        except Failure as failure:
            refusal = self._refusal_without(failure, principal, content)
            return Access(refusal=refusal, asked_for_seconds=self._asked_for(began_at))
        if answer.keepForSeconds:
            with self._kept_lock:
                self._kept[key] = answer
        return Access(refusal=_refusal(answer, "service"), asked_for_seconds=self._asked_for(began_at))

    def _asked_for(self, began_at: float) -> float:
        """Seconds since then; no more than the time-out, so that the database always has its share of the request."""
        return min(time.monotonic() - began_at, self._timeout_seconds)

    def _refusal_without(self, failure: Failure, principal: Principal, content: ContentRef) -> SrmError | None:
        """What the setup is answered as there is no answer; counted and logged."""
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
        refusal = DependencyUnavailable()
        refusal.__cause__ = failure
        return refusal

    def _ask(self, principal: Principal, content: ContentRef) -> Answer:
        """What the service says. Failure when it does not, or is not asked."""
        free = self._free
        if not free.acquire(blocking=False):
            raise Failure("busy", "too many calls are under way")
        try:
            if not self._breaker.lets_through():
                raise Failure("left alone", "it has failed again and again")
            try:
                with SECONDS.time():
                    answer = _read(self._exchange(principal, content))
            except Failure:
                self._breaker.failed()
                raise
            self._breaker.succeeded()
            return answer
        finally:
            free.release()

    def _exchange(self, principal: Principal, content: ContentRef) -> bytes:
        """The body of the answer; in time, with a second try if the connection broke. Failure otherwise."""
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
            except BROKEN:  # the service may have closed, this very moment, a connection that was kept
                return self._post(headers, body)
        except httpcore.TimeoutException:
            raise Failure("timeout", f"nothing after {self._timeout_seconds} s") from None
        except BROKEN as error:
            raise Failure("connection", str(error)) from error

    def _post(self, headers: list[tuple[str, str]], body: bytes) -> bytes:
        """The body of an answer with status 200. Failure for any other, and for one that is too large."""
        patience = {"timeout": {"pool": self._deadline.seconds_left()}}
        with self._pool.stream("POST", self._url, headers=headers, content=body, extensions=patience) as answer:
            if answer.status != httpx.codes.OK:
                raise Failure("answer", f"HTTP status {answer.status}")
            received = bytearray()
            for chunk in answer.iter_stream():
                received += chunk
                if len(received) > MAX_DEADLINETES:
                    raise Failure("answer", f"more than {MAX_DEADLINETES} bytes")
            return bytes(received)

    def close(self) -> None:
        """Close all connections. No thread may use one any more."""
        self._pool.close()


def _read(body: bytes) -> Answer:
    """The answer. Failure when it is none."""
    try:
        return Answer.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Failure("answer", " ".join(("not as agreed:", *map(str, first["loc"]), first["msg"]))) from error


def _refusal(answer: Answer, source: Literal["service", "cache"]) -> SrmError | None:
    """What the setup is refused with, if it is; counted."""
    ANSWERS.labels("granted" if answer.granted else "denied", source).inc()
    return None if answer.granted else ContentAccessDenied(answer.reason)


def _keep_until(_: Key, answer: Answer, now: float) -> float:
    return now + min(answer.keepForSeconds, MAX_KEEP_SECONDS)
