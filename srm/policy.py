"""May the account have one more session? A pure function over its limits and its active sessions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from srm.errors import SessionLimitReached
from srm.models import OnLimit, SameDevice


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of an account, as its profile has them."""

    max_sessions: int | None
    """Most sessions at once; None = no limit."""
    on_limit: OnLimit = "deny"
    """Refuse a setup that goes over a limit, or end sessions for it."""
    same_device: SameDevice = "count"
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
    """Those that the new one takes the place of."""
    evicted: Sequence[ActiveSession]
    """Those that make room: as few as needed."""


def make_room(
    limits: Limits, active: Sequence[ActiveSession], device_id: str, take_over: Collection[UUID] = ()
) -> Room:
    """What to end for one more session, on that device, beside the active ones, which come oldest first.

    `take_over`: ids of sessions that it takes the place of, those that are not active left aside.
    SessionLimitReached when it may not be; then nothing is to be ended at all.
    """
    replaced: list[ActiveSession] = []
    others: list[ActiveSession] = []
    for session in active:
        is_same_device = limits.same_device == "replace" and session.device_id == device_id
        (replaced if is_same_device or session.session_id in take_over else others).append(session)
    if limits.max_sessions is None:
        return Room(replaced, ())
    surplus = max(0, len(others) + 1 - limits.max_sessions)
    can_make_room = surplus <= len(others)
    if surplus and (limits.on_limit == "deny" or not can_make_room):
        in_the_way = [session.session_id for session in others] if can_make_room else []
        raise SessionLimitReached("max_sessions", limits.max_sessions, in_the_way)
    return Room(replaced, others[:surplus] if limits.on_limit == "evict_oldest" else others[len(others) - surplus :])
