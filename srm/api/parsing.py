"""What all calls read alike."""

import re
from uuid import UUID

from flask import request

from srm.errors import MalformedRequest, RequestTooLarge

UUID_FORM = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
"""The text form of RFC 9562, in either case; `UUID()` alone takes more."""


def parse_uuid(text: str) -> UUID:
    """The UUID in the text. MalformedRequest when it is none."""
    if not UUID_FORM.fullmatch(text):
        raise MalformedRequest
    return UUID(text)


def read_body(most_bytes: int) -> bytes:
    """The body. RequestTooLarge past so many bytes; MalformedRequest when it is cut or ill-chunked."""
    request.max_content_length = most_bytes + 1  # a chunked body is cut there, not refused
    try:
        body = request.get_data(cache=False)
    except OSError as error:
        raise MalformedRequest from error
    if len(body) > most_bytes:
        raise RequestTooLarge
    return body
