"""Waits for the server in a process with an event loop, which serves other requests meanwhile.

psycopg itself waits with gevent's `poll`, which registers the socket anew for each statement. That costs 15 to 30 µs,
as much as everything else that Python does for a statement. A SocketWaiter keeps its watchers as long as the
connection.
"""

from typing import TypeVar

import psycopg
from gevent import get_hub, monkey
from gevent.hub import Waiter
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait

Value = TypeVar("Value")

READABLE, WRITABLE = 1, 2
"""Events of the event loop."""


def is_cooperative() -> bool:
    """True in a process whose waits let other greenlets go on."""
    return bool(monkey.is_module_patched("select"))


class SocketWaiter:
    """Waits for the socket of one connection."""

    def __init__(self, fileno: int) -> None:
        loop = get_hub().loop
        self._watchers = {
            Wait.R: (loop.io(fileno, READABLE), Ready.R),
            Wait.W: (loop.io(fileno, WRITABLE), Ready.W),
            Wait.RW: (loop.io(fileno, READABLE | WRITABLE), Ready.RW),
        }

    def wait(self, gen: PQGen[Value], timeout_seconds: float) -> Value:
        """Run a generator of psycopg to its end. Raises OperationalError when the socket is silent for too long."""
        hub = get_hub()
        try:
            wanted = next(gen)
            while True:
                watcher, ready = self._watchers[wanted]
                timer = hub.loop.timer(timeout_seconds)
                waiter: Waiter[bool] = Waiter(hub)
                watcher.start(waiter.switch, True)
                timer.start(waiter.switch, False)
                try:
                    in_time = waiter.get()
                finally:
                    watcher.stop()
                    timer.stop()
                    timer.close()
                if not in_time:
                    raise psycopg.OperationalError("the server did not answer in time")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: Value = end.value
            return result

    def close(self) -> None:
        """Forget the socket, before it is closed."""
        for watcher, _ in self._watchers.values():
            watcher.close()
