"""Group commit: one statement or transaction for all requests that came while the last batch was under way.

A flusher takes the requests that have come, commits them, wakes them, and takes those that have come meanwhile. It does
not wait for a batch to fill. An idle service commits batches of one; a busy one shares each round trip among many
requests.

A batch is the quick way, never the only one. A request that it does not answer goes the ordinary way: a statement or
transaction of its own. See docs/design.md, "Group commit".
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

import structlog

from srm.deadline import DEADLINE, GRACE_SECONDS, STATEMENT_TIMEOUT_SECONDS
from srm.errors import DependencyUnavailable, first_line

log = structlog.get_logger("srm.group_commit")

AT_ONCE = 64
"""Most requests in a batch."""

MOST_WAITING = 4096
"""Most requests in the queue of a batch; the next one goes the ordinary way."""

QUEUE_SECONDS = 0.5
"""Longest time of a request in the queue. Enough time is left for the ordinary way after it."""

COMMIT_SECONDS = STATEMENT_TIMEOUT_SECONDS + GRACE_SECONDS
"""Longest wait for a batch that is under way, for a request without a deadline."""

Request = TypeVar("Request")
Outcome = TypeVar("Outcome")


class NotBatchable(Exception):
    """Raised by a commit when this database cannot take batches at all; all requests then go the ordinary way."""


class Entry(Generic[Request, Outcome]):
    """Request that waits for its outcome. The lock `answered` is free once the outcome is there."""

    __slots__ = ("answered", "is_given_up", "outcome", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.outcome: Outcome | None = None
        self.is_given_up = False
        self.answered = threading.Lock()
        self.answered.acquire()


class GroupCommit(Generic[Request, Outcome]):
    """Collects requests of many threads, and hands them in batches to `commit`.

    `commit` takes the requests of a batch. It returns an outcome for each, in their order, once the outcomes are
    committed. The outcome None sends a request the ordinary way. An exception says that nothing is committed, and sends
    all requests of the batch the ordinary way. `unclaimed` is called with the requests of a batch whose outcome came
    after their deadline, each with its outcome. The next batch of the flusher waits for it.

    Safe to share between threads and greenlets. Flushers start with the first request of a process, because a fork does
    not inherit threads. A dead flusher is replaced.
    """

    def __init__(
        self,
        name: str,
        commit: Callable[[Sequence[Request]], Sequence[Outcome | None]],
        *,
        flushers: int = 1,
        queue_seconds: float = QUEUE_SECONDS,
        unclaimed: Callable[[Sequence[tuple[Request, Outcome]]], None] | None = None,
    ) -> None:
        self.is_open = True
        """False when the database cannot take batches: `submit` returns None at once."""
        self._name = name
        self._queue_seconds = queue_seconds
        self._commit = commit
        self._unclaimed = unclaimed
        self._waiting: deque[Entry[Request, Outcome]] = deque()
        self._bells: deque[threading.Lock] = deque()
        self._running = [False] * flushers
        """For each flusher, whether it runs. Not `Thread.is_alive()`, which makes a greenlet wait."""
        self._process = 0
        self._starting = threading.Lock()
        self._problem = ""
        self._is_closed = False

    def close(self) -> None:
        """End the flushers once they have committed what waits. Later requests go the ordinary way."""
        self.is_open, self._is_closed = False, True
        while self._bells:
            self._bells.pop().release()

    def submit(self, request: Request) -> Outcome | None:
        """Return the committed outcome of the request; None when the request has to go the ordinary way.

        Raises DependencyUnavailable when the deadline of the request passes while its batch is under way. The batch may
        still be committed, so the ordinary way could do the work twice.
        """
        if not self.is_open or len(self._waiting) >= MOST_WAITING:
            return None
        entry: Entry[Request, Outcome] = Entry(request)
        self._waiting.append(entry)
        try:
            self._bells.pop().release()
        except IndexError:
            if not all(self._running) or self._process != os.getpid():
                self._ensure_flushers()
        if entry.answered.acquire(timeout=self._queue_seconds):
            return entry.outcome
        return self._give_up(entry)

    def _give_up(self, entry: Entry[Request, Outcome]) -> Outcome | None:
        """Take the request back if no batch has it yet. Otherwise wait for the batch, until the deadline."""
        try:
            self._waiting.remove(entry)
        except ValueError:
            pass
        else:
            return None
        deadline = DEADLINE.get()
        left = COMMIT_SECONDS if deadline is None else deadline - time.monotonic()
        if entry.answered.acquire(timeout=max(0.0, left)):
            return entry.outcome
        entry.is_given_up = True
        # When the outcome comes at this moment, either this thread or the flusher gets the lock.
        if entry.answered.acquire(blocking=False):
            return entry.outcome
        raise DependencyUnavailable from TimeoutError("the request is past its deadline")

    def _ensure_flushers(self) -> None:
        """Start flushers that have never run, have died, or were left behind by a fork."""
        with self._starting:
            if self._process != os.getpid():
                self._process, self._running = os.getpid(), [False] * len(self._running)
            for number, is_running in enumerate(self._running):
                if not is_running:
                    self._running[number] = True
                    self._start(number)

    def _start(self, number: int) -> None:
        # An empty context, because a greenlet inherits the context of its maker, with the deadline of a request.
        threading.Thread(
            target=Context().run, args=(self._flush_until_closed, number), name=f"{self._name}-{number}", daemon=True
        ).start()

    def _flush_until_closed(self, number: int) -> None:
        try:
            self._flush_forever()
        finally:
            self._running[number] = False

    def _flush_forever(self) -> None:
        bell = threading.Lock()
        bell.acquire()
        while True:
            while batch := self._take():
                self._flush(batch)
            if self._is_closed:
                return
            self._bells.append(bell)
            if not self._waiting or not self._take_back(bell):
                bell.acquire()

    def _take_back(self, bell: threading.Lock) -> bool:
        """Remove a bell that a request may have missed; return False when a request is ringing the bell now."""
        try:
            self._bells.remove(bell)
        except ValueError:
            return False
        return True

    def _take(self) -> list[Entry[Request, Outcome]]:
        batch: list[Entry[Request, Outcome]] = []
        try:
            while len(batch) < AT_ONCE:
                batch.append(self._waiting.popleft())
        except IndexError:
            pass
        return batch

    def _flush(self, batch: Sequence[Entry[Request, Outcome]]) -> None:
        """Commit a batch and wake the requests that wait for it.

        When the flusher is killed meanwhile, nobody knows what is committed. The requests then wait until their
        deadlines.
        """
        try:
            outcomes = self._commit([entry.request for entry in batch])
            for entry, outcome in zip(batch, outcomes, strict=True):
                entry.outcome = outcome
            self._problem = ""
        except NotBatchable as reason:
            self.is_open = False
            log.info("no group commit", group=self._name, reason=str(reason))
        except DependencyUnavailable:
            pass  # The ordinary way meets the problem too, and says so.
        except Exception as error:  # The requests go the ordinary way, whatever is wrong with the batch.
            if self._problem != (problem := first_line(error)):
                self._problem = problem
                log.error("batch failed", group=self._name, cause=problem)
        for entry in batch:
            entry.answered.release()
        self._report_unclaimed(batch)

    def _report_unclaimed(self, batch: Sequence[Entry[Request, Outcome]]) -> None:
        left = [entry for entry in batch if entry.is_given_up and entry.answered.acquire(blocking=False)]
        outcomes = [(entry.request, entry.outcome) for entry in left if entry.outcome is not None]
        if not outcomes or self._unclaimed is None:
            return
        try:
            self._unclaimed(outcomes)
        except Exception as error:  # The flusher has to go on.
            log.error("outcomes without clients failed", group=self._name, cause=first_line(error))
