"""Loads the rows of a file into the temporary table `staged`."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeAlias, cast

import psycopg
from sqlalchemy import Connection

from srm.operators.bulk.files import RejectFile, Rows
from srm.operators.bulk.progress import ProgressReporter
from srm.operators.bulk.staging import Staging
from srm.operators.resources import CONTENTS, ENTITLEMENTS, PRODUCTS, Resource

Values: TypeAlias = tuple[object, ...]

CHUNK_ROWS = 10_000
CHUNK_CHARACTERS = 8_000_000
"""Most rows, and about the most characters of the file, in one COPY.

A chunk is read before its COPY begins. An open transaction that waits for a slow pipe would keep PostgreSQL from
removing old versions of sessions.
"""


def load(db: Connection, staging: Staging, rows: Rows, rejects: RejectFile, progress: ProgressReporter) -> int:
    """Copy the good rows to `staged` and return their number. Bad rows go to the reject file."""
    values_of = _values_of(staging)
    chunk: list[Values] = []
    staged = characters = 0
    for line, text, resource in rows:
        if isinstance(resource, str):
            rejects.add(line, resource, text)
            continue
        chunk.append((line, text, *values_of(resource)))
        characters += len(text)
        if len(chunk) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            staged += _copy(db, staging, chunk)
            progress("read", staged + rejects.count, rows.part)
            chunk, characters = [], 0
    return staged + _copy(db, staging, chunk)


def _copy(db: Connection, staging: Staging, chunk: list[Values]) -> int:
    columns = [column for column in staging.staged.columns if column.name != "depth"]
    names = ", ".join(column.name for column in columns)
    with db.begin():
        cursor = cast("psycopg.Cursor[Any]", db.connection.cursor())
        with cursor.copy(f"COPY staged ({names}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
            copy.set_types([column.type.compile(db.dialect).lower() for column in columns])
            for row in chunk:
                copy.write_row(row)
    return len(chunk)


def _values_of(staging: Staging) -> Callable[[Resource], Values]:
    """Return a function that makes the values of `staged` from a resource: the bits of the named fields, the fields."""
    special = {ENTITLEMENTS: _entitlement_values, CONTENTS: _content_values, PRODUCTS: _product_values}
    bits = staging.bits
    fields_of = attrgetter(*bits)

    def values(resource: Resource) -> Values:
        return sum([bits[name] for name in resource.model_fields_set]), *fields_of(resource)

    change = special.get(staging.kind)
    if change is None:
        return values
    return lambda resource: change(bits, values(resource))


def _entitlement_values(bits: dict[str, int], values: Values) -> Values:
    """A null `valid_from` counts as not named: the entitlement keeps its beginning."""
    named, account_id, product_id, valid_from, valid_until = values
    if valid_from is None:
        named = cast("int", named) & ~bits["valid_from"]
    return named, account_id, product_id, valid_from, valid_until


def _content_values(_: dict[str, int], values: Values) -> Values:
    *others, groups = values
    return *others, sorted(set(cast("list[str]", groups)))


def _product_values(_: dict[str, int], values: Values) -> Values:
    *others, contents = values
    items = {f"{content.content_type}:{content.content_id}" for content in cast("list[Any]", contents)}
    return *others, sorted(items)
