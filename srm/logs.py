"""Log lines of SRM, gunicorn and the libraries, in one format."""

import logging
import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Literal, TextIO, cast
from uuid import UUID

import structlog

CORRELATION_ID: ContextVar[str | None] = ContextVar("correlation_id", default=None)
"""Id of the current request; every log line of the request has it."""


def _add_correlation_id(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    correlation_id = CORRELATION_ID.get()
    if correlation_id is not None:
        event["correlation_id"] = correlation_id
    return event


def session_ended(log: Any, account: str, device: str, session: UUID | str, end_reason: str, **more: object) -> None:
    """Log the end of a session. `more`: members to add to the line."""
    log.info("session ended", account=account, device=device, session=str(session), end_reason=end_reason, **more)


class BestEffortStream:
    """A stream that ignores errors: on a full disk a line is lost, and the request goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write the text; lose it on an error."""
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush; leave the rest for the next flush on an error."""
        with suppress(OSError):
            self._stream.flush()


def configure(log_format: Literal["console", "json"]) -> None:
    """Send every log line of this process, libraries included, to standard error.

    Lines of SRM bypass the standard library. There is one line for every denial, and `logging` would cost as much as
    the denial itself.
    """
    stream = sys.__stderr__ or sys.stderr  # sys.stderr may be replaced later
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        _add_correlation_id,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        rendering: list[structlog.typing.Processor] = [
            # Without the values of variables, because a token may be among them.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
    else:
        rendering = [
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    structlog.configure(
        processors=[*shared, *rendering],
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", BestEffortStream(stream))),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in ("apscheduler", "alembic", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
