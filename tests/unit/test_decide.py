"""Decision whether an account may have one more session, and which sessions end for it (docs/rules.md)."""

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
    """A session on a device and a content of its own, without a known address."""
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
    """Positions of the sessions among the active ones."""
    return [session.session_id.int for session in ended]


def ended(limits: Limits, *devices: str, on: str = "new") -> tuple[list[int], list[int]]:
    """Positions of the replaced and of the evicted sessions, for a setup of the device `on`."""
    decision = decide(limits, active_on(*devices), RequestedSession(on, "tv", "film"))
    return numbers(decision.replaced), numbers(decision.evicted)


def denial(
    limits: Limits, active: Sequence[ActiveSession], requested: RequestedSession = TV, **more: Any
) -> tuple[str, int, list[int]]:
    """Rule, limit and positions of the conflicts in the denial of a setup; fails if the setup is admitted."""
    with pytest.raises(SessionLimitReached) as denied:
        decide(limits, active, requested, **more)
    return denied.value.rule, denied.value.limit, [session_id.int for session_id in denied.value.conflicts]


class TestMaxSessions:
    @pytest.mark.parametrize(("limit", "active"), [(1, 0), (3, 0), (3, 2), (None, 0), (None, 10_000)])
    @pytest.mark.parametrize("on_limit", get_args(OnLimit))
    def test_setups_below_the_limit_are_admitted(self, limit: int | None, active: int, on_limit: OnLimit) -> None:
        assert ended(Limits(limit, on_limit=on_limit), *["tv"] * active) == ([], [])

    @pytest.mark.parametrize(("limit", "active"), [(1, 1), (3, 3), (3, 4)])
    def test_setups_from_the_limit_on_are_denied(self, limit: int, active: int) -> None:
        assert denial(Limits(limit), active_on(*["tv"] * active)) == ("max_sessions", limit, list(range(active)))

    @pytest.mark.parametrize("active", [0, 1])
    @pytest.mark.parametrize("on_limit", get_args(OnLimit))
    def test_a_limit_of_zero_denies_even_with_eviction(self, active: int, on_limit: OnLimit) -> None:
        assert denial(Limits(0, on_limit=on_limit), active_on(*["tv"] * active)) == ("max_sessions", 0, [])

    def test_sessions_that_do_not_count_use_no_limit(self) -> None:
        active = sessions({"counts": False}, {}, {"counts": False})

        assert decide(Limits(2), active, TV) == Decision([])
        assert denial(Limits(1), active) == ("max_sessions", 1, [1])

    def test_a_session_that_does_not_count_is_always_admitted(self) -> None:
        assert decide(Limits(1), active_on("a", "b"), TV._replace(counts=False)) == Decision([])


class TestMaxSessionsPerContent:
    def test_sessions_on_one_content_count_under_all_content_types(self) -> None:
        active = sessions({"content_id": "film"}, {}, {"content_id": "film", "content_type": "CU"})

        assert decide(Limits(max_sessions_per_content=3), active, TV) == Decision([])
        assert denial(Limits(max_sessions_per_content=2), active) == ("max_sessions_per_content", 2, [0, 2])

    def test_sessions_on_other_contents_do_not_count(self) -> None:
        active = sessions({}, {}, {})

        assert decide(Limits(max_sessions_per_content=1), active, TV) == Decision([])


class TestAddresses:
    HOME, CAFE, HOTEL = "192.0.2.1", "192.0.2.2", "2001:db8::/64"

    def test_addresses_count_and_not_their_sessions(self) -> None:
        active = sessions({"address": self.HOME}, {"address": self.HOME}, {"address": self.CAFE})

        assert decide(Limits(max_ip_addresses=2), active, TV._replace(address=self.HOME)) == Decision([])
        assert denial(Limits(max_ip_addresses=2), active, TV._replace(address=self.HOTEL)) == (
            "max_ip_addresses",
            2,
            [0, 1, 2],
        )

    def test_the_requesting_address_is_not_in_the_way(self) -> None:
        active = sessions({"address": self.HOME}, {"address": self.CAFE})

        assert denial(Limits(max_ip_addresses=1), active, TV._replace(address=self.HOME)) == (
            "max_ip_addresses",
            1,
            [1],
        )

    def test_the_address_with_the_fewest_sessions_is_evicted(self) -> None:
        active = sessions({"address": self.HOME}, {"address": self.HOME}, {"address": self.CAFE})
        limits = Limits(max_ip_addresses=2, on_limit="evict_oldest")

        assert numbers(decide(limits, active, TV._replace(address=self.HOTEL)).evicted) == [2]

    @pytest.mark.parametrize(("on_limit", "evicted"), [("evict_oldest", [0, 2]), ("evict_newest", [1, 3])])
    def test_all_sessions_of_an_address_are_evicted(self, on_limit: OnLimit, evicted: list[int]) -> None:
        active = sessions(*({"address": address} for address in (self.HOME, self.CAFE) * 2))
        limits = Limits(max_ip_addresses=2, on_limit=on_limit)

        assert numbers(decide(limits, active, TV._replace(address=self.HOTEL)).evicted) == evicted

    def test_sessions_from_one_address_count(self) -> None:
        active = sessions({"address": self.HOME}, {"address": self.CAFE}, {"address": self.HOME})
        limits = Limits(max_sessions_per_ip=2)

        assert decide(limits, active, TV._replace(address=self.CAFE)) == Decision([])
        assert denial(limits, active, TV._replace(address=self.HOME)) == ("max_sessions_per_ip", 2, [0, 2])

    def test_sessions_without_a_known_address_do_not_count(self) -> None:
        limits = Limits(max_ip_addresses=1, max_sessions_per_ip=1)

        assert decide(limits, sessions({"address": self.HOME}), TV) == Decision([])
        assert decide(limits, sessions({}, {}), TV._replace(address=self.HOME)) == Decision([])


