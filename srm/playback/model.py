"""What goes into the rules of playback sessions, and what comes out."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeAlias
from uuid import UUID

from srm.errors import SessionLimitReached


@dataclass(frozen=True, slots=True)
class Principal:
    """The account and device that a valid token proves."""

    account_id: str
    device_id: str


@dataclass(frozen=True, slots=True)
class ContentRef:
    """What is to be played: contentType and contentID of the API."""

    content_type: str
    content_id: str


@dataclass(frozen=True, slots=True)
class Admission:
    """A session that was set up.

    `timeout_seconds`: None = keep-alive is disabled. `observed`: the refusal that would have been, if the limits of the
    profile were enforced.
    """

    session_id: UUID
    timeout_seconds: int | None
    observed: SessionLimitReached | None = None


class Terms(NamedTuple):
    """What holds for a setup beside the limits, by its account, its device, its content and the profile."""

    device_enabled: bool | None
    device_name: str | None
    device_group: str
    granted: bool
    content_groups: list[str] | None
    counts: bool
    timeout_seconds: int | None
    max_session_seconds: int | None


@dataclass(frozen=True, slots=True)
class ListedSession:
    """An active session, as other devices of the account may see it."""

    session_id: UUID
    device_name: str
    content_id: str
    content_type: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class EndedSession:
    """A session that was just ended, for a reason other than its client's."""

    account_id: str
    session_id: UUID
    device_id: str
    content_type: str
    content_id: str
    started_at: datetime
    ended_at: datetime
    end_reason: str


Key: TypeAlias = tuple[str, str]
"""Account and id of a session; the id as text, since of 100,000 it would cost as much as all else to make UUIDs."""


class ExpiredSession(NamedTuple):
    """A lapsed session that was ended; no more of it than is said of 100,000 at once."""

    account_id: str
    device_id: str
    session_id: str
    ended_at: datetime
