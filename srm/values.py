"""Value types that the API, imports and tables share: texts, instants, limits."""

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
"""RFC 3339. Pydantic alone takes more: "2024" is half an hour after midnight of New Year 1970."""
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
"""Of the times that can be written in UTC."""


class Everything:
    """Has everything in it."""

    def __contains__(self, _: object) -> bool:
        return True


STORED: Container[object] = Everything()
"""Context of a validation: these values come out of the database, however they got there, and are taken as they are."""


def is_text(text: str) -> bool:
    """Whether it can be an id or a name: 1 to 255 characters, none of them a control character."""
    return TEXT.fullmatch(text) is not None


def _check(text: str, info: ValidationInfo) -> str:
    if text not in (info.context or ()) and not is_text(text):
        raise PydanticCustomError("text", "1 to 255 characters, none of them a control character")
    return text


def _whole(number: object) -> object:
    """In JSON 3.0 is an integer too (JSON Schema Core 2020-12, section 4.2.1)."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


Text = Annotated[
    str,
    AfterValidator(_check),
    Field(json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": TEXT_PATTERN}),
]


def parse_instant(text: str) -> datetime:
    """The time that is written as in RFC 3339. ValueError when none is."""
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
Whole = BeforeValidator(_whole)
Limit = Annotated[int, Field(ge=0, le=2**31 - 1), Whole]
Seconds = Annotated[int, Field(ge=1, le=2**31 - 1), Whole]
