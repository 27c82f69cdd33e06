"""The query strings of the operator API, v1: filters, and the page of a list.

A list goes on behind a cursor (`srm/operators/cursors.py`). The text of the cursor is the `next` of one page, and the
client sends the text back as `after`.
"""

import re
from datetime import datetime
from uuid import UUID

from flask import request

from srm.api.parsing import parse_uuid
from srm.errors import MalformedRequest
from srm.operators.cursors import InstantCursor, SessionCursor
from srm.values import is_text, parse_instant

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
"""Items on a page: when the query does not say, and at most."""


def malformed(problem: str) -> MalformedRequest:
    """Return the error that says what is wrong with the request."""
    return MalformedRequest(f"{MalformedRequest.message}: {problem}")


def read_limit() -> int:
    """Return the most items that the client wants. Raises MalformedRequest unless it is 1 to MAX_LIMIT."""
    text = request.args.get("limit", str(DEFAULT_LIMIT))
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise malformed(f"limit is a number from 1 to {MAX_LIMIT}")
    return int(text)


def is_readable(text: str) -> bool:
    """True when text from a URL was UTF-8 and has no NUL.

    Werkzeug decodes every byte that is not UTF-8 to U+FFFD, so different ids would become one.
    """
    return "\ufffd" not in text and "\x00" not in text


def read_text(name: str) -> str | None:
    """Return the parameter, an id or a name; None when it is missing. Raises MalformedRequest when it is neither."""
    text = request.args.get(name)
    if text is not None and not (is_text(text) and is_readable(text)):
        raise malformed(name)
    return text


def read_word(name: str, words: tuple[str, ...], default: str | None = None) -> str | None:
    """Return the parameter, or the default when it is missing. Raises MalformedRequest when it is none of the words."""
    text = request.args.get(name, default)
    if text is not None and text not in words:
        raise malformed(f"{name} is one of {', '.join(words)}")
    return text


def read_instant(name: str) -> datetime | None:
    """Return the parameter, a time; None when it is missing. Raises MalformedRequest when it is no time of RFC 3339."""
    text = request.args.get(name)
    return None if text is None else _parse_instant(name, text)


def parse_id(name: str, text: str) -> UUID:
    """Return the UUID that has this name in the request. Raises MalformedRequest when it is not a UUID."""
    try:
        return parse_uuid(text)
    except MalformedRequest as error:
        raise malformed(f"{name} is a UUID") from error


def read_after() -> str | None:
    """Return the text of the cursor; None for the first page. Raises MalformedRequest when no list can have made it."""
    text = request.args.get("after")
    if text is not None and not (text and is_readable(text)):
        raise malformed("after")
    return text


def instant_cursor_text(cursor: InstantCursor) -> str:
    """Return the text of a cursor in a list that begins with the newest item."""
    return f"{cursor.id}_{cursor.at:%Y-%m-%dT%H:%M:%S.%fZ}"


def read_instant_cursor() -> InstantCursor | None:
    """Return the cursor of a list that begins with the newest item; None for the first page."""
    parts = _read_cursor_parts()
    return None if parts is None else InstantCursor(_parse_instant("after", parts[1]), parts[0])


def session_cursor_text(cursor: SessionCursor) -> str:
    """Return the text of a cursor in the list of all sessions."""
    return f"{cursor.session_id}_{cursor.account_id}"


def read_session_cursor() -> SessionCursor | None:
    """Return the cursor of the list of all sessions; None for the first page."""
    parts = _read_cursor_parts()
    return None if parts is None else SessionCursor(parts[1], parts[0])


def _read_cursor_parts() -> tuple[UUID, str] | None:
    """Return the UUID that a cursor begins with, and the text behind the underscore."""
    text = read_after()
    if text is None:
        return None
    id_, _, rest = text.partition("_")
    return parse_id("after", id_), rest


def _parse_instant(name: str, text: str) -> datetime:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise malformed(f"{name} is a time such as 2026-11-22T20:15:00Z") from error
