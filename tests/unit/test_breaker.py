"""The circuit breaker leaves a silent database alone for a while, then lets one thread at a time ask it."""

import sys
import threading
import time

import psycopg
import pytest

from srm.db import breaker as breaker_module
from srm.db.breaker import CircuitBreaker, ServerSilent
from srm.errors import DependencyUnavailable, SessionNotFound
from tests.support import wait_until

OPEN_SECONDS = 0.1


@pytest.fixture
def breaker(monkeypatch: pytest.MonkeyPatch) -> CircuitBreaker:
    """A breaker that has just opened, for OPEN_SECONDS."""
    monkeypatch.setattr(breaker_module, "OPEN_SECONDS", OPEN_SECONDS)
    breaker = CircuitBreaker()
    fall_silent(breaker)
    return breaker


def fall_silent(breaker: CircuitBreaker) -> None:
    with pytest.raises(DependencyUnavailable), breaker:
        raise ServerSilent


def is_open(breaker: CircuitBreaker) -> bool:
    """True when the breaker refuses a call of this thread."""
    try:
        with breaker:
            return False
    except DependencyUnavailable:
        return True


def wait_until_half_open() -> None:
    time.sleep(OPEN_SECONDS + 0.01)


def test_an_open_breaker_refuses_every_call(breaker: CircuitBreaker) -> None:
    assert is_open(breaker)
    assert is_open(breaker)


def test_a_half_open_breaker_lets_one_thread_through_and_refuses_the_others_at_once(breaker: CircuitBreaker) -> None:
    wait_until_half_open()

    others: list[bool] = []
    with breaker:
        threads = [threading.Thread(target=lambda: others.append(is_open(breaker))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)

    assert others == [True] * 8
    assert not is_open(breaker)


def test_a_bug_in_the_trying_thread_lets_the_next_thread_try(breaker: CircuitBreaker) -> None:
    wait_until_half_open()

    with pytest.raises(KeyError), breaker:
        raise KeyError

    assert not is_open(breaker)


@pytest.mark.parametrize("answer", [None, SessionNotFound(), psycopg.errors.UniqueViolation()])
def test_any_answer_of_the_database_closes_the_breaker(breaker: CircuitBreaker, answer: Exception | None) -> None:
    wait_until_half_open()

    try:
        with breaker:
            if answer is not None:
                raise answer
    except (SessionNotFound, psycopg.errors.UniqueViolation):
        pass

    with breaker:
        assert not is_open(breaker)


def test_the_breaker_opens_again_when_the_trying_thread_meets_silence(breaker: CircuitBreaker) -> None:
    wait_until_half_open()
    fall_silent(breaker)

    assert is_open(breaker)
    wait_until(lambda: not is_open(breaker))


def test_a_connection_timeout_opens_the_breaker() -> None:
    breaker = CircuitBreaker()

    with pytest.raises(DependencyUnavailable), breaker:
        raise psycopg.errors.ConnectionTimeout

    assert is_open(breaker)


def test_threads_that_race_for_a_half_open_breaker_see_an_answer_or_dependency_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(breaker_module, "OPEN_SECONDS", 0)
    breaker = CircuitBreaker()
    surprises: list[BaseException] = []

    def ask_again_and_again(number: int) -> None:
        for turn in range(2_000):
            try:
                with breaker:
                    if (turn + number) % 3 == 0:
                        raise ServerSilent
            except DependencyUnavailable:
                pass
            except BaseException as error:
                surprises.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask_again_and_again, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)

    assert surprises == []
    assert not is_open(breaker)
