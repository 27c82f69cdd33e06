"""Plugin of pytest: prints the progress of a run, and lets CI skip no test.

- One line for each finished file, with the number of finished tests; one for each failure, at once. `-v` and `-q` print
  what pytest prints.
- Before tests marked `long` start, one line with the time that they take.
- With CI set in the environment, a skipped test fails.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable

import pytest
from _pytest.terminal import TerminalReporter

Status = tuple[str, str, str | tuple[str, dict[str, bool]]]
"""Category, letter and word, the word with or without markup."""

QUIET_SECONDS = 20
"""After so many seconds without a line, one line says how far the run is."""


@pytest.hookimpl(trylast=True)  # last, so that the reporter of the terminal is registered
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long(seconds): takes so long by nature; `make test-long` runs it")
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and config.get_verbosity() == 0 and not hasattr(config, "workerinput"):
        terminal.showfspath = False
        config.pluginmanager.register(Progress(terminal))


def pytest_collection_finish(session: pytest.Session) -> None:
    marks = [mark for item in session.items if (mark := item.get_closest_marker("long"))]
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if marks and terminal is not None:
        terminal.write_line(f"{len(marks)} long tests take about {duration(sum(mark.args[0] for mark in marks))}.")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} (with CI set, no test may be skipped)"
    return report


class Progress:
    """Prints how far the run is, by file."""

    def __init__(self, terminal: TerminalReporter) -> None:
        self._terminal = terminal
        self._started_at = self._printed_at = time.monotonic()
        self._total = self._finished = 0
        self._left: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._outcomes: dict[str, Counter[str]] = {}
        self._is_running = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self._start(item.nodeid for item in session.items)

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Start once. xdist calls this for each process, and all processes collect equal tests."""
        if not self._is_running:
            self._start(ids)

    def _start(self, ids: Iterable[str]) -> None:
        self._left.update(map(_file, ids))
        self._total = self._left.total()
        self._is_running = True

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Generator[None, Status, Status]:
        """Print no letter and no word for a test. The summary after the run gets its words."""
        status = yield
        return (status[0], "", "") if self._is_running else status

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = _file(report.nodeid)
        self._seconds[file] += report.duration
        outcomes = self._outcomes.setdefault(file, Counter())
        if report.failed:
            outcomes["failed"] += 1
            self._print(f"{report.nodeid} FAILED")
        elif report.skipped or (report.passed and report.when == "call"):
            outcomes[report.outcome] += 1
        if report.when in ("setup", "call"):
            return
        self._finished += 1
        self._left[file] -= 1
        if self._left[file] == 0:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
            self._print(f"{file}: {counts} in {self._seconds[file]:.1f} s")
        elif time.monotonic() - self._printed_at > QUIET_SECONDS:
            self._print(f"… {file}")

    def _print(self, text: str) -> None:
        self._printed_at = time.monotonic()
        elapsed = duration(self._printed_at - self._started_at)
        self._terminal.write_line(f"{elapsed} {self._finished:5} of {self._total}  {text}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._is_running = False


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def duration(seconds: float) -> str:
    """Format seconds as minutes and seconds: 2:05."""
    return "{}:{:02}".format(*divmod(round(seconds), 60))
