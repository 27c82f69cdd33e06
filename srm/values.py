"""Value types that the API, imports and tables share: texts, instants, limits, seconds."""

import re
from collections.abc import Container
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,255}")
TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]+$"
INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})", re.IGNORECASE
)
"""Form of RFC 3339. Pydantic alone accepts more: it reads "2024" as 2024 seconds after the start of 1970."""
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
"""First and last instant that `datetime` can express in UTC."""


class Everything:
    """Container that contains every value."""

    def __contains__(self, _: object) -> bool:
        return True


STORED: Container[object] = Everything()
"""Context for a validation of values that come from the database: they are not checked, whoever wrote them."""


def is_text(text: str) -> bool:
    """Return True when the text can be an id or a name: 1 to 255 characters, none of them a control character."""
    return TEXT.fullmatch(text) is not None


def _check(text: str, info: ValidationInfo) -> str:
    if text not in (info.context or ()) and not is_text(text):
        raise PydanticCustomError("text", "1 to 255 characters, none of them a control character")
    return text


def _whole(number: object) -> object:
    """Return 3 for 3.0, which is an integer in JSON too (JSON Schema Core 2020-12, section 4.2.1)."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


Text = Annotated[
    str,
    AfterValidator(_check),
    Field(json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": TEXT_PATTERN}),
]
"""Id or name. A text in the context of the validation, such as STORED, is not checked."""


def parse_instant(text: str) -> datetime:
    """Return the time that the text gives in the form of RFC 3339. Raises ValueError when it gives none."""
    if not INSTANT.fullmatch(text):
        raise ValueError("no time")
    return datetime.fromisoformat(text.upper())


def _read_instant(value: object) -> object:
    try:
        return parse_instant(value) if isinstance(value, str) else value
    except ValueError:
        raise PydanticCustomError("instant", "a time such as 2026-11-22T20:15:00Z") from None


def _check_instant(instant: datetime, info: ValidationInfo) -> datetime:
    if instant not in (info.context or ()) and not FIRST <= instant <= LAST:
        raise PydanticCustomError("instant", "a time from the year 1 to the year 9999, in UTC")
    return instant


Instant = Annotated[AwareDatetime, AfterValidator(_check_instant), BeforeValidator(_read_instant)]
"""Time with a zone. A time in the context of the validation, such as STORED, is not checked."""

Whole = BeforeValidator(_whole)
"""Lets an integer be written as 3.0."""

Limit = Annotated[int, Field(ge=0, le=2**31 - 1), Whole]
"""Limit of a profile: any integer that PostgreSQL takes, from 0."""

Seconds = Annotated[int, Field(ge=1, le=2**31 - 1), Whole]
"""Time of a profile: any integer that PostgreSQL takes, from 1."""
