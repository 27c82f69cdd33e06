"""The circuit breaker in front of the entitlement service: open after several failures in a row.

srm.db.breaker is another one: a silent database opens it at once. The package pybreaker does not fit, because it holds
a lock during the guarded call, so that all callers go one after the other.
"""

import threading
import time

import structlog
from prometheus_client import Gauge

from srm.metrics import REGISTRY

log = structlog.get_logger("srm.entitlement_service")

FAILURES_IN_A_ROW = 3
"""Failures that open the breaker."""

OPEN_SECONDS = 1
"""Time that the breaker stays open. Then one call at a time may try the service."""

BREAKERS_OPEN = Gauge(
    "srm_entitlement_breakers_open",
    "Processes for which the entitlement service has failed so often that they ask it only now and then",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)


class FailureBreaker:
    """Decides whether a call may be made. A call must report `succeeded` or `failed`.

    A trial call that reports nothing within `timeout_seconds` no longer keeps others from trying.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._failures = 0
        self._next_try_at = float("-inf")
        BREAKERS_OPEN.set(0)

    def allows_call(self) -> bool:
        """True when the caller may call the service now."""
        with self._lock:
            if self._failures < FAILURES_IN_A_ROW:
                return True
            now = time.monotonic()
            if now < self._next_try_at:
                return False
            self._next_try_at = now + self._timeout_seconds
            return True

    def succeeded(self) -> None:
        """Note that a call was answered. This closes the breaker."""
        with self._lock:
            was_open, self._failures = self._failures >= FAILURES_IN_A_ROW, 0
        if was_open:
            BREAKERS_OPEN.set(0)
            log.info("entitlement service is back")

    def failed(self) -> None:
        """Note that a call was not answered. Enough of them in a row open the breaker."""
        with self._lock:
            self._failures += 1
            opens = self._failures == FAILURES_IN_A_ROW
            self._next_try_at = time.monotonic() + OPEN_SECONDS
        if opens:
            BREAKERS_OPEN.set(1)
            log.error("entitlement service is left alone", failures=FAILURES_IN_A_ROW, seconds=OPEN_SECONDS)
