"""May the account have one more session, and which ones have to go for it?"""

import time
from collections.abc import Sequence
from typing import Any, TypeAlias, get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srm.db.models import OnLimit, SameDevice
from srm.errors import SessionLimitReached
from srm.playback.limits import ActiveSession, Decision, Limits, RequestedSession, decide
from tests import rules

TV = RequestedSession("new", "tv", "film")


def a_session(number: int = 0, **columns: Any) -> ActiveSession:
    """A session of another device, on another content, from nowhere."""
    values = {
        "session_id": UUID(int=number),
        "device_id": f"device {number}",
        "content_type": "COD",
        "content_id": f"content {number}",
        "timeout_seconds": 30,
        "idempotency_key": None,
        "device_group": "computer",
        "content_groups": None,
        "address": None,
        "counts": True,
    }
    return ActiveSession(**{**values, **columns})


def sessions(*columns: dict[str, Any]) -> list[ActiveSession]:
    """Sessions with these columns, the oldest first."""
    return [a_session(number, **these) for number, these in enumerate(columns)]


def active_on(*devices: str) -> list[ActiveSession]:
    """Sessions on these devices, the oldest first."""
    return sessions(*({"device_id": device} for device in devices))


def numbers(ended: Sequence[ActiveSession]) -> list[int]:
    """Their positions among the active ones."""
    return [session.session_id.int for session in ended]


def ended(limits: Limits, *devices: str, on: str = "new") -> tuple[list[int], list[int]]:
    """Positions of the sessions that are replaced, and of those that are evicted."""
    room = decide(limits, active_on(*devices), RequestedSession(on, "tv", "film"))
    return numbers(room.replaced), numbers(room.evicted)


def refusal(
    limits: Limits, active: Sequence[ActiveSession], requested: RequestedSession = TV, **more: Any
) -> tuple[str, int, list[int]]:
    """Rule, limit and the positions of the sessions in the way, of a setup that must be refused."""
    with pytest.raises(SessionLimitReached) as refused:
        decide(limits, active, requested, **more)
    return refused.value.rule, refused.value.limit, [session_id.int for session_id in refused.value.conflicts]


class TestMaxSessions:
    @pytest.mark.parametrize(("limit", "active"), [(1, 0), (3, 0), (3, 2), (None, 0), (None, 10_000)])
    @pytest.mark.parametrize("on_limit", get_args(OnLimit))
    def test_it_admits_below_the_limit(self, limit: int | None, active: int, on_limit: OnLimit) -> None:
        assert ended(Limits(limit, on_limit=on_limit), *["tv"] * active) == ([], [])

    @pytest.mark.parametrize(("limit", "active"), [(1, 1), (3, 3), (3, 4)])
    def test_it_refuses_from_the_limit_on(self, limit: int, active: int) -> None:
        assert refusal(Limits(limit), active_on(*["tv"] * active)) == ("max_sessions", limit, list(range(active)))

    @pytest.mark.parametrize("active", [0, 1])
    @pytest.mark.parametrize("on_limit", get_args(OnLimit))
    def test_it_refuses_when_no_end_can_make_room(self, active: int, on_limit: OnLimit) -> None:
        assert refusal(Limits(0, on_limit=on_limit), active_on(*["tv"] * active)) == ("max_sessions", 0, [])

    def test_it_leaves_aside_what_does_not_count(self) -> None:
        active = sessions({"counts": False}, {}, {"counts": False})

        assert decide(Limits(2), active, TV) == Decision([])
        assert refusal(Limits(1), active) == ("max_sessions", 1, [1])

    def test_it_lets_in_whatever_does_not_count(self) -> None:
        assert decide(Limits(1), active_on("a", "b"), TV._replace(counts=False)) == Decision([])


class TestMaxSessionsPerContent:
    def test_it_counts_the_sessions_on_the_content(self) -> None:
        active = sessions({"content_id": "film"}, {}, {"content_id": "film", "content_type": "CU"})

        assert decide(Limits(max_sessions_per_content=3), active, TV) == Decision([])
        assert refusal(Limits(max_sessions_per_content=2), active) == ("max_sessions_per_content", 2, [0, 2])

    def test_it_does_not_see_other_contents(self) -> None:
        active = sessions({}, {}, {})

        assert decide(Limits(max_sessions_per_content=1), active, TV) == Decision([])


