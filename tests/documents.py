"""Fenced blocks of the documents, and how each of them is tested.

The first word of a fence is the language. The next words say how a block of commands is tested:

- nothing: `tests/service/test_documents.py` runs it, page by page, in the order of the page;
- `terminal`: the test runs it in a terminal of its own, until the section ends;
- `test=PATH`: the test in this file runs it;
- `make`: each line is a target of the Makefile;
- `host`: nothing runs it. `test_documents.py` lists these blocks, each with the reason.

A `text` or `json` block after a block of commands shows lines of its output, in their order. `…` stands for any text.
With `first` the block holds for the first run only, with `again` for all later runs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
COMMANDS = ("sh", "sql")
OUTPUT = ("text", "json")

ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
VARYING = (
    (re.compile(ID), ID),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"), r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"),
    (re.compile(r"(?<= in )\d+\.\d s"), r"\d+\.\d s"),
    (re.compile("…"), ".*"),
)
"""Parts that differ from run to run: a pattern for the document, and a pattern for the output."""


@dataclass(frozen=True)
class Block:
    """A fenced block. `marks`: the words of the fence behind the language."""

    page: str
    line: int
    section: str
    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        """Page and line, as an editor opens it."""
        return f"{self.page}:{self.line}"

    @property
    def is_commands(self) -> bool:
        """True for what a reader may paste."""
        return self.language in COMMANDS

    @property
    def tested_by(self) -> str | None:
        """Path of the other test that runs the block; None when no other test does."""
        paths = [mark.removeprefix("test=") for mark in self.marks if mark.startswith("test=")]
        return paths[0] if paths else None


@dataclass(frozen=True)
class Step:
    """A block of commands, and the blocks that show what it prints."""

    block: Block
    shown: tuple[Block, ...]

    def expected(self, *, first: bool) -> list[str]:
        """The lines that a run prints, among others."""
        without = "again" if first else "first"
        return [line for block in self.shown if without not in block.marks for line in block.text.splitlines() if line]


def pages() -> list[str]:
    """Paths of all documents, from the top of the repository: README.md first."""
    top = sorted(path.name for path in ROOT.glob("*.md"))
    below = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return [*sorted(top, key=lambda name: name != "README.md"), *below]


def blocks_of(page: str, folder: Path = ROOT) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = (folder / page).read_text()
    found = []
    for match in FENCE.finditer(text):
        language, *marks = match[2].split() or [""]
        body = "".join(line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True))
        headings = [heading[2] for heading in HEADING.finditer(text, 0, match.start()) if len(heading[1]) == 2]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, (headings or [""])[-1], language, tuple(marks), body))
    return found


def steps_of(page: str, folder: Path = ROOT) -> list[Step]:
    """The blocks of commands of a page, each with what it prints."""
    return list(_steps(blocks_of(page, folder)))


def _steps(blocks: list[Block]) -> Iterator[Step]:
    for number, block in enumerate(blocks):
        if not block.is_commands:
            continue
        shown = []
        for follower in blocks[number + 1 :]:
            if follower.language not in OUTPUT or follower.section != block.section:
                break
            shown.append(follower)
        yield Step(block, tuple(shown))


def missing(expected: list[str], output: str) -> str | None:
    """The first expected line that the output does not have behind the lines before; None when all are there.

    An id that a document shows twice must be one id in the output too.
    """
    printed = [" ".join(line.split()) for line in output.splitlines()]
    ids: dict[str, str] = {}
    at = 0
    for line in expected:
        pattern = re.compile(_pattern(" ".join(line.split()), ids))
        for behind, candidate in enumerate(printed[at:], at + 1):
            if match := pattern.fullmatch(candidate):
                ids.update({f"{name[2:].replace('_', '-')}": value for name, value in match.groupdict().items()})
                at = behind
                break
        else:
            return line
    return None


def _pattern(shown: str, ids: dict[str, str]) -> str:
    """A regular expression of what may be printed for the line that is shown. `ids`: shown id → printed id."""
    pattern = ""
    named: set[str] = set()
    rest = 0
    varying = re.compile("|".join(f"({what.pattern})" for what, _ in VARYING))
    for match in varying.finditer(shown):
        pattern += re.escape(shown[rest : match.start()])
        rest = match.end()
        name = f"id{match[0].replace('-', '_')}"
        if match.lastindex != 1:
            pattern += VARYING[(match.lastindex or 1) - 1][1]
        elif match[0] in ids:
            pattern += ids[match[0]]
        elif name in named:
            pattern += f"(?P={name})"
        else:
            named.add(name)
            pattern += f"(?P<{name}>{ID})"
    return pattern + re.escape(shown[rest:])
