"""Decision whether the account may have one more session, and which sessions have to end for it.

Pure functions over the limits and the active sessions of one account. No database, no clock.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import NamedTuple
from uuid import UUID

from srm.db.models import Mode, OnLimit, SameDevice
from srm.errors import SessionLimitReached

SEARCH_BUDGET = 100_000
"""Work that the search for the smallest set to evict may take: sets tried, times sessions, times broken limits.

Some 50 ms, in which the account is locked. Enough for a dozen sessions and three limits broken at once.
"""


class Limits(NamedTuple):
    """Limits of the profile and of the account, and what the profile does when one is reached. None = unlimited."""

    max_sessions: int | None = None
    """Most sessions at once, of those that count."""
    max_sessions_per_content: int | None = None
    """Most sessions at once on one content id."""
    max_ip_addresses: int | None = None
    """Most addresses that have a session at once."""
    max_sessions_per_ip: int | None = None
    """Most sessions at once from one address."""
    max_sessions_of_device_group: int | None = None
    """Most sessions at once on devices of the group that the requesting device is in."""
    max_sessions_of_content_groups: Sequence[int | None] | None = None
    """Most sessions at once on contents of each group of the requested content, in the order of its groups.

    None = the content is in no group.
    """
    on_limit: OnLimit = "deny"
    """Deny a setup that would exceed a limit, or evict sessions for it."""
    same_device: SameDevice = "count"
    """Count a session that the requesting device already has, or replace it."""
    mode: Mode = "enforce"
    """Enforce the limits, or only observe which setups they would deny."""


LIMITS = tuple(name for name in Limits._fields if name.startswith("max_"))
"""Fields of Limits that are limits; a session keeps those that it was admitted under, in columns of these names."""


class RequestedSession(NamedTuple):
    """Session that a setup asks for, as far as the limits look at it."""

    device_id: str
    device_group: str
    content_id: str
    content_groups: Sequence[str] | None = None
    address: str | None = None
    """None = not known; then no limit on addresses holds for the session."""
    counts: bool = True
    """The session counts towards `max_sessions`."""


class ActiveSession(NamedTuple):
    """Session that holds a slot. The fields are columns of `sessions`."""

    session_id: UUID
    device_id: str
    content_type: str
    content_id: str
    timeout_seconds: int | None
    idempotency_key: str | None
    device_group: str | None
    content_groups: Sequence[str] | None
    address: str | None
    counts: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """Active sessions that have to end for the requested one."""

    replaced: Sequence[ActiveSession]
    """Sessions whose place the new one takes."""
    evicted: Sequence[ActiveSession] = ()
    """Sessions to end so that the limits hold: as few as possible."""
    observed: SessionLimitReached | None = None
    """Denial that enforced limits would have led to. With it, `evicted` is empty."""


class Rule(NamedTuple):
    """Limit that holds for the requested session, and the active sessions that use it up."""

    name: str
    limit: int
    units: Sequence[Sequence[int]]
    """Positions of active sessions. All sessions of a unit have to end to free one slot of the limit.

    A unit is one session or, for `max_ip_addresses`, all sessions of an address. The requested session is one more.
    """

    @property
    def surplus(self) -> int:
        """Units that have to end for the requested session; 0 or less when the limit holds anyway."""
        return len(self.units) + 1 - self.limit

    @property
    def can_hold(self) -> bool:
        """True when ending sessions can make the limit hold; a limit of 0 never holds."""
        return self.limit > 0

    def holds_without(self, ended: Collection[int]) -> bool:
        """True when the limit holds once the sessions at these positions have ended."""
        freed = sum(all(position in ended for position in unit) for unit in self.units)
        return freed >= self.surplus


def decide(
    limits: Limits, active: Sequence[ActiveSession], requested: RequestedSession, take_over: Collection[UUID] = ()
) -> Decision:
    """Return the sessions to end so that the account may have the requested one too.

    `active`: the active sessions of the account, the oldest first. `take_over`: ids of sessions that the requested one
    replaces; ids that are not active are ignored.

    Raises SessionLimitReached when the account may not have the session; then no session is to end.
    """
    replaced: list[ActiveSession] = []
    others: list[ActiveSession] = []
    for session in active:
        is_same_device = limits.same_device == "replace" and session.device_id == requested.device_id
        (replaced if is_same_device or session.session_id in take_over else others).append(session)
    broken = [rule for rule in _rules(limits, others, requested) if rule.surplus > 0]
    if not broken:
        return Decision(replaced)
    hopeless = [rule for rule in broken if not rule.can_hold]
    rule = (hopeless or broken)[0]
    conflicts = [] if hopeless else sorted(_conflicts(broken))
    denial = SessionLimitReached(rule.name, rule.limit, [others[at].session_id for at in conflicts])
    if limits.mode == "observe":
        return Decision(replaced, observed=denial)
    if hopeless or limits.on_limit == "deny":
        raise denial
    evicted = _fewest(broken, newest_first=limits.on_limit == "evict_newest")
    return Decision(replaced, [others[at] for at in sorted(evicted)])


def _rules(limits: Limits, others: Sequence[ActiveSession], requested: RequestedSession) -> Iterator[Rule]:
    """Yield the limits that hold for the requested session. A denial names the first one that is broken."""
    if limits.max_sessions is not None and requested.counts:
        yield Rule("max_sessions", limits.max_sessions, [[at] for at, one in enumerate(others) if one.counts])
    if limits.max_sessions_per_content is not None:
        same_content = [[at] for at, one in enumerate(others) if one.content_id == requested.content_id]
        yield Rule("max_sessions_per_content", limits.max_sessions_per_content, same_content)
    if requested.address is not None:
        if limits.max_ip_addresses is not None:
            yield Rule("max_ip_addresses", limits.max_ip_addresses, _by_other_address(others, requested.address))
        if limits.max_sessions_per_ip is not None:
            same_address = [[at] for at, one in enumerate(others) if one.address == requested.address]
            yield Rule("max_sessions_per_ip", limits.max_sessions_per_ip, same_address)
    if limits.max_sessions_of_device_group is not None:
        same_group = [[at] for at, one in enumerate(others) if one.device_group == requested.device_group]
        yield Rule(f"device_group:{requested.device_group}", limits.max_sessions_of_device_group, same_group)
    for group, limit in zip(requested.content_groups or (), limits.max_sessions_of_content_groups or (), strict=True):
        if limit is not None:
            same_group = [[at] for at, one in enumerate(others) if group in (one.content_groups or ())]
            yield Rule(f"content_group:{group}", limit, same_group)


def _by_other_address(others: Sequence[ActiveSession], address: str) -> list[list[int]]:
    """Return the positions of the sessions of each address, without the given address."""
    by_address = defaultdict(list)
    for at, session in enumerate(others):
        if session.address is not None and session.address != address:
            by_address[session.address].append(at)
    return list(by_address.values())


def _conflicts(broken: Sequence[Rule]) -> Collection[int]:
    """Return the positions of the sessions whose end would make room.

    These are the sessions that use up every broken limit, if their end is enough. Otherwise all sessions that use up
    any of them.
    """
    of_each = [set(chain.from_iterable(rule.units)) for rule in broken]
    of_all = set.intersection(*of_each)
    return of_all if all(rule.holds_without(of_all) for rule in broken) else set.union(*of_each)


def _fewest(broken: Sequence[Rule], *, newest_first: bool) -> Sequence[int]:
    """Return the smallest set of positions whose end makes room.

    Of several such sets, return the one with the oldest session, or with `newest_first` the newest.

    SEARCH_BUDGET may run out, as after a limit was lowered under hundreds of sessions. Then the set may not be the
    smallest, but no session of it can be spared.
    """
    candidates = sorted({at for rule in broken for at in chain.from_iterable(rule.units)}, reverse=newest_first)
    at_least = max(sum(sorted(map(len, rule.units))[: rule.surplus]) for rule in broken)
    sizes = range(at_least, len(candidates) + 1)
    sets = chain.from_iterable(combinations(candidates, size) for size in sizes)
    for ended in map(frozenset, islice(sets, SEARCH_BUDGET // (len(candidates) * len(broken)))):
        if all(rule.holds_without(ended) for rule in broken):
            return list(ended)
    return _none_to_spare(candidates, broken)


def _none_to_spare(candidates: Sequence[int], broken: Sequence[Rule]) -> Sequence[int]:
    """Greedy fallback: keep sessions, the last candidate first, while the limits hold. Return the others."""
    ended = []
    unit_of = [{at: number for number, unit in enumerate(rule.units) for at in unit} for rule in broken]
    kept_units: list[set[int]] = [set() for _ in broken]
    for at in reversed(candidates):
        concerned = [
            (rule, unit[at], kept) for rule, unit, kept in zip(broken, unit_of, kept_units, strict=True) if at in unit
        ]
        if all(unit in kept or len(kept) < rule.limit - 1 for rule, unit, kept in concerned):
            for _, unit, kept in concerned:
                kept.add(unit)
        else:
            ended.append(at)
    return ended
