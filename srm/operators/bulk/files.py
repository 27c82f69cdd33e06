"""Files of resources, as `srm import` reads and `srm export` writes them: CSV with a header, or JSON lines.

Columns and members have the names of the operator API. What is nested stands in a CSV cell as JSON. UTF-8; gzip or not.
A line is a row: no value may have a control character in it, so none has a line break, and an unbalanced quote spoils
one row instead of the rest of the file.
"""

import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import from_json

from srm.errors import CommandError
from srm.operators.documents import field_name, model_of
from srm.operators.resources import Kind, Resource

Format = Literal["csv", "jsonl"]
Parse: TypeAlias = "Callable[[str], Resource]"
Row: TypeAlias = "tuple[int, str, Resource | str]"
"""Number of the line, the line, and what it says, or why it says nothing."""

STREAM = "-"
"""The name of standard input or output."""

MAX_LINE_BYTES = 4 * 1024 * 1024
"""A product with a hundred thousand contents."""

SHOWN_BYTES = 1000
"""Of a line that is too long."""

GZIP = b"\x1f"
"""How gzip begins, and no text does."""

csv.field_size_limit(MAX_LINE_BYTES)


class Rows:
    """The rows of a file.

    CommandError, when begun or in the middle, as soon as the file turns out to be no such file.
    """

    def __init__(self, kind: Kind, file: IO[bytes], name: str) -> None:
        self.name = os.fsencode(name).decode(errors="backslashreplace")
        self._file = file
        self._size = os.fstat(file.fileno()).st_size if name != STREAM else 0
        self._kind = kind
        self._number = 0
        self._lines = self._numbered(_unpacked(file))
        self._first: tuple[str, ...] = ()
        self._parse = self._begin()

    @property
    def part(self) -> float | None:
        """How much of the file has been read."""
        return self._file.tell() / self._size if self._size else None

    def _begin(self) -> Parse:
        """Look at the first line that is not blank: it is a row, or the header."""
        for line in self._lines:
            text = _decoded(line).removeprefix("\ufeff")
            if not text.strip():
                continue
            if text.lstrip().startswith("{"):
                self._first = (text,)
                return _json_parser(self._kind)
            try:
                return _csv_parser(self._kind, text)
            except (ValueError, csv.Error) as error:
                raise self._unusable(f"line {self._number}: {error}") from None
        raise self._unusable("there is nothing in it")

    def __iter__(self) -> Iterator[Row]:
        for text in self._first:
            yield self._number, text, self._read(text)
        for line in self._lines:
            text = _decoded(line)
            if len(line) > MAX_LINE_BYTES:
                yield self._number, text[:SHOWN_BYTES], f"longer than {MAX_LINE_BYTES:,} bytes"
            elif text and not text.isspace():
                yield self._number, text, self._read(text)

    def _read(self, text: str) -> Resource | str:
        try:
            return self._parse(text)
        except ValidationError as error:
            return reason(error)
        except (ValueError, csv.Error) as error:
            return str(error)

    def _numbered(self, file: IO[bytes]) -> Iterator[bytes]:
        """The lines, without their ends; of one that is too long, not all. Counts them."""
        try:
            while line := file.readline(MAX_LINE_BYTES + 2):
                self._number += 1
                if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                yield line.rstrip(b"\r\n")
        except (gzip.BadGzipFile, zlib.error):
            raise self._unusable("not in the format of gzip") from None
        except EOFError:
            raise self._unusable(f"it ends in the middle, after line {self._number}") from None

    def _unusable(self, why: str) -> CommandError:
        return CommandError(f"{'standard input' if self.name == STREAM else self.name}: {why}")


@contextmanager
def reading(kind: Kind, name: str) -> Iterator[Rows]:
    """The rows of the file of that name, or of standard input."""
    if name == STREAM:
        yield Rows(kind, sys.stdin.buffer, name)
    else:
        with Path(name).open("rb") as file:
            yield Rows(kind, file, name)


