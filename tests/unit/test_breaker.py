"""A server that has gone silent is left alone for a while, and then asked by one thread at a time."""

import sys
import threading
import time

import psycopg
import pytest

from srm.db import breaker
from srm.db.breaker import CircuitBreaker
from srm.errors import DependencyUnavailable, SessionNotFound
from tests.support import wait_until


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> CircuitBreaker:
    """One that has just begun, and is a short one."""
    monkeypatch.setattr(breaker, "SILENCE_SECONDS", 0.1)
    silence = CircuitBreaker()
    meet_silence(silence)
    return silence


def meet_silence(silence: CircuitBreaker) -> None:
    with pytest.raises(DependencyUnavailable), silence:
        raise psycopg.errors._WaitTimeout


def is_left_alone(silence: CircuitBreaker) -> bool:
    """Whether the server is not asked."""
    try:
        with silence:
            return False
    except DependencyUnavailable:
        return True


def test_nobody_asks_a_silent_server(silence: CircuitBreaker) -> None:
    assert is_left_alone(silence)
    assert is_left_alone(silence)


def test_after_a_while_one_asks_and_the_others_do_not_wait_for_it(silence: CircuitBreaker) -> None:
    time.sleep(0.11)

    others: list[bool] = []
    with silence:
        threads = [threading.Thread(target=lambda: others.append(is_left_alone(silence))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)

    assert others == [True] * 8
    assert not is_left_alone(silence)


def test_a_fault_of_ours_lets_the_next_one_ask(silence: CircuitBreaker) -> None:
    time.sleep(0.11)

    with pytest.raises(KeyError), silence:
        raise KeyError

    assert not is_left_alone(silence)


@pytest.mark.parametrize("answer", [None, SessionNotFound(), psycopg.errors.UniqueViolation()])
def test_any_answer_ends_the_silence(silence: CircuitBreaker, answer: Exception | None) -> None:
    time.sleep(0.11)

    try:
        with silence:
            if answer is not None:
                raise answer
    except (SessionNotFound, psycopg.errors.UniqueViolation):
        pass

    with silence:
        assert not is_left_alone(silence)


def test_it_goes_on_when_the_one_meets_it_again(silence: CircuitBreaker) -> None:
    time.sleep(0.11)
    meet_silence(silence)

    assert is_left_alone(silence)
    wait_until(lambda: not is_left_alone(silence))


def test_many_threads_meet_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they see, it is an answer or DependencyUnavailable."""
    monkeypatch.setattr(breaker, "SILENCE_SECONDS", 0)
    silence = CircuitBreaker()
    surprises: list[BaseException] = []

    def ask_again_and_again(number: int) -> None:
        for turn in range(2_000):
            try:
                with silence:
                    if (turn + number) % 3 == 0:
                        raise psycopg.errors._WaitTimeout
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
    assert not is_left_alone(silence)
