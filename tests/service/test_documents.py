"""Blocks of README and docs/ work when pasted: at the pace of a reader, in another order, and a second time.

The blocks run against a real `srm serve --demo`, which is what `make run` starts: with its embedded database, its demo
data and its reaper. After each block, the test also pastes the curl line that `srm serve` prints. `tests/documents.py`
says how a fence tells which test runs its block.
"""

import configparser
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import psycopg
import pytest
import yaml

from srm.db.embedded import EmbeddedServer
from tests import warm
from tests.documents import FENCE, Block, Step, blocks_of, missing, pages, steps_of
from tests.support import ROOT, environment, free_port, python_m, wait_until

READING_SECONDS = 35
"""Longer than the timeout of 30 s that players often have."""
BLOCK_SECONDS = 120
PORTS = ("8080", "8088", "9090")
"""The ports of the documents; each gets a free one in the tests."""

HOST = {
    "docker compose --file deploy/container/compose.yaml up --build --detach": "it needs Docker; "
    "tests/deploy/test_container.py checks what the file says",
}
"""Blocks that nothing runs: the first line, and the reason."""

LANGUAGES = ("sh", "sql", "text", "json", "python", "js", "ini", "yaml")
LATER = """
UPDATE srm.availability SET available_since = available_since - interval '{0} seconds';
UPDATE srm.denials SET denied_at = denied_at - interval '{0} seconds';
UPDATE srm.sessions SET started_at = started_at - interval '{0} seconds', ended_at = ended_at - interval '{0} seconds',
                        last_keep_alive_at = last_keep_alive_at - interval '{0} seconds';
UPDATE srm.session_history SET started_at = started_at - interval '{0} seconds',
                               ended_at = ended_at - interval '{0} seconds';
"""
"""SQL that moves all times in the database this many seconds into the past."""


class Terminal:
    """A shell in a folder. A command that fails ends it, so that no failure goes unseen."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            ["bash", "-euo", "pipefail"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=variables,
            start_new_session=True,
        )

    def run(self, script: str) -> str:
        """Run the lines with an empty standard input; return the output. AssertionError when a command fails."""
        script_file, output = self._folder / "block.sh", self._folder / "block.out"
        script_file.write_text(script)
        _stream(self._process.stdin).write(f". {script_file} >{output} 2>&1 </dev/null; echo done\n")
        _stream(self._process.stdin).flush()
        answer = _stream(self._process.stdout)
        readable, _, _ = select.select([answer], [], [], BLOCK_SECONDS)
        said = answer.readline() if readable else f"nothing for {BLOCK_SECONDS} s"
        assert said == "done\n", f"{said}a command failed:\n{script}\nit printed:\n{output.read_text()}"
        return output.read_text()

    def close(self) -> None:
        """End the shell and all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _stream(self._process.stdin).close()
        _stream(self._process.stdout).close()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


