"""What the lists of the operator API have in common: what is asked for, a page of it, and where the next one begins.

A list goes on behind the last one that was seen, by its key, so that page 1,000 costs what page 1 does. Clients send
back as `after` what the list gave them as `next`.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from flask import Response, json, request

from srm.api.parsing import parse_uuid
from srm.errors import MalformedRequest
from srm.operators.resources import Shown
from srm.values import is_text, parse_instant

LISTED, MOST_LISTED = 100, 1000
"""In one answer, where the request does not say, and at the most."""

Each = TypeVar("Each", bound=Shown)


def malformed(problem: str) -> MalformedRequest:
    """The error that says what is wrong with the request."""
    return MalformedRequest(f"{MalformedRequest.message}: {problem}")


def limit() -> int:
    """How many the request wants at the most."""
    text = request.args.get("limit", str(LISTED))
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_LISTED:
        raise malformed(f"limit is a number from 1 to {MOST_LISTED}")
    return int(text)


def is_readable(text: str) -> bool:
    """Whether what stands in a URL can be told: it is UTF-8, since others would all become the same, and has no NUL."""
    return "\ufffd" not in text and "\x00" not in text


def text_of(name: str) -> str | None:
    """What the query says under this name."""
    text = request.args.get(name)
    if text is not None and not (is_text(text) and is_readable(text)):
        raise malformed(name)
    return text


def after_text() -> str | None:
    """Where the list goes on: whatever it gave as `next`."""
    text = request.args.get("after")
    if text is not None and not (text and is_readable(text)):
        raise malformed("after")
    return text


def one_of(name: str, words: tuple[str, ...], default: str | None = None) -> str | None:
    """The same, where only these words can be said."""
    text = request.args.get(name, default)
    if text is not None and text not in words:
        raise malformed(f"{name} is one of {', '.join(words)}")
    return text


def instant_of(name: str) -> datetime | None:
    """The same, where it is a time."""
    text = request.args.get(name)
    return None if text is None else _instant(name, text)


def uuid(name: str, text: str) -> UUID:
    """The UUID that has this name in the request."""
    try:
        return parse_uuid(text)
    except MalformedRequest as error:
        raise malformed(f"{name} is a UUID") from error


def position(id_: UUID, at: datetime) -> str:
    """Where a list that begins with the newest goes on."""
    return f"{id_}_{at:%Y-%m-%dT%H:%M:%S.%fZ}"


def after_position() -> tuple[datetime, UUID] | None:
    """The same, as the request gives it back."""
    after = after_id_and_text()
    return None if after is None else (_instant("after", after[1]), after[0])


def after_id_and_text() -> tuple[UUID, str] | None:
    """The id of the last one seen, and what stands behind it in `after`."""
    after = after_text()
    if after is None:
        return None
    id_, _, rest = after.partition("_")
    return uuid("after", id_), rest


def page(name: str, found: Sequence[Each], limit: int, position: Callable[[Each], str]) -> Response:
    """The answer with the first so many, and where the next page begins if there are more."""
    answer: dict[str, Any] = {name: [each.as_json() for each in found[:limit]]}
    if len(found) > limit:
        answer["next"] = position(found[limit - 1])
    return as_json(answer)


def as_json(content: dict[str, Any], status: int = 200) -> Response:
    """The answer with this content."""
    return Response(json.dumps(content, sort_keys=False), status, mimetype="application/json")


def _instant(name: str, text: str) -> datetime:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise malformed(f"{name} is a time such as 2026-11-22T20:15:00Z") from error
