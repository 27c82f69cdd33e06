"""Files that `srm import` reads and `srm export` writes: CSV with a header, or JSON lines, in UTF-8, gzip or not.

Columns and members have the names of documents (`srm/operators/documents.py`). A CSV cell of a list field has JSON.
Each line is one row: values have no control characters, hence no line breaks. So an unbalanced quote spoils one row.
"""

import csv
import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

from pydantic import ValidationError

from srm.errors import CommandError
from srm.operators import documents
from srm.operators.bulk import lines
from srm.operators.bulk.lines import Line, UnreadableFile, read_lines
from srm.operators.bulk.parsing import Parser, csv_parser, json_parser, reason_of
from srm.operators.resources import Kind, Resource

Format = Literal["csv", "jsonl"]

STREAM = "-"
"""Name of standard input or output."""


class FileRow(NamedTuple):
    """A row of a file: number and text of its line, and the resource, or the reason why there is none."""

    line: int
    text: str
    resource: Resource | str


class Rows:
    """The rows of a file of resources of one kind.

    The first line that is not blank tells the format: JSON, or the header of CSV. Raises CommandError when the file is
    in neither format, or damaged; also in the middle of reading.
    """

    def __init__(self, kind: Kind, file: IO[bytes], name: str) -> None:
        self.kind = kind
        self.name = os.fsencode(name).decode(errors="backslashreplace")
        self._file = file
        self._size = os.fstat(file.fileno()).st_size if name != STREAM else 0
        self._lines = self._readable_lines()
        self._parse = self._parser_of_first_line()

    @property
    def part(self) -> float | None:
        """The part of the file that has been read, from 0 to 1; None for standard input."""
        return self._file.tell() / self._size if self._size else None

    def __iter__(self) -> Iterator[FileRow]:
        for line in self._lines:
            if line.is_too_long:
                yield FileRow(line.number, line.text, f"longer than {lines.MAX_LINE_BYTES:,} bytes")
            elif line.text and not line.text.isspace():
                yield FileRow(line.number, line.text, self._resource_or_reason(line.text))

    def _readable_lines(self) -> Iterator[Line]:
        try:
            yield from read_lines(self._file)
        except UnreadableFile as error:
            raise self._unusable(str(error)) from None

    def _parser_of_first_line(self) -> Parser:
        for line in self._lines:
            text = line.text.removeprefix("\ufeff")  # the byte order mark
            if not text.strip():
                continue
            if text.lstrip().startswith("{"):
                self._lines = chain([line._replace(text=text)], self._lines)
                return json_parser(self.kind)
            try:
                return csv_parser(self.kind, text)
            except (ValueError, csv.Error) as error:
                raise self._unusable(f"line {line.number}: {error}") from None
        raise self._unusable("there is nothing in it")

    def _resource_or_reason(self, text: str) -> Resource | str:
        try:
            return self._parse(text)
        except ValidationError as error:
            return reason_of(error)
        except (ValueError, csv.Error) as error:
            return str(error)

    def _unusable(self, why: str) -> CommandError:
        return CommandError(f"{'standard input' if self.name == STREAM else self.name}: {why}")


@contextmanager
def reading(kind: Kind, name: str) -> Iterator[Rows]:
    """Open the file, or standard input, and give its rows."""
    if name == STREAM:
        yield Rows(kind, sys.stdin.buffer, name)
    else:
        with Path(name).open("rb") as file:
            yield Rows(kind, file, name)


def format_of(name: str) -> Format:
    """Return the format that the name of a file asks for: JSON lines if it ends in .jsonl or .jsonl.gz, else CSV."""
    return "jsonl" if name.removesuffix(".gz").endswith(".jsonl") else "csv"


@contextmanager
def writing(kind: Kind, name: str, format_: Format) -> Iterator[Callable[[Resource], object]]:
    """Give a function that writes a resource to the file, or to standard output; gzip if the name ends in .gz.

    The rows go to a file called `….unfinished`, which takes its name once it is whole. Until then an older file of that
    name stays.
    """
    if name == STREAM:
        text = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="", write_through=True)
        try:
            yield _writer(kind, text, format_)
        finally:
            text.detach()
        return
    path = Path(name)
    is_special = path.exists() and not path.is_file()  # a device or a pipe
    unfinished = path if is_special else path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        # Without name and time in the gzip header, equal rows give equal bytes.
        packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if name.endswith(".gz") else None
        with io.TextIOWrapper(cast("IO[bytes]", packed or file), encoding="utf-8", newline="") as text:
            yield _writer(kind, text, format_)
    if not is_special:
        unfinished.replace(path)


def _writer(kind: Kind, file: IO[str], format_: Format) -> Callable[[Resource], object]:
    if format_ == "jsonl":
        return lambda resource: file.write(json.dumps(documents.of_resource(resource), ensure_ascii=False) + "\n")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(documents.field_name(name) for name in kind.resource.model_fields)
    return lambda resource: rows.writerow(_cell(value) for value in documents.of_resource(resource).values())


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class RejectFile:
    """CSV file of rejected rows: number of the line, reason, and the line. Exists only if there is such a row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file: IO[str] | None = None
        if path.is_file():  # neither a device nor a pipe
            path.unlink()

    def add(self, line: int, reason: str, text: str) -> None:
        """Write a rejected row."""
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
            self._rows = csv.writer(self._file, lineterminator="\n")
            self._rows.writerow(("line", "reason", "row"))
        self._rows.writerow((line, reason, text))
        self.count += 1

    def __enter__(self) -> "RejectFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
