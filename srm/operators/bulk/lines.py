"""The lines of a file or of standard input, compressed with gzip or not."""

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple, cast

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Enough for a product with a hundred thousand contents."""

SHOWN_CHARACTERS = 1000
"""Characters that are left of a line that is too long."""

GZIP_START = b"\x1f"
"""First byte of a gzip file. It is a control character, so no text file begins with it."""


class UnreadableFile(Exception):
    """The file is damaged; the message says how."""


class Line(NamedTuple):
    """A line without its end. Bytes that are not UTF-8 are lone surrogates in the text, which no value may have."""

    number: int
    text: str
    is_too_long: bool = False


def read_lines(file: IO[bytes]) -> Iterator[Line]:
    """Yield the lines of the file, numbered from 1. Raises UnreadableFile when gzip data is damaged or cut off.

    A line over MAX_LINE_BYTES is cut to SHOWN_CHARACTERS, so that it does not fill the memory.
    """
    number = 0
    try:
        unpacked = _unpacked(file)
        while line := unpacked.readline(MAX_LINE_BYTES + 2):
            number += 1
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := unpacked.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
            line = line.rstrip(b"\r\n")
            text = line.decode(errors="surrogateescape")
            if len(line) > MAX_LINE_BYTES:
                yield Line(number, text[:SHOWN_CHARACTERS], is_too_long=True)
            else:
                yield Line(number, text)
    except (gzip.BadGzipFile, zlib.error):
        raise UnreadableFile("not in the format of gzip") from None
    except EOFError:
        raise UnreadableFile(f"it ends in the middle, after line {number}") from None


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    buffered = cast("io.BufferedReader", file)
    if buffered.peek(1)[:1] != GZIP_START:
        return file
    return io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=file)), 256 * 1024)
