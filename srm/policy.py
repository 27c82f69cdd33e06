"""May the account have one more session? A pure function over its limits and its active sessions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from srm.errors import SessionLimitReached


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of an account, as its profile has them."""

    max_sessions: int | None
    """Most sessions at once; None = no limit."""
    on_limit: Literal["deny", "evict_oldest", "evict_newest"] = "deny"
    """Refuse a setup that goes over a limit, or end sessions for it."""
    same_device: Literal["count", "replace"] = "count"
    """Whether a session that the device already has counts, or is ended first."""


@dataclass(frozen=True, slots=True)
class ActiveSession:
    """A session that holds a slot."""

    session_id: UUID
    device_id: str
    content_type: str
    content_id: str
    timeout_seconds: int | None
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class Room:
    """The sessions to end, so that one more keeps the limits."""

    replaced: Sequence[ActiveSession]
    """Those of the same device."""
    evicted: Sequence[ActiveSession]
    """Those that make room: as few as needed."""


def make_room(limits: Limits, active: Sequence[ActiveSession], device_id: str) -> Room:
    """What to end for one more session, on that device, beside the active ones, which come oldest first.

    SessionLimitReached when it may not be; then nothing is to be ended at all.
    """
    replaced = [session for session in active if limits.same_device == "replace" and session.device_id == device_id]
    others = [session for session in active if session not in replaced]
    if limits.max_sessions is None:
        return Room(replaced, ())
    surplus = max(0, len(others) + 1 - limits.max_sessions)
    if surplus and (limits.on_limit == "deny" or surplus > len(others)):
        raise SessionLimitReached
    return Room(replaced, others[:surplus] if limits.on_limit == "evict_oldest" else others[len(others) - surplus :])
