"""Parsing that all calls of the API share."""

import re
from uuid import UUID

from flask import request

from srm.api.http_errors import RequestTooLarge
from srm.errors import MalformedRequest

UUID_FORM = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
"""Text form of RFC 9562, in upper or lower case. `UUID()` alone accepts other forms too."""


def parse_uuid(text: str) -> UUID:
    """Return the UUID in the text. Raises MalformedRequest when the text is not one."""
    if not UUID_FORM.fullmatch(text):
        raise MalformedRequest
    return UUID(text)


def read_body(max_bytes: int) -> bytes:
    """Return the body of the request.

    Raises RequestTooLarge when it has more than `max_bytes`, and MalformedRequest when it breaks off or its chunks are
    malformed.
    """
    request.max_content_length = max_bytes + 1  # A chunked body is cut there, not refused.
    try:
        body = request.get_data(cache=False)
    except OSError as error:
        raise MalformedRequest from error
    if len(body) > max_bytes:
        raise RequestTooLarge
    return body
