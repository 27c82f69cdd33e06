"""Group commit: which requests a batch answers, and which go the ordinary way."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from srm.deadline import DEADLINE
from srm.errors import DependencyUnavailable
from srm.playback import group_commit
from srm.playback.group_commit import GroupCommit, NotBatchable
from tests.support import wait_until


class Gate:
    """A commit that answers each number with its square, once the gate is open. It notes the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.raises: BaseException | None = None

    def __call__(self, batch: Sequence[int]) -> list[int | None]:
        self.batches.append(list(batch))
        assert self.open.wait(30)
        if self.raises is not None:
            raise self.raises
        return [None if number == 0 else number * number for number in batch]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def make(gate: Gate) -> Iterator[Callable[..., GroupCommit[int, int]]]:
    with ExitStack() as stack:

        def make(**options: object) -> GroupCommit[int, int]:
            group: GroupCommit[int, int] = GroupCommit("test", gate, **options)  # type: ignore[arg-type]
            stack.callback(group.close)
            return group

        yield make
        gate.open.set()


Make = Callable[..., GroupCommit[int, int]]


def test_each_request_gets_its_own_outcome(make: Make) -> None:
    group = make()

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(group.submit, range(1, 500))) == [number * number for number in range(1, 500)]


def test_requests_that_come_during_a_batch_share_the_next_one(make: Make, gate: Gate) -> None:
    group = make()
    gate.open.clear()

    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(group.submit, 1)
        wait_until(lambda: gate.batches == [[1]])
        others = [threads.submit(group.submit, number) for number in (2, 3, 4)]
        wait_until(lambda: len(group._waiting) == 3)
        assert not first.done()
        gate.open.set()

        assert [first.result(), *(other.result() for other in others)] == [1, 4, 9, 16]
    assert [sorted(batch) for batch in gate.batches] == [[1], [2, 3, 4]]


def test_a_batch_is_bounded(make: Make, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "AT_ONCE", 2)
    group = make()
    gate.open.clear()

    with ThreadPoolExecutor(6) as threads:
        submitted = [threads.submit(group.submit, number) for number in range(1, 7)]
        wait_until(lambda: len(group._waiting) >= 4)
        gate.open.set()
        assert sorted(one.result() or 0 for one in submitted) == [1, 4, 9, 16, 25, 36]
    assert max(map(len, gate.batches)) == 2


def test_a_request_without_outcome_goes_the_ordinary_way(make: Make) -> None:
    assert make().submit(0) is None


def test_an_error_sends_the_batch_the_ordinary_way_and_the_next_batch_goes_on(make: Make, gate: Gate) -> None:
    group = make()
    for gate.raises in (ValueError("odd"), DependencyUnavailable()):
        assert group.submit(2) is None
    gate.raises = None

    assert group.submit(2) == 4


def test_a_dead_flusher_is_replaced_and_its_requests_are_not_done_twice(
    make: Make, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(group_commit, "COMMIT_SECONDS", 0.1)
    group = make(queue_seconds=0.05)
    gate.raises = SystemExit()
    with pytest.raises(DependencyUnavailable):
        group.submit(2)
    gate.raises = None

    assert group.submit(3) == 9
    assert gate.batches == [[2], [3]]


def test_a_database_that_takes_no_batches_is_asked_once(make: Make, gate: Gate) -> None:
    group = make()
    gate.raises = NotBatchable("distributed")

    assert [group.submit(2) for _ in range(3)] == [None] * 3

    assert not group.is_open
    assert len(gate.batches) == 1


def test_a_full_queue_sends_the_next_request_the_ordinary_way(
    make: Make, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MOST_WAITING", 1)
    group = make()
    gate.open.clear()

    with ThreadPoolExecutor(2) as threads:
        threads.submit(group.submit, 1)
        wait_until(lambda: gate.batches == [[1]])
        second = threads.submit(group.submit, 2)
        wait_until(lambda: len(group._waiting) == 1)
        assert group.submit(3) is None
        gate.open.set()
        assert second.result() == 4


def test_a_request_that_no_batch_takes_in_time_goes_the_ordinary_way_once(
    make: Make, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = make(queue_seconds=0.05)
    gate.open.clear()

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(group.submit, 1)
        wait_until(lambda: gate.batches == [[1]])
        assert group.submit(2) is None
        gate.open.set()
        assert first.result() == 1
    assert group.submit(3) == 9
    assert [2] not in gate.batches


def give_up_under_way(group: GroupCommit[int, int], gate: Gate) -> None:
    """Submit 2, and reach its deadline while its batch waits at the closed gate."""
    gate.open.clear()
    DEADLINE.set(time.monotonic() + 0.1)
    try:
        with pytest.raises(DependencyUnavailable):
            group.submit(2)
    finally:
        DEADLINE.set(None)


def test_a_request_whose_batch_is_under_way_is_never_done_twice(
    make: Make, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    unclaimed: list[tuple[int, int]] = []
    group = make(queue_seconds=0.05, unclaimed=unclaimed.extend)
    give_up_under_way(group, gate)
    assert unclaimed == []

    gate.open.set()

    wait_until(lambda: unclaimed == [(2, 4)])
    assert group.submit(3) == 9
    assert unclaimed == [(2, 4)]


def test_an_error_about_an_unclaimed_outcome_does_not_end_the_flusher(make: Make, gate: Gate) -> None:
    failed = threading.Event()

    def fail(_: object) -> None:
        failed.set()
        raise DependencyUnavailable

    group = make(queue_seconds=0.05, unclaimed=fail)
    give_up_under_way(group, gate)
    gate.open.set()

    assert failed.wait(10)
    assert group.submit(3) == 9
    assert group._running == [True]


def test_a_flusher_does_not_inherit_the_deadline_of_a_request(make: Make, gate: Gate) -> None:
    group: GroupCommit[int, bool] = GroupCommit("test", lambda batch: [DEADLINE.get() is None for _ in batch])
    DEADLINE.set(time.monotonic() + 60)
    try:
        assert group.submit(1)
    finally:
        DEADLINE.set(None)
        group.close()


def test_a_closed_group_lets_its_flusher_end(make: Make) -> None:
    group = make()
    group.submit(1)
    assert group._running == [True]

    group.close()

    wait_until(lambda: group._running == [False])
    assert group.submit(1) is None