class TestAddresses:
    HOME, CAFE, HOTEL = "192.0.2.1", "192.0.2.2", "2001:db8::/64"

    def test_it_counts_addresses_and_not_sessions(self) -> None:
        active = sessions({"address": self.HOME}, {"address": self.HOME}, {"address": self.CAFE})

        assert decide(Limits(max_ip_addresses=2), active, TV._replace(address=self.HOME)) == Decision([])
        assert refusal(Limits(max_ip_addresses=2), active, TV._replace(address=self.HOTEL)) == (
            "max_ip_addresses",
            2,
            [0, 1, 2],
        )

    def test_the_address_of_the_setup_is_not_in_the_way(self) -> None:
        active = sessions({"address": self.HOME}, {"address": self.CAFE})

        assert refusal(Limits(max_ip_addresses=1), active, TV._replace(address=self.HOME)) == (
            "max_ip_addresses",
            1,
            [1],
        )

    def test_it_evicts_the_address_with_the_fewest_sessions(self) -> None:
        active = sessions({"address": self.HOME}, {"address": self.HOME}, {"address": self.CAFE})
        limits = Limits(max_ip_addresses=2, on_limit="evict_oldest")

        assert numbers(decide(limits, active, TV._replace(address=self.HOTEL)).evicted) == [2]

    @pytest.mark.parametrize(("on_limit", "evicted"), [("evict_oldest", [0, 2]), ("evict_newest", [1, 3])])
    def test_it_evicts_all_of_an_address(self, on_limit: OnLimit, evicted: list[int]) -> None:
        active = sessions(*({"address": address} for address in (self.HOME, self.CAFE) * 2))
        limits = Limits(max_ip_addresses=2, on_limit=on_limit)

        assert numbers(decide(limits, active, TV._replace(address=self.HOTEL)).evicted) == evicted

    def test_it_counts_the_sessions_from_the_address(self) -> None:
        active = sessions({"address": self.HOME}, {"address": self.CAFE}, {"address": self.HOME})
        limits = Limits(max_sessions_per_ip=2)

        assert decide(limits, active, TV._replace(address=self.CAFE)) == Decision([])
        assert refusal(limits, active, TV._replace(address=self.HOME)) == ("max_sessions_per_ip", 2, [0, 2])

    def test_it_does_not_see_what_comes_from_nowhere(self) -> None:
        limits = Limits(max_ip_addresses=1, max_sessions_per_ip=1)

        assert decide(limits, sessions({"address": self.HOME}), TV) == Decision([])
        assert decide(limits, sessions({}, {}), TV._replace(address=self.HOME)) == Decision([])


class TestGroups:
    def test_it_counts_the_sessions_on_devices_of_the_group(self) -> None:
        active = sessions({"device_group": "tv"}, {"device_group": "mobile"}, {"device_group": None})
        limits = Limits(max_sessions_of_device_group=1)

        assert decide(limits, active[1:], TV) == Decision([])
        assert refusal(limits, active) == ("device_group:tv", 1, [0])

    def test_it_counts_the_sessions_on_contents_of_the_group(self) -> None:
        active = sessions({"content_groups": ["news", "sports"]}, {"content_groups": ["news"]}, {})
        requested = TV._replace(content_groups=["children", "sports"])

        assert decide(Limits(max_sessions_of_content_groups=[1, 2]), active, requested) == Decision([])
        assert refusal(Limits(max_sessions_of_content_groups=[1, 1]), active, requested) == (
            "content_group:sports",
            1,
            [0],
        )
        assert decide(Limits(max_sessions_of_content_groups=[1, None]), active, requested) == Decision([])


