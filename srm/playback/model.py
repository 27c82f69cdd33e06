"""Values that go into the rules of playback sessions, and values that come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

from srm.errors import SessionLimitReached, SrmError

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Principal:
    """Account and device that a valid Client-Token proves."""

    account_id: str
    device_id: str


@dataclass(frozen=True, slots=True)
class ContentRef:
    """Content to play: its type, such as LIVE, and its id in the catalogue."""

    content_type: str
    content_id: str


@dataclass(frozen=True, slots=True)
class Admission:
    """Session that a setup got.

    `timeout_seconds`: None = keep-alive is disabled. `observed`: the denial that the limits would have led to, had the
    profile enforced them.
    """

    session_id: UUID
    timeout_seconds: int | None
    observed: SessionLimitReached | None = None


class EndedSession(NamedTuple):
    """Session that was just ended, and not by its client. The fields are columns of `sessions`."""

    account_id: str
    session_id: UUID
    device_id: str
    content_type: str
    content_id: str
    started_at: datetime
    ended_at: datetime
    end_reason: str


@dataclass(frozen=True, slots=True)
class Result(Generic[Value]):
    """Outcome of a transaction for a client: a value, or the error to answer with.

    `ended`: sessions that the transaction ended, also where the outcome is an error. Outcome and `ended` are true only
    once the transaction is committed.
    """

    outcome: Value | SrmError
    ended: Sequence[EndedSession] = ()


class Terms(NamedTuple):
    """Facts about account, device, content and profile that a setup depends on, without the limits."""

    device_enabled: bool | None
    """None = the account has no such device."""
    device_name: str | None
    device_group: str | None
    """None only where `device_enabled` is, and then the setup is denied."""
    granted: bool
    """The account holds an entitlement to the content, by the local tables."""
    content_groups: list[str] | None
    """None = the content is in no group."""
    counts: bool
    """The session counts towards `max_sessions`."""
    timeout_seconds: int | None
    """None = keep-alive is disabled."""
    max_session_seconds: int | None
    """Longest life of the session; None = unlimited."""


class ListedSession(NamedTuple):
    """Active session, as other devices of the account may see it."""

    session_id: UUID
    device_name: str
    """Name that the viewer gave the device, or else its id."""
    content_id: str
    content_type: str
    started_at: datetime


SessionKey: TypeAlias = tuple[str, str]
"""Account id and session id, both as text: making 100,000 UUIDs costs as much as all else that the reaper does."""


class ExpiredSession(NamedTuple):
    """Lapsed session that the reaper ended: the facts that its log line needs."""

    account_id: str
    device_id: str
    session_id: str
    """Text, as in SessionKey."""
    ended_at: datetime
