"""How long a request may wait: published to clients as three seconds, all that happens in between included."""

from contextvars import ContextVar

STATEMENT_TIMEOUT_SECONDS = 1.5
"""Of a request, lock waits included, by the clock of the server."""

SILENCE_SECONDS = 1
"""How long a server is waited for after the time in which it should have given up by itself, and then left alone."""

QUEUE_SECONDS = 1
"""Longest that a request may have waited for a thread, and still be brought to the database, which can then give up by
itself: connections that are given up instead would pile up there."""

PATIENCE_SECONDS = max(QUEUE_SECONDS, SILENCE_SECONDS) + STATEMENT_TIMEOUT_SECONDS
"""Of a request, from when it waits for a thread to the answer of the database."""

ANSWER_BY: ContextVar[float | None] = ContextVar("answer_by", default=None)
"""When, by `time.monotonic()`, the patience of the request that is being answered is over; None = there is none."""