class TestSameDeviceAndTakeOver:
    def test_it_replaces_the_sessions_of_the_same_device(self) -> None:
        limits = Limits(2, same_device="replace")

        assert ended(limits, "tv", "phone", on="tv") == ([0], [])
        assert ended(limits, "tv", "tv", "phone", on="tv") == ([0, 1], [])
        assert ended(limits, "tv", on="phone") == ([], [])

    def test_it_replaces_nothing_when_the_setup_is_refused(self) -> None:
        assert refusal(Limits(1, same_device="replace"), active_on("tv", "phone"), TV._replace(device_id="tv")) == (
            "max_sessions",
            1,
            [1],
        )

    def test_it_evicts_nobody_when_replacing_makes_room(self) -> None:
        assert ended(Limits(2, on_limit="evict_oldest", same_device="replace"), "phone", "tv", on="tv") == ([1], [])

    def test_it_takes_over_what_is_named_and_still_there(self) -> None:
        active = active_on("a", "b")

        room = decide(Limits(2), active, TV, [active[1].session_id, UUID(int=99)])

        assert (numbers(room.replaced), room.evicted) == ([1], ())

    def test_it_takes_over_nothing_when_that_is_not_enough(self) -> None:
        active = active_on("a", "b", "c")

        assert refusal(Limits(2), active, take_over=[active[1].session_id]) == ("max_sessions", 2, [0, 2])

    def test_it_evicts_what_is_missing_after_a_takeover(self) -> None:
        active = active_on("a", "b", "c")

        room = decide(Limits(2, on_limit="evict_oldest"), active, TV, [active[1].session_id])

        assert (numbers(room.replaced), numbers(room.evicted)) == ([1], [0])


class TestEviction:
    def test_it_evicts_the_oldest(self) -> None:
        assert ended(Limits(3, on_limit="evict_oldest"), "a", "b", "c") == ([], [0])

    def test_it_evicts_the_newest(self) -> None:
        assert ended(Limits(3, on_limit="evict_newest"), "a", "b", "c") == ([], [2])

    def test_it_evicts_several_when_the_limit_has_been_lowered(self) -> None:
        assert ended(Limits(2, on_limit="evict_oldest"), "a", "b", "c", "d") == ([], [0, 1, 2])
        assert ended(Limits(2, on_limit="evict_newest"), "a", "b", "c", "d") == ([], [1, 2, 3])

    def test_it_ends_one_session_that_is_in_the_way_of_two_limits(self) -> None:
        """Rather than the oldest of each."""
        active = sessions({"device_group": "tv"}, {"content_id": "film"}, {"device_group": "tv", "content_id": "film"})
        limits = Limits(max_sessions_per_content=2, max_sessions_of_device_group=2, on_limit="evict_oldest")

        assert numbers(decide(limits, active, TV).evicted) == [2]

    def test_it_ends_only_what_makes_room(self) -> None:
        """The oldest session is not on a device of the group."""
        active = sessions({}, {"device_group": "tv"})

        room = decide(Limits(max_sessions_of_device_group=1, on_limit="evict_oldest"), active, TV)

        assert numbers(room.evicted) == [1]

    def test_what_is_in_the_way_of_all_limits_is_in_the_way(self) -> None:
        active = sessions({"content_id": "film"}, {}, {"content_id": "film"})

        assert refusal(Limits(3, 2), active) == ("max_sessions", 3, [0, 2])

    def test_where_that_is_not_enough_all_are(self) -> None:
        active = sessions({"content_id": "film"}, {})

        assert refusal(Limits(1, 1), active) == ("max_sessions", 1, [0, 1])

    def test_a_limit_that_no_end_can_keep_is_the_one_that_refuses(self) -> None:
        limits = Limits(1, max_sessions_of_device_group=0, on_limit="evict_oldest")

        assert refusal(limits, active_on("a")) == ("device_group:tv", 0, [])

    @pytest.mark.parametrize("on_limit", ["evict_oldest", "evict_newest"])
    def test_it_does_not_think_for_long(self, on_limit: OnLimit) -> None:
        """Several limits were lowered while thousands of sessions were on, and the lock is held meanwhile."""
        active = sessions(
            *(
                {"device_group": ("tv", "mobile")[n % 2], "content_id": ("film", "other")[n % 3 == 0]}
                for n in range(3000)
            )
        )
        limits = Limits(100, 40, max_sessions_of_device_group=70, on_limit=on_limit)
        began_at = time.monotonic()

        room = decide(limits, active, TV)

        assert time.monotonic() - began_at < 1
        stay = [session for session in active if session not in set(room.evicted)]
        assert len(stay) == 99
        assert len([session for session in stay if session.content_id == "film"]) <= 39
        assert len([session for session in stay if session.device_group == "tv"]) <= 69


