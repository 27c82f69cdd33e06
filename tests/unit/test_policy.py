"""May the account have one more session, and which ones have to go for it?"""

from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srm.errors import SessionLimitReached
from srm.models import OnLimit, SameDevice
from srm.policy import ActiveSession, Limits, make_room


def active_on(*devices: str) -> list[ActiveSession]:
    """Sessions on these devices, the oldest first."""
    return [ActiveSession(UUID(int=number), device, "COD", "film", 30, None) for number, device in enumerate(devices)]


def ended(limits: Limits, *devices: str, on: str = "new") -> tuple[list[int], list[int]]:
    """Positions of the sessions that are replaced, and of those that are evicted."""
    room = make_room(limits, active_on(*devices), on)
    return [s.session_id.int for s in room.replaced], [s.session_id.int for s in room.evicted]


@pytest.mark.parametrize(("limit", "active"), [(1, 0), (3, 0), (3, 2), (None, 0), (None, 10_000)])
@pytest.mark.parametrize("on_limit", get_args(OnLimit))
def test_it_admits_below_the_limit(limit: int | None, active: int, on_limit: str) -> None:
    assert ended(Limits(limit, on_limit), *["tv"] * active) == ([], [])  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "active"), [(0, 0), (0, 1), (1, 1), (3, 3), (3, 4)])
def test_it_refuses_from_the_limit_on(limit: int, active: int) -> None:
    with pytest.raises(SessionLimitReached):
        make_room(Limits(limit), active_on(*["tv"] * active), "tv")


@pytest.mark.parametrize("on_limit", ["evict_oldest", "evict_newest"])
def test_it_refuses_when_no_eviction_can_make_room(on_limit: str) -> None:
    with pytest.raises(SessionLimitReached):
        make_room(Limits(0, on_limit), active_on("tv"), "new")  # type: ignore[arg-type]


def test_it_evicts_the_oldest() -> None:
    assert ended(Limits(3, "evict_oldest"), "a", "b", "c") == ([], [0])


def test_it_evicts_the_newest() -> None:
    assert ended(Limits(3, "evict_newest"), "a", "b", "c") == ([], [2])


def test_it_evicts_several_when_the_limit_has_been_lowered() -> None:
    assert ended(Limits(2, "evict_oldest"), "a", "b", "c", "d") == ([], [0, 1, 2])
    assert ended(Limits(2, "evict_newest"), "a", "b", "c", "d") == ([], [1, 2, 3])


def test_it_replaces_the_sessions_of_the_same_device() -> None:
    limits = Limits(2, same_device="replace")

    assert ended(limits, "tv", "phone", on="tv") == ([0], [])
    assert ended(limits, "tv", "tv", on="tv") == ([0, 1], [])
    assert ended(Limits(None, same_device="replace"), "tv", "phone", on="tv") == ([0], [])


def test_it_replaces_nothing_when_the_setup_is_refused() -> None:
    with pytest.raises(SessionLimitReached):
        make_room(Limits(2, same_device="replace"), active_on("tv", "a", "b"), "tv")


def test_it_evicts_nobody_when_replacing_makes_room() -> None:
    assert ended(Limits(2, "evict_oldest", "replace"), "phone", "tv", on="tv") == ([1], [])


def test_it_takes_over_what_is_named_and_still_there() -> None:
    active = active_on("a", "b")

    room = make_room(Limits(2), active, "new", [active[1].session_id, UUID(int=99)])

    assert (room.replaced, list(room.evicted)) == ([active[1]], [])


def test_it_takes_over_nothing_when_that_is_not_enough() -> None:
    active = active_on("a", "b", "c")

    with pytest.raises(SessionLimitReached) as refusal:
        make_room(Limits(2), active, "new", [active[1].session_id])

    assert (refusal.value.rule, refusal.value.limit) == ("max_sessions", 2)
    assert refusal.value.in_the_way == [active[0].session_id, active[2].session_id]


def test_it_evicts_what_is_missing_after_a_takeover() -> None:
    active = active_on("a", "b", "c")

    room = make_room(Limits(2, "evict_oldest"), active, "new", [active[1].session_id])

    assert (room.replaced, list(room.evicted)) == ([active[1]], [active[0]])


@given(
    max_sessions=st.none() | st.integers(0, 6),
    on_limit=st.sampled_from(get_args(OnLimit)),
    same_device=st.sampled_from(get_args(SameDevice)),
    devices=st.lists(st.sampled_from(["tv", "phone", "tablet"]), max_size=9),
    device=st.sampled_from(["tv", "phone", "tablet"]),
)
def test_it_keeps_the_limit_and_ends_nobody_without_need(
    max_sessions: int | None, on_limit: str, same_device: str, devices: list[str], device: str
) -> None:
    limits = Limits(max_sessions, on_limit, same_device)  # type: ignore[arg-type]
    active = active_on(*devices)
    own = [session for session in active if session.device_id == device] if same_device == "replace" else []
    others = [session for session in active if session not in own]
    most = float("inf") if max_sessions is None else max_sessions

    try:
        room = make_room(limits, active, device)
    except SessionLimitReached:
        assert len(others) + 1 > most
        assert on_limit == "deny" or max_sessions == 0
        return

    assert list(room.replaced) == own
    assert set(room.evicted) <= set(others)
    assert len(room.evicted) == max(0, len(others) + 1 - most)
    stay = [session for session in others if session not in room.evicted]
    if on_limit == "evict_oldest":
        assert others == [*room.evicted, *stay]
    else:
        assert others == [*stay, *room.evicted]