def reason(error: ValidationError) -> str:
    """Why a row is none, for people."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found)


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    buffered = cast("io.BufferedReader", file)
    if buffered.peek(1)[:1] != GZIP:
        return file
    return io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=file)), 256 * 1024)


def _decoded(line: bytes) -> str:
    """The text; bytes that are none become lone surrogates, which no value may have."""
    return line.decode(errors="surrogateescape")


def _json_parser(kind: Kind) -> Parse:
    return lambda text: model_of(kind).model_validate_json(_whole(text), strict=True)


def _csv_parser(kind: Kind, header: str) -> Parse:
    """Reads rows below that header. ValueError when it is none."""
    names = _cells(header)
    fields = {field_name(name): field for name, field in kind.resource.model_fields.items()}
    if unknown := [name for name in names if name not in fields]:
        raise ValueError(f"unknown column: {', '.join(unknown)}; there are {', '.join(fields)}")
    if missing := [name for name, field in fields.items() if field.is_required() and name not in names]:
        raise ValueError(f"missing column: {', '.join(missing)}")
    if len(set(names)) < len(names):
        raise ValueError("a column comes twice")
    nullable = {name for name, field in fields.items() if _is_nullable(field)}
    nested = [name for name in names if _is_nested(fields[name])]

    def parse(text: str) -> Resource:
        cells = _cells(_whole(text))
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} cells, but the header has {len(names)}")
        row: dict[str, Any] = dict(zip(names, cells, strict=True))
        if "" in cells:
            row = {name: cell or None for name, cell in row.items() if cell or name in nullable}
        for name in nested:
            if name in row:
                row[name] = _nested(name, row[name])
        return model_of(kind).model_validate(row)

    return parse


def _cells(text: str) -> list[str]:
    return text.split(",") if '"' not in text else next(csv.reader([text], strict=True))


def _whole(text: str) -> str:
    """The text, once it is known to be UTF-8. ValueError when it is not."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("not in UTF-8") from None
    return text


def _nested(name: str, cell: str) -> object:
    try:
        return from_json(cell)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _is_nullable(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


def _is_nested(field: FieldInfo) -> bool:
    return isinstance(field.default, list)


def format_of(name: str) -> Format:
    """The format that the name of a file asks for."""
    return "jsonl" if name.removesuffix(".gz").endswith(".jsonl") else "csv"


@contextmanager
def writing(kind: Kind, name: str, format_: Format) -> Iterator[Callable[[Resource], object]]:
    """Writes rows to the file of that name, or to standard output; gzip when the name ends in .gz.

    The file gets its name when it is whole; until then an older one of that name stays.
    """
    if name == STREAM:
        text = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="", write_through=True)
        try:
            yield _writer(kind, text, format_)
        finally:
            text.detach()
        return
    path = Path(name)
    is_special = path.exists() and not path.is_file()
    unfinished = path if is_special else path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        # Neither name nor time in it: the same rows give the same bytes.
        packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if name.endswith(".gz") else None
        with io.TextIOWrapper(cast("IO[bytes]", packed or file), encoding="utf-8", newline="") as text:
            yield _writer(kind, text, format_)
    if not is_special:
        unfinished.replace(path)


def _writer(kind: Kind, file: IO[str], format_: Format) -> Callable[[Resource], object]:
    if format_ == "jsonl":
        return lambda resource: file.write(json.dumps(resource.as_json(), ensure_ascii=False) + "\n")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(field_name(name) for name in kind.resource.model_fields)
    return lambda resource: rows.writerow(_cell(value) for value in resource.as_json().values())


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class RejectFile:
    """Where bad rows go: number of the line, reason, and the line. It is there only when there is such a row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file: IO[str] | None = None
        if path.is_file():  # and no device, and no pipe
            path.unlink()

    def add(self, line: int, reason: str, text: str) -> None:
        """Put a row aside."""
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
