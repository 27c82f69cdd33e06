"""Time limits of one request.

The client API promises an answer within three seconds. Each request gets a deadline when its header has been read;
whatever it does then (wait for a connection, connect, execute) ends by that deadline.
"""

from contextvars import ContextVar

STATEMENT_TIMEOUT_SECONDS = 1.5
"""Limit of one statement of a request, lock waits included. PostgreSQL enforces it."""

GRACE_SECONDS = 1
"""Extra wait for a server that should have ended a statement by itself. After that the server counts as silent."""

MAX_QUEUE_SECONDS = 1
"""Longest wait for a connection of a pool after which a request is still sent to the database.

A request that waited longer has too little time left: the API would abandon its slow statement before the server ends
the statement. Abandoned statements go on and pile up in the server.
"""

DEADLINE_SECONDS = max(MAX_QUEUE_SECONDS, GRACE_SECONDS) + STATEMENT_TIMEOUT_SECONDS
"""Seconds from the header of a request to its deadline."""

DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)
"""Deadline of the current request, by `time.monotonic()`; None outside a request."""