class Desk:
    """A reader's desk: a folder that looks like a checkout, and as many terminals as the pages ask for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        programs = folder / "programs"
        programs.mkdir()
        serve = python_m("srm.cli", "serve", "--demo", "--workers", "1")
        (programs / "make").write_text(f"#!/bin/sh\nexec {shlex.join(serve)}\n")
        (programs / "make").chmod(0o755)
        (programs / "python3").symlink_to(sys.executable)
        self.variables = environment(
            PATH=f"{programs}:{os.environ['PATH']}", PYTHONPATH=str(ROOT), SRM_BIND=f"127.0.0.1:{self.ports['8080']}"
        )

    def on_free_ports(self, text: str) -> str:
        """Replace the ports of a document by the ports of this test."""
        for port, free in self.ports.items():
            text = re.sub(rf"(127\.0\.0\.1(?::|\", )){port}\b", rf"\g<1>{free}", text)
        return text

    @contextmanager
    def terminal(self) -> Iterator[Terminal]:
        """Open a terminal for pasting; close it at the end of the block."""
        terminal = Terminal(self.folder, self.variables)
        try:
            yield terminal
        finally:
            terminal.close()

    @contextmanager
    def long_running(self, script: str) -> Iterator[Callable[[], str]]:
        """Run a command in a terminal of its own until Ctrl-C; yield a function that returns the output so far.

        The block begins when the command listens on a port. AssertionError when the command ends before that.
        """
        output = self.folder / "terminal.out"
        with output.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self.folder,
                env=self.variables,
                start_new_session=True,
            )

        def listens() -> bool:
            assert process.poll() is None, f"it ended by itself:\n{script}\nit printed:\n{output.read_text()}"
            return any(map(_listens, [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]))

        text = output.open()
        try:
            wait_until(listens, BLOCK_SECONDS)
            printed: list[str] = []

            def read() -> str:
                printed.append(text.read())
                return "".join(printed)

            yield read
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            text.close()

    @contextmanager
    def service(self) -> Iterator[str]:
        """Run `make run` in a terminal; yield the curl line that it prints."""
        with self.long_running("make run") as printed:
            wait_until(lambda: "\ncurl " in printed(), BLOCK_SECONDS)
            (line,) = [line for line in printed().splitlines() if line.startswith("curl ")]
            yield line

    def pass_time(self) -> None:
        """Move all times in the database READING_SECONDS into the past."""
        with psycopg.connect(EmbeddedServer(self.folder / "var").url, autocommit=True) as connection:
            connection.execute(LATER.format(READING_SECONDS).encode())


def _listens(process: psutil.Process) -> bool:
    try:
        return any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections("tcp"))
    except psutil.Error:
        return False


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A desk in an empty folder."""
    # Outside pytest's own folder: pytest closes that to the user that the embedded server runs as.
    with tempfile.TemporaryDirectory(prefix="srm-tests-") as folder:
        Path(folder).chmod(0o755)
        program = Path(folder) / ".venv" / "bin" / "srm"
        program.parent.mkdir(parents=True)
        with warm.commands(program):
            yield Desk(Path(folder))


def sections_of(page: str) -> list[list[Step]]:
    """Steps of a page that this test runs, by section."""
    sections: dict[str, list[Step]] = {}
    for step in steps_of(page):
        if step.block.tested_by is None and not {"host", "make"} & set(step.block.marks):
            sections.setdefault(step.block.section, []).append(step)
    return list(sections.values())


def read_through(desk: Desk, sections: list[list[Step]], pause: Callable[[], None], *, first: bool) -> None:
    """Paste the sections into one terminal, with a pause before each block. Long commands get their own terminals."""
    with desk.service() as curl_line, desk.terminal() as terminal:
        for section in sections:
            with ExitStack() as others:
                for step in section:
                    pause()
                    script = desk.on_free_ports(step.block.text)
                    if "terminal" in step.block.marks:
                        others.enter_context(desk.long_running(script))
                        continue
                    if step.block.language == "sql":
                        script = f"srm db shell <<'SQL'\n{script}SQL\n"
                    output = terminal.run(script)
                    line = missing(step.expected(first=first), output)
                    assert line is None, f"{step.block.place}: this line is missing:\n{line}\nin:\n{output}"
                    pasted = terminal.run(f"{curl_line}\n")
                    assert "successResponse" in pasted, f"behind {step.block.place} the curl line prints:\n{pasted}"


CLIENT_PAGES = ["README.md", "docs/client-api.md"]


def read_in_order(desk: Desk, names: list[str], pause: Callable[[], None]) -> None:
    read_through(desk, [section for page in names for section in sections_of(page)], pause, first=True)


def read_again(desk: Desk, names: list[str], pause: Callable[[], None]) -> None:
    """Restart the service, and read pages and sections backwards.

    The first section of a page always comes first, because it prepares the others.
    """
    sections = [found for page in names if (found := sections_of(page))]
    backwards = [[first, *reversed(others)] for first, *others in reversed(sections)]
    read_through(desk, [section for page in backwards for section in page], pause, first=False)


def test_every_block_works_in_order(desk: Desk) -> None:
    read_in_order(desk, pages(), desk.pass_time)


@pytest.mark.long(60)
def test_every_block_works_again_in_another_order(desk: Desk) -> None:
    read_in_order(desk, pages(), desk.pass_time)
    read_again(desk, pages(), desk.pass_time)


@pytest.mark.long(1000)
def test_the_client_api_works_with_35_seconds_before_each_block(desk: Desk) -> None:
    read_in_order(desk, CLIENT_PAGES, lambda: time.sleep(READING_SECONDS))
    read_again(desk, CLIENT_PAGES, lambda: time.sleep(READING_SECONDS))


