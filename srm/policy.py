"""May the account have one more session? A pure function over its limits and its active sessions."""

from collections.abc import Sized
from dataclasses import dataclass

from srm.errors import SessionLimitReached


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of an account. `max_sessions`: most sessions at once, None = no limit."""

    max_sessions: int | None


def check(limits: Limits, active: Sized) -> None:
    """Promise that one more session, beside the active ones, keeps the limits.

    SessionLimitReached when it would not.
    """
    if limits.max_sessions is not None and len(active) >= limits.max_sessions:
        raise SessionLimitReached
