"""A child process of `srm serve`, started again when it dies."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

log = structlog.get_logger("srm.serve")

STOP_SECONDS = 15
"""Time in which a child must stop; longer than gunicorn waits for requests in progress."""

RESTART_SECONDS = 1
"""Shortest time between two starts of one child."""


class Child:
    """A process in a process group of its own, so that Ctrl-C reaches only the supervisor."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        self._name = name
        self._command = command
        self._environment = environment
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._environment, start_new_session=True)  # noqa: S603
        self._started_at = time.monotonic()

    def has_died(self) -> bool:
        """True when the process has ended by itself."""
        return self._process.poll() is not None

    def revive(self) -> None:
        """Start a dead process again, at most once in RESTART_SECONDS."""
        if self.has_died() and time.monotonic() - self._started_at >= RESTART_SECONDS:
            log.error("process died, starting it again", process=self._name, exit_code=self._process.returncode)
            self._kill_group()
            self._start()

    def terminate(self) -> None:
        """Send SIGTERM. Call `stop` afterwards."""
        self._process.terminate()

    def stop(self) -> None:
        """Wait for the end of a terminated process; kill it after STOP_SECONDS. Kill what it leaves behind."""
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("process does not stop, killing it", process=self._name)
        self._kill_group()
        self._process.wait()

    def _kill_group(self) -> None:
        """Send SIGKILL to the process and its descendants. One of them may still hold the port."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