class TestObserve:
    def test_it_lets_in_and_says_what_would_have_been(self) -> None:
        room = decide(Limits(1, mode="observe"), active_on("a"), TV)

        assert (room.replaced, room.evicted) == ([], ())
        assert room.observed is not None
        assert (room.observed.rule, room.observed.limit, len(room.observed.conflicts)) == ("max_sessions", 1, 1)

    def test_it_evicts_nobody(self) -> None:
        room = decide(Limits(1, on_limit="evict_oldest", mode="observe"), active_on("a"), TV)

        assert (room.evicted, room.observed is not None) == ((), True)

    def test_it_says_nothing_below_the_limit(self) -> None:
        assert decide(Limits(2, mode="observe"), active_on("a"), TV) == Decision([])

    def test_it_replaces_all_the_same(self) -> None:
        room = decide(Limits(1, same_device="replace", mode="observe"), active_on("new"), TV)

        assert (numbers(room.replaced), room.observed) == ([0], None)


# Against the rules written plainly.

DEVICES = {"tv 1": "tv", "tv 2": "tv", "phone": "mobile"}
CONTENTS: dict[str, Sequence[str]] = {"film": (), "race": ("sports",), "match": ("live", "sports")}
ADDRESSES = (None, "192.0.2.1", "192.0.2.2")
A_LIMIT = st.none() | st.integers(0, 4)


@st.composite
def asked(draw: st.DrawFn) -> dict[str, Any]:
    """What limits look at in a session."""
    device, content = draw(st.sampled_from(sorted(DEVICES))), draw(st.sampled_from(sorted(CONTENTS)))
    return {
        "device_id": device,
        "device_group": DEVICES[device],
        "content_id": content,
        "content_groups": CONTENTS[content] or None,
        "address": draw(st.sampled_from(ADDRESSES)),
        "counts": device != "phone",
    }


Situation: TypeAlias = tuple[Limits, list[ActiveSession], RequestedSession]


@st.composite
def a_situation(draw: st.DrawFn) -> Situation:
    requested = RequestedSession(**draw(asked()))
    groups = requested.content_groups
    limits = Limits(
        max_sessions=draw(A_LIMIT),
        max_sessions_per_content=draw(A_LIMIT),
        max_ip_addresses=draw(A_LIMIT),
        max_sessions_per_ip=draw(A_LIMIT),
        max_sessions_of_device_group=draw(A_LIMIT),
        max_sessions_of_content_groups=None if groups is None else [draw(A_LIMIT) for _ in groups],
        on_limit=draw(st.sampled_from(get_args(OnLimit))),
        same_device=draw(st.sampled_from(get_args(SameDevice))),
    )
    return limits, sessions(*draw(st.lists(asked(), max_size=7))), requested


def outcome(*arguments: Any) -> Decision | SessionLimitReached:
    try:
        return decide(*arguments)
    except SessionLimitReached as refusal:
        return refusal


@given(a_situation())
def test_it_keeps_all_limits_and_ends_as_few_as_needed(
    situation: Situation,
) -> None:
    limits, active, requested = situation
    own = [s for s in active if s.device_id == requested.device_id] if limits.same_device == "replace" else []
    others = [session for session in active if session not in own]
    to_end = rules.fewest(limits, others, requested)

    room = outcome(limits, active, requested)

    if isinstance(room, SessionLimitReached):
        assert to_end != ()
        assert to_end is None or limits.on_limit == "deny"
        assert room.rule in rules.broken(limits, others, requested)
        assert set(room.conflicts) <= {session.session_id for session in others}
        return

    assert list(room.replaced) == own
    assert to_end is not None
    assert not (to_end and limits.on_limit == "deny")
    assert sorted(numbers(room.evicted)) == sorted(numbers(to_end))


@given(a_situation())
def test_the_end_of_what_is_in_the_way_makes_room(
    situation: Situation,
) -> None:
    limits, active, requested = situation
    limits = limits._replace(on_limit="deny")
    refusal = outcome(limits, active, requested)
    if not isinstance(refusal, SessionLimitReached):
        return

    again = outcome(limits, active, requested, refusal.conflicts)

    if refusal.conflicts:
        assert isinstance(again, Decision)
    else:
        assert refusal.limit == 0