class TestReading:
    """The tests of documents find a wrong document."""

    @pytest.mark.parametrize(
        "commands", ["false", "no-such-command", "false | true", "echo $unset", "cat <missing", "curl -s localhost:1"]
    )
    def test_a_command_that_fails_is_found(self, tmp_path: Path, commands: str) -> None:
        terminal = Terminal(tmp_path, environment())
        try:
            assert terminal.run("echo before\n") == "before\n"
            with pytest.raises(AssertionError, match="a command failed"):
                terminal.run(f"{commands}\ntrue\n")
        finally:
            terminal.close()

    def test_ids_times_and_ellipses_may_differ_from_what_is_shown(self) -> None:
        of = "6f5a2c1e-8d0b-4f0e-9b7a-3c1d2e4f5a6{}".format
        output = f"before\n{of(1)} at 2026-01-02T03:04:05.678Z\nbetween\n {of(1)}  and {of(2)}\n7 rows in 1.2 s\n"

        assert missing([f"{of(8)} at 2020-01-01T00:00:00.1Z", f"{of(8)} and {of(9)}", "… in 0.1 s"], output) is None

    @pytest.mark.parametrize(
        ("expected", "output"),
        [
            (["one"], "two\n"),
            (["one"], "one more\n"),
            (["one", "two"], "two\none\n"),
            (["one", "one"], "one\n"),
            (["a.c"], "abc\n"),
            (
                ["6f5a2c1e-8d0b-4f0e-9b7a-3c1d2e4f5a6b", "6f5a2c1e-8d0b-4f0e-9b7a-3c1d2e4f5a6b"],
                "6f5a2c1e-8d0b-4f0e-9b7a-3c1d2e4f5a61\n6f5a2c1e-8d0b-4f0e-9b7a-3c1d2e4f5a62\n",
            ),
        ],
    )
    def test_a_shown_line_that_is_not_printed_is_found(self, expected: list[str], output: str) -> None:
        assert missing(expected, output) is not None


BLOCKS = [block for page in pages() for block in blocks_of(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
class TestBlocks:
    def test_each_fence_has_a_known_language_and_known_marks(self, block: Block) -> None:
        known = {"terminal", "make", "host", "first", "again"}
        assert block.language in LANGUAGES
        assert [mark for mark in block.marks if mark not in known and not mark.startswith("test=")] == []
        assert block.language != "js" or block.tested_by is not None

    def test_the_test_that_a_fence_names_is_there(self, block: Block) -> None:
        if "make" in block.marks:
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {line.split()[1] for line in block.text.splitlines() if line.startswith("make ")} <= {*targets}
            assert [line for line in block.text.splitlines() if not line.startswith("make ")] == []
        if "host" in block.marks:
            assert block.text.splitlines()[0] in HOST
        if block.tested_by is not None:
            assert Path(block.page).name in (ROOT / block.tested_by).read_text()

    def test_each_block_of_data_can_be_parsed(self, block: Block) -> None:
        match block.language:
            case "json":
                for line in block.text.splitlines():
                    assert "…" in line or json.loads(line)
            case "python":
                compile(block.text, block.place, "exec")
            case "yaml":
                assert yaml.safe_load(block.text)
            case "ini":
                configparser.ConfigParser(strict=True).read_string(block.text)


def test_the_list_of_blocks_that_nothing_runs_is_up_to_date() -> None:
    shown = {block.text.splitlines()[0] for block in BLOCKS if "host" in block.marks}
    assert set(HOST) == shown


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages())
def test_no_block_is_indented_instead_of_fenced(page: str) -> None:
    """No test would run an indented block."""
    prose = FENCE.sub("", (ROOT / page).read_text())
    assert re.findall(r"\n\n {4,}(\S.*)", prose) == []


@pytest.mark.parametrize("page", pages())
def test_each_link_leads_to_a_file_and_a_heading(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


def test_the_page_on_configuration_is_generated_from_the_settings() -> None:
    result = subprocess.run([sys.executable, "docs/configuration.py"], cwd=ROOT, capture_output=True, text=True)

    assert (result.returncode, result.stderr) == (0, "")
    assert (ROOT / "docs" / "configuration.md").read_text() == result.stdout, "run `make docs`"


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
