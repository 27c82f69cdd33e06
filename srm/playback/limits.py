"""May the account have one more session? A pure function over its limits and its active sessions."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import NamedTuple
from uuid import UUID

from srm.db.models import Mode, OnLimit, SameDevice
from srm.errors import SessionLimitReached

MOST_LOOKED_AT = 100_000
"""Sessions, once for each set that they are tried in and each limit, that are looked at for the smallest set that makes
room: some 50 ms, while the account is locked. Enough for a dozen sessions and three limits broken at once."""


class Limits(NamedTuple):
    """What the profile, and the account itself, say of a setup. A limit that is None does not hold."""

    max_sessions: int | None = None
    """Sessions that count, at once."""
    max_sessions_per_content: int | None = None
    """Sessions on one contentID."""
    max_ip_addresses: int | None = None
    """Addresses with a session."""
    max_sessions_per_ip: int | None = None
    """Sessions from one address."""
    max_sessions_of_device_group: int | None = None
    """Sessions on devices of the group of the setup's device."""
    max_sessions_of_content_groups: Sequence[int | None] | None = None
    """Sessions on contents of each group that the setup's content is in, in that order; None = it is in none."""
    on_limit: OnLimit = "deny"
    """Refuse a setup that goes over a limit, or end sessions for it."""
    same_device: SameDevice = "count"
    """Whether a session that the device already has counts, or is ended first."""
    mode: Mode = "enforce"
    """Whether the limits hold, or are only looked at."""


LIMITS = tuple(name for name in Limits._fields if name.startswith("max_"))
"""The limits proper: a session keeps those under which it was admitted, under these names."""


class Setup(NamedTuple):
    """What the limits look at in a session that is asked for."""

    device_id: str
    device_group: str
    content_id: str
    content_groups: Sequence[str] | None = None
    address: str | None = None
    """None = not known: the limits of addresses do not see it."""
    counts: bool = True
    """Towards max_sessions."""


class ActiveSession(NamedTuple):
    """A session that holds a slot."""

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
    """What becomes of the others, so that one more keeps the limits."""

    replaced: Sequence[ActiveSession]
    """Sessions to end, as the new one takes their place."""
    evicted: Sequence[ActiveSession] = ()
    """Sessions to end to make room: as few as needed."""
    observed: SessionLimitReached | None = None
    """The refusal that would have been, if the limits were enforced; nobody is evicted then."""


class Rule(NamedTuple):
    """A limit, and what takes it up.

    `taken` are the sessions, by position, that have to end to free one of it: one session, or all of an address. The
    session that is asked for takes one more.
    """

    name: str
    limit: int
    taken: Sequence[Sequence[int]]

    @property
    def surplus(self) -> int:
        """How many too many there would be."""
        return len(self.taken) + 1 - self.limit

    @property
    def can_be_kept(self) -> bool:
        """Whether the end of sessions can make room at all."""
        return self.limit > 0

    def is_kept_without(self, ended: Collection[int]) -> bool:
        """Whether there is room when these have ended."""
        freed = sum(all(position in ended for position in sessions) for sessions in self.taken)
        return freed >= self.surplus


def decide(limits: Limits, active: Sequence[ActiveSession], setup: Setup, take_over: Collection[UUID] = ()) -> Decision:
    """What to end for one more session beside the active ones, which come oldest first.

    `take_over`: ids of sessions that it takes the place of, those that are not active left aside.
    SessionLimitReached when it may not be; then nothing is to be ended at all.
    """
    replaced: list[ActiveSession] = []
    others: list[ActiveSession] = []
    for session in active:
        is_same_device = limits.same_device == "replace" and session.device_id == setup.device_id
        (replaced if is_same_device or session.session_id in take_over else others).append(session)
    broken = [rule for rule in _rules(limits, others, setup) if rule.surplus > 0]
    if not broken:
        return Decision(replaced)
    hopeless = [rule for rule in broken if not rule.can_be_kept]
    rule = (hopeless or broken)[0]
    in_the_way = [] if hopeless else sorted(_in_the_way(broken))
    refusal = SessionLimitReached(rule.name, rule.limit, [others[at].session_id for at in in_the_way])
    if limits.mode == "observe":
        return Decision(replaced, observed=refusal)
    if hopeless or limits.on_limit == "deny":
        raise refusal
    evicted = _fewest(broken, newest_first=limits.on_limit == "evict_newest")
    return Decision(replaced, [others[at] for at in sorted(evicted)])