class TestGroups:
    def test_sessions_on_devices_of_the_group_count(self) -> None:
        active = sessions({"device_group": "tv"}, {"device_group": "mobile"}, {"device_group": None})
        limits = Limits(max_sessions_of_device_group=1)

        assert decide(limits, active[1:], TV) == Decision([])
        assert denial(limits, active) == ("device_group:tv", 1, [0])

    def test_sessions_on_contents_of_the_group_count(self) -> None:
        active = sessions({"content_groups": ["news", "sports"]}, {"content_groups": ["news"]}, {})
        requested = TV._replace(content_groups=["children", "sports"])

        assert decide(Limits(max_sessions_of_content_groups=[1, 2]), active, requested) == Decision([])
        assert denial(Limits(max_sessions_of_content_groups=[1, 1]), active, requested) == (
            "content_group:sports",
            1,
            [0],
        )
        assert decide(Limits(max_sessions_of_content_groups=[1, None]), active, requested) == Decision([])


class TestSameDeviceAndTakeOver:
    def test_all_sessions_of_the_requesting_device_are_replaced(self) -> None:
        limits = Limits(2, same_device="replace")

        assert ended(limits, "tv", "phone", on="tv") == ([0], [])
        assert ended(limits, "tv", "tv", "phone", on="tv") == ([0, 1], [])
        assert ended(limits, "tv", on="phone") == ([], [])

    def test_a_denied_setup_replaces_nothing(self) -> None:
        assert denial(Limits(1, same_device="replace"), active_on("tv", "phone"), TV._replace(device_id="tv")) == (
            "max_sessions",
            1,
            [1],
        )

    def test_no_session_is_evicted_when_a_replacement_makes_room(self) -> None:
        assert ended(Limits(2, on_limit="evict_oldest", same_device="replace"), "phone", "tv", on="tv") == ([1], [])

    def test_a_take_over_replaces_the_named_sessions_that_are_active(self) -> None:
        active = active_on("a", "b")

        decision = decide(Limits(2), active, TV, [active[1].session_id, UUID(int=99)])

        assert (numbers(decision.replaced), decision.evicted) == ([1], ())

    def test_a_take_over_that_does_not_make_room_is_denied(self) -> None:
        active = active_on("a", "b", "c")

        assert denial(Limits(2), active, take_over=[active[1].session_id]) == ("max_sessions", 2, [0, 2])

    def test_sessions_are_evicted_when_a_take_over_does_not_make_room(self) -> None:
        active = active_on("a", "b", "c")

        decision = decide(Limits(2, on_limit="evict_oldest"), active, TV, [active[1].session_id])

        assert (numbers(decision.replaced), numbers(decision.evicted)) == ([1], [0])


