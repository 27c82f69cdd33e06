"""The limits once more, as plainly as can be: what the code is held against. By brute force."""

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Protocol, TypeVar

from srm.policy import Limits


class Playing(Protocol):
    """A session, as the limits look at it."""

    @property
    def device_group(self) -> str | None: ...
    @property
    def content_id(self) -> str: ...
    @property
    def content_groups(self) -> Sequence[str] | None: ...
    @property
    def address(self) -> str | None: ...
    @property
    def counts(self) -> bool: ...


Session = TypeVar("Session", bound=Playing)


def broken(limits: Limits, others: Collection[Playing], new: Playing) -> set[str]:
    """The limits that do not hold when the new session plays beside the others."""
    playing = [*others, new]
    taken = {
        "max_sessions": (limits.max_sessions if new.counts else None, sum(s.counts for s in playing)),
        "max_sessions_per_content": (
            limits.max_sessions_per_content,
            sum(s.content_id == new.content_id for s in playing),
        ),
        f"device_group:{new.device_group}": (
            limits.max_sessions_of_device_group,
            sum(s.device_group == new.device_group for s in playing),
        ),
    }
    if new.address is not None:
        taken["max_ip_addresses"] = (limits.max_ip_addresses, len({s.address for s in playing} - {None}))
        taken["max_sessions_per_ip"] = (limits.max_sessions_per_ip, sum(s.address == new.address for s in playing))
    for group, limit in zip(new.content_groups or (), limits.max_sessions_of_content_groups or (), strict=True):
        taken[f"content_group:{group}"] = (limit, sum(group in (s.content_groups or ()) for s in playing))
    return {name for name, (limit, count) in taken.items() if limit is not None and count > limit}


def fewest(limits: Limits, others: Sequence[Session], new: Playing) -> tuple[Session, ...] | None:
    """The sessions to end, so that all limits hold for the new one: as few as possible; None = no end makes room.

    Of several sets of that size the one with the oldest sessions in it, or the newest, as the limits say; `others` come
    oldest first.
    """
    if broken(limits, [], new):
        return None
    in_order = others[::-1] if limits.on_limit == "evict_newest" else others
    for size in range(len(others) + 1):
        for ended in combinations(in_order, size):
            if not broken(limits, [session for session in others if session not in ended], new):
                return ended
    return None