def _rules(limits: Limits, others: Sequence[ActiveSession], setup: Setup) -> Iterator[Rule]:
    """The limits that hold for the setup, in the order in which a refusal names them."""
    if limits.max_sessions is not None and setup.counts:
        yield Rule("max_sessions", limits.max_sessions, [[at] for at, one in enumerate(others) if one.counts])
    if limits.max_sessions_per_content is not None:
        same_content = [[at] for at, one in enumerate(others) if one.content_id == setup.content_id]
        yield Rule("max_sessions_per_content", limits.max_sessions_per_content, same_content)
    if setup.address is not None:
        if limits.max_ip_addresses is not None:
            yield Rule("max_ip_addresses", limits.max_ip_addresses, _by_other_address(others, setup.address))
        if limits.max_sessions_per_ip is not None:
            same_address = [[at] for at, one in enumerate(others) if one.address == setup.address]
            yield Rule("max_sessions_per_ip", limits.max_sessions_per_ip, same_address)
    if limits.max_sessions_of_device_group is not None:
        same_group = [[at] for at, one in enumerate(others) if one.device_group == setup.device_group]
        yield Rule(f"device_group:{setup.device_group}", limits.max_sessions_of_device_group, same_group)
    for group, limit in zip(setup.content_groups or (), limits.max_sessions_of_content_groups or (), strict=True):
        if limit is not None:
            same_group = [[at] for at, one in enumerate(others) if group in (one.content_groups or ())]
            yield Rule(f"content_group:{group}", limit, same_group)


def _by_other_address(others: Sequence[ActiveSession], address: str) -> list[list[int]]:
    """The sessions of each address but this one."""
    by_address = defaultdict(list)
    for at, session in enumerate(others):
        if session.address is not None and session.address != address:
            by_address[session.address].append(at)
    return list(by_address.values())


def _in_the_way(broken: Sequence[Rule]) -> Collection[int]:
    """The sessions whose end makes room: those that help every broken limit, if that is enough, else all that help."""
    of_each = [set(chain.from_iterable(rule.taken)) for rule in broken]
    of_all = set.intersection(*of_each)
    return of_all if all(rule.is_kept_without(of_all) for rule in broken) else set.union(*of_each)


def _fewest(broken: Sequence[Rule], *, newest_first: bool) -> Sequence[int]:
    """Of the smallest sets of sessions whose end makes room, the one with the oldest, or the newest, in it.

    Where there are too many sets to look at (the limits were lowered, say, while hundreds of sessions were on), a
    set of which none can be spared.
    """
    candidates = sorted({at for rule in broken for at in chain.from_iterable(rule.taken)}, reverse=newest_first)
    at_least = max(sum(sorted(map(len, rule.taken))[: rule.surplus]) for rule in broken)
    sizes = range(at_least, len(candidates) + 1)
    sets = chain.from_iterable(combinations(candidates, size) for size in sizes)
    for ended in map(frozenset, islice(sets, MOST_LOOKED_AT // (len(candidates) * len(broken)))):
        if all(rule.is_kept_without(ended) for rule in broken):
            return list(ended)
    return _none_to_spare(candidates, broken)


def _none_to_spare(candidates: Sequence[int], broken: Sequence[Rule]) -> Sequence[int]:
    """All but those that may stay, if the last of the candidates are the first to be let stay."""
    ended = []
    units = [{at: unit for unit, sessions in enumerate(rule.taken) for at in sessions} for rule in broken]
    staying: list[set[int]] = [set() for _ in broken]
    for at in reversed(candidates):
        concerned = [
            (rule, unit[at], stay) for rule, unit, stay in zip(broken, units, staying, strict=True) if at in unit
        ]
        if all(unit in stay or len(stay) < rule.limit - 1 for rule, unit, stay in concerned):
            for _, unit, stay in concerned:
                stay.add(unit)
        else:
            ended.append(at)
    return ended