class TestEviction:
    def test_evict_oldest_ends_the_oldest_session(self) -> None:
        assert ended(Limits(3, on_limit="evict_oldest"), "a", "b", "c") == ([], [0])

    def test_evict_newest_ends_the_newest_session(self) -> None:
        assert ended(Limits(3, on_limit="evict_newest"), "a", "b", "c") == ([], [2])

    def test_a_lowered_limit_evicts_several_sessions(self) -> None:
        assert ended(Limits(2, on_limit="evict_oldest"), "a", "b", "c", "d") == ([], [0, 1, 2])
        assert ended(Limits(2, on_limit="evict_newest"), "a", "b", "c", "d") == ([], [1, 2, 3])

    def test_one_session_in_the_way_of_two_limits_is_evicted_alone(self) -> None:
        """Evicting the oldest session of each limit would end two."""
        active = sessions({"device_group": "tv"}, {"content_id": "film"}, {"device_group": "tv", "content_id": "film"})
        limits = Limits(max_sessions_per_content=2, max_sessions_of_device_group=2, on_limit="evict_oldest")

        assert numbers(decide(limits, active, TV).evicted) == [2]

    def test_only_a_session_that_makes_room_is_evicted(self) -> None:
        """The oldest session is on no device of the group, so ending it makes no decision."""
        active = sessions({}, {"device_group": "tv"})

        decision = decide(Limits(max_sessions_of_device_group=1, on_limit="evict_oldest"), active, TV)

        assert numbers(decision.evicted) == [1]

    def test_sessions_that_use_every_broken_limit_are_the_conflicts(self) -> None:
        active = sessions({"content_id": "film"}, {}, {"content_id": "film"})

        assert denial(Limits(3, 2), active) == ("max_sessions", 3, [0, 2])

    def test_all_users_of_broken_limits_are_conflicts_when_no_fewer_make_room(self) -> None:
        active = sessions({"content_id": "film"}, {})

        assert denial(Limits(1, 1), active) == ("max_sessions", 1, [0, 1])

    def test_a_denial_names_a_limit_of_zero_before_other_limits(self) -> None:
        limits = Limits(1, max_sessions_of_device_group=0, on_limit="evict_oldest")

        assert denial(limits, active_on("a")) == ("device_group:tv", 0, [])

    @pytest.mark.parametrize("on_limit", ["evict_oldest", "evict_newest"])
    def test_the_search_for_sessions_to_evict_takes_a_bounded_time_of_the_processor(self, on_limit: OnLimit) -> None:
        """Several limits were lowered under thousands of sessions. The account is locked during the search."""
        active = sessions(
            *(
                {"device_group": ("tv", "mobile")[n % 2], "content_id": ("film", "other")[n % 3 == 0]}
                for n in range(3000)
            )
        )
        limits = Limits(100, 40, max_sessions_of_device_group=70, on_limit=on_limit)
        began_at = time.process_time()

        decision = decide(limits, active, TV)

        assert time.process_time() - began_at < 1
        stay = [session for session in active if session not in set(decision.evicted)]
        assert len(stay) == 99
        assert len([session for session in stay if session.content_id == "film"]) <= 39
        assert len([session for session in stay if session.device_group == "tv"]) <= 69


class TestObserve:
    def test_observe_admits_and_returns_the_denial(self) -> None:
        decision = decide(Limits(1, mode="observe"), active_on("a"), TV)

        assert (decision.replaced, decision.evicted) == ([], ())
        assert decision.observed is not None
        assert (decision.observed.rule, decision.observed.limit, len(decision.observed.conflicts)) == (
            "max_sessions",
            1,
            1,
        )

    def test_observe_evicts_no_session(self) -> None:
        decision = decide(Limits(1, on_limit="evict_oldest", mode="observe"), active_on("a"), TV)

        assert (decision.evicted, decision.observed is not None) == ((), True)

    def test_observe_returns_no_denial_below_the_limit(self) -> None:
        assert decide(Limits(2, mode="observe"), active_on("a"), TV) == Decision([])

    def test_observe_still_replaces(self) -> None:
        decision = decide(Limits(1, same_device="replace", mode="observe"), active_on("new"), TV)

        assert (numbers(decision.replaced), decision.observed) == ([0], None)


# Comparison with the rules of tests/rules.py, which are written as plainly as can be.

DEVICES = {"tv 1": "tv", "tv 2": "tv", "phone": "mobile"}
CONTENTS: dict[str, Sequence[str]] = {"film": (), "race": ("sports",), "match": ("live", "sports")}
ADDRESSES = (None, "192.0.2.1", "192.0.2.2")
A_LIMIT = st.none() | st.integers(0, 4)


@st.composite
def asked(draw: st.DrawFn) -> dict[str, Any]:
    """Properties of a session that limits look at."""
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
    except SessionLimitReached as denial:
        return denial


@given(a_situation())
def test_all_limits_hold_and_as_few_sessions_as_possible_end(
    situation: Situation,
) -> None:
    limits, active, requested = situation
    own = [s for s in active if s.device_id == requested.device_id] if limits.same_device == "replace" else []
    others = [session for session in active if session not in own]
    to_end = rules.fewest(limits, others, requested)

    decision = outcome(limits, active, requested)

    if isinstance(decision, SessionLimitReached):
        assert to_end != ()
        assert to_end is None or limits.on_limit == "deny"
        assert decision.rule in rules.broken(limits, others, requested)
        assert set(decision.conflicts) <= {session.session_id for session in others}
        return

    assert list(decision.replaced) == own
    assert to_end is not None
    assert not (to_end and limits.on_limit == "deny")
    assert sorted(numbers(decision.evicted)) == sorted(numbers(to_end))


@given(a_situation())
def test_ending_the_conflicts_makes_room(
    situation: Situation,
) -> None:
    limits, active, requested = situation
    limits = limits._replace(on_limit="deny")
    denial = outcome(limits, active, requested)
    if not isinstance(denial, SessionLimitReached):
        return

    again = outcome(limits, active, requested, denial.conflicts)

    if denial.conflicts:
        assert isinstance(again, Decision)
    else:
        assert denial.limit == 0
