"""Time limits of one request.

The client API promises an answer within three seconds. Each request gets a deadline when it starts to wait for a
thread; whatever it does then (queue, connect, execute) ends by that deadline.
"""

from contextvars import ContextVar

STATEMENT_TIMEOUT_SECONDS = 1.5
"""Limit of one statement of a request, lock waits included. PostgreSQL enforces it."""

GRACE_SECONDS = 1
"""Extra wait for a server that should have ended a statement by itself. After that the server counts as silent."""

MAX_QUEUE_SECONDS = 1
"""A request that waited longer than this for a thread is not sent to the database.

Whoever waited less leaves the server time to end a slow statement itself. Statements that the client abandons keep
running and pile up in the server.
"""

DEADLINE_SECONDS = max(MAX_QUEUE_SECONDS, GRACE_SECONDS) + STATEMENT_TIMEOUT_SECONDS
"""Time between a request's wait for a thread and its deadline."""

DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)
"""Deadline of the current request, by `time.monotonic()`; None outside a request."""
