"""The limits written as plainly as can be, by brute force. Tests compare `srm/playback/limits.py` with them."""

from collections.abc import Sequence
from itertools import combinations
from typing import Protocol, TypeVar

from srm.playback.limits import Limits


class Playing(Protocol):
    """A session, as far as the limits look at it."""

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


def limits_and_users(limits: Limits, others: Sequence[Session], new: Playing) -> dict[str, tuple[int, list[Session]]]:
    """Each limit that holds for the new session, with the others that use it, in the order of docs/rules.md."""
    users: dict[str, tuple[int | None, list[Session]]] = {
        "max_sessions": (limits.max_sessions if new.counts else None, [s for s in others if s.counts]),
        "max_sessions_per_content": (
            limits.max_sessions_per_content,
            [s for s in others if s.content_id == new.content_id],
        ),
    }
    if new.address is not None:
        elsewhere = [s for s in others if s.address not in (None, new.address)]
        users["max_ip_addresses"] = (limits.max_ip_addresses, elsewhere)
        users["max_sessions_per_ip"] = (limits.max_sessions_per_ip, [s for s in others if s.address == new.address])
    users[f"device_group:{new.device_group}"] = (
        limits.max_sessions_of_device_group,
        [s for s in others if s.device_group == new.device_group],
    )
    for group, limit in zip(new.content_groups or (), limits.max_sessions_of_content_groups or (), strict=True):
        users[f"content_group:{group}"] = (limit, [s for s in others if group in (s.content_groups or ())])
    return {name: (limit, who) for name, (limit, who) in users.items() if limit is not None}


def broken(limits: Limits, others: Sequence[Playing], new: Playing) -> dict[str, int]:
    """The limits that do not hold when the new session plays beside the others, in the order of docs/rules.md."""
    return {
        name: limit
        for name, (limit, who) in limits_and_users(limits, others, new).items()
        if 1 + (len({s.address for s in who}) if name == "max_ip_addresses" else len(who)) > limit
    }


def denial(limits: Limits, others: Sequence[Session], new: Playing) -> tuple[str, int, list[Session]]:
    """The rule, its limit, and the sessions in the way that a denial names. A limit must be broken."""
    of_all = broken(limits, others, new)
    if hopeless := [name for name, limit in of_all.items() if limit == 0]:
        return hopeless[0], 0, []
    users = limits_and_users(limits, others, new)
    in_each = [s for s in others if all(s in users[name][1] for name in of_all)]
    if broken(limits, [s for s in others if s not in in_each], new):
        in_each = [s for s in others if any(s in users[name][1] for name in of_all)]
    return (*next(iter(of_all.items())), in_each)


def fewest(limits: Limits, others: Sequence[Session], new: Playing) -> tuple[Session, ...] | None:
    """The fewest sessions to end so that all limits hold for the new one; None = no end makes room.

    Of several smallest sets, the one with the oldest sessions or, for `evict_newest`, with the newest. `others`: the
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
