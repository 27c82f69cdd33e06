"""Bulk: accounts, devices, entitlements, contents and products by the million, while the service goes on.

An import loads all of the file into a temporary table, and then merges it in batches in the order of the keys, each a
short transaction: a setup waits for it only when its account is in the very batch, and no longer than that takes. It
may be killed at any instant. What was merged stays, and the same import, repeated, ends in the state of an undisturbed
one.

- What the file does not name stays: rows, and of a row that is there the columns. A row that is new has the defaults.
- Of several good rows with the same key the last one holds, and the others are not looked at further.
- As in `srm.provisioning`, the row of an account is locked while it, or anything that is there of it, is changed, and
  what is disabled has no active session any more.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from typing import Any, Protocol, TypeAlias, cast

import psycopg
from sqlalchemy import Connection, Index, Text, bindparam, select, tuple_
from sqlalchemy.exc import DBAPIError

from srm.db.database import Database
from srm.db.models import EndReason
from srm.errors import CommandError
from srm.operators import change_log, documents
from srm.operators.bulk.files import RejectFile, Rows
from srm.operators.bulk.staging import PARTS, Staging
from srm.operators.change_log import NewChange
from srm.operators.resources import ACCOUNTS, CONTENTS, DEVICES, ENTITLEMENTS, PRODUCTS, Kind, Resource
from srm.playback import ending

Key: TypeAlias = tuple[str, ...]

KINDS = (ACCOUNTS, DEVICES, ENTITLEMENTS, CONTENTS, PRODUCTS)
"""What comes in bulk."""

LOADED_AT_ONCE = 10_000
LOADED_AT_ONCE_CHARACTERS = 8_000_000
"""Most rows, and most of the file, in one COPY. They are read before it begins: a transaction that is open while a slow
pipe is waited for keeps PostgreSQL from pruning old versions of sessions."""

BATCH_SECONDS = 0.1
"""What a batch should take; the next one is made smaller, or larger, by that."""

FIRST_BATCH, SMALLEST_BATCH, LARGEST_BATCH = 500, 50, 5_000
"""Rows."""

TRIES = 60
"""Of a batch that meets the changes of somebody else: a minute, about."""

MET_SOMEBODY = (
    "23503",  # what it refers to is being removed
    "23505",  # a row is being created
    "40001",  # serialisation
    "40P01",  # deadlock
    "55P03",  # a lock could not be had in time
)
"""The SQLSTATEs after which a batch is done again."""

FOR_ALL = (
    "SET lock_timeout = '300ms'",  # others wait behind a batch that waits
    "SET idle_in_transaction_session_timeout = '5s'",  # Ctrl-Z must not keep locks
    "SET temp_buffers = '32MB'",
)

FOR_BATCHES = (
    "SET plan_cache_mode = force_custom_plan",
    "SET jit = off",
    "SET enable_hashjoin = off",
    "SET enable_mergejoin = off",
    "SET enable_seqscan = off",
)
"""A batch looks up keys in tables that grow much faster than the statistics about them: always by the index."""

EXPORTED_AT_ONCE = 5_000


class Watch(Protocol):
    """Is told how far it has come."""

    def __call__(self, step: str, rows: int, part: float | None) -> None:
        """`part` of the step, from 0 to 1, is done, and so many rows; None = nobody knows how many there will be."""


@dataclass
class Counts:
    """What became of the rows of a file, and how many sessions it ended."""

    rows: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    repeated: int = 0
    rejected: int = 0
    sessions_ended: int = 0

    def add(self, other: "Counts") -> None:
        """Count those of the other too."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def import_(
    database: Database, by: str, kind: Kind, rows: Rows, rejects: RejectFile, watch: Watch, *, dry_run: bool = False
) -> Counts:
    """Merge the rows of a file into the tables; what became of them. A dry run only tells what would.

    Bad rows are put aside, and the others go on. Recorded as changes by `by` are the file's name and the counts, each
    row that is changed, with what it was, and each session that is ended; new rows only as a number. CommandError when
    the file turns out to be none; then nothing of it was merged.
    """
    with database.connection() as db:
        if not dry_run:
            _record(db, by, kind, file=rows.name)
        counts = Import(db, by, kind, rejects, watch, dry_run=dry_run).run(rows)
        if not dry_run:
            _record(db, by, kind, file=rows.name, **asdict(counts))
    return counts


def _record(db: Connection, by: str, kind: Kind, **what: object) -> None:
    with db.begin():
        change = NewChange(by, "import", kind.plural, after=documents.of_fields(**what))
        change_log.record(db, [change])


class Import:
    """One import: its connection, and how it is done there."""

    def __init__(
        self, db: Connection, by: str, kind: Kind, rejects: RejectFile, watch: Watch, *, dry_run: bool
    ) -> None:
        self._db = db
        self._by = by
        self._kind = kind
        self._rejects = rejects
        self._watch = watch
        self._dry_run = dry_run
        self._staging = Staging(kind, dry_run=dry_run)

    def run(self, rows: Rows) -> Counts:
        """Load the rows and merge them; what became of them."""
        self._set(FOR_ALL)
        with self._db.begin():
            self._staging.staged.create(self._db)
            self._staging.batch.create(self._db)
        staged = self._load(rows)
        counts = Counts(rows=self._rejects.count, rejected=self._rejects.count)
        total = counts.rows + staged
        self._watch("sort", staged, None)
        counts.add(self._arrange())
        self._set(FOR_BATCHES)
        for depth in self._depths():
            for batch in self._batches(depth):
                counts.add(batch)
                self._watch("merge", counts.rows, counts.rows / total)
        return counts

    def _set(self, settings: Sequence[str]) -> None:
        with self._db.begin():
            for setting in settings:
                self._db.exec_driver_sql(setting)

    def _load(self, rows: Rows) -> int:
        """Put the rows into `staged`, what is none into the reject file; how many are in `staged`."""
        values = self._values()
        chunk: list[tuple[object, ...]] = []
        staged = characters = 0
        for line, said, resource in rows:
            if isinstance(resource, str):
                self._rejects.add(line, resource, said)
                continue
            chunk.append((line, said, *values(resource)))
            characters += len(said)
            if len(chunk) >= LOADED_AT_ONCE or characters >= LOADED_AT_ONCE_CHARACTERS:
                staged += self._copy(chunk)
                self._watch("read", staged + self._rejects.count, rows.part)
                chunk, characters = [], 0
        return staged + self._copy(chunk)

    def _values(self) -> Callable[[Resource], tuple[object, ...]]:
        """What `staged` says of a resource: the bits of the fields that it names, and the fields."""
        bits = self._staging.bits
        of_all = attrgetter(*bits)

        def values(resource: Resource) -> tuple[object, ...]:
            return sum([bits[name] for name in resource.model_fields_set]), *of_all(resource)

        def of_entitlement(resource: Resource) -> tuple[object, ...]:
            named, account_id, product_id, valid_from, valid_until = values(resource)
            if valid_from is None:  # says the same as nothing
                named = cast("int", named) & ~bits["valid_from"]
            return named, account_id, product_id, valid_from, valid_until

        def of_content(resource: Resource) -> tuple[object, ...]:
            *others, groups = values(resource)
            return *others, sorted(set(cast("list[str]", groups)))

        def of_product(resource: Resource) -> tuple[object, ...]:
            *others, contents = values(resource)
            words = {f"{content.content_type}:{content.content_id}" for content in cast("list[Any]", contents)}
            return *others, sorted(words)

        special = {ENTITLEMENTS: of_entitlement, CONTENTS: of_content, PRODUCTS: of_product}
        return special.get(self._kind, values)

    def _copy(self, chunk: list[tuple[object, ...]]) -> int:
        columns = [column for column in self._staging.staged.columns if column.name != "depth"]
        names = ", ".join(column.name for column in columns)
        with self._db.begin():
            cursor = cast("psycopg.Cursor[Any]", self._db.connection.cursor())
            with cursor.copy(f"COPY staged ({names}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
                copy.set_types([column.type.compile(self._db.dialect).lower() for column in columns])
                for row in chunk:
                    copy.write_row(row)
        return len(chunk)

    def _arrange(self) -> Counts:
        """Make `staged` ready for the batches. What became of rows meanwhile: some may be repeated."""
        staged = self._staging.staged
        counts = Counts()
        if self._kind is CONTENTS:
            counts = self._find_depths()
        with self._db.begin():
            depth = (staged.c.depth,) if self._kind is CONTENTS else ()
            Index("staged_in_order", *depth, *self._staging.key_of(staged)).create(self._db)
            self._db.exec_driver_sql("ANALYZE staged")
        return counts

    def _find_depths(self) -> Counts:
        """Set the depth of each content: 0 when it needs no other of the file, 1 when it needs one of depth 0.

        2 when it needs one of depth 1, and so on. Of several rows of a content only the last is left for that.
        """
        staged = self._staging.staged
        with self._db.begin():
            Index("staged_contents", staged.c.content_id, staged.c.line).create(self._db)
            self._db.exec_driver_sql("ANALYZE staged")
            repeated = self._db.execute(self._staging.drop_repeated()).rowcount
        depth, found = 0, 1
        while found or depth == 1:
            with self._db.begin():
                found = self._db.execute(self._staging.deepen(), {"of_depth": depth}).rowcount
            depth += 1
        return Counts(rows=repeated, repeated=repeated)

    def _depths(self) -> Sequence[int | None]:
        if self._kind is not CONTENTS:
            return [None]
        depth = self._staging.staged.c.depth
        with self._db.begin():
            return self._db.scalars(select(depth).distinct().order_by(depth)).all()

    def _batches(self, depth: int | None) -> Iterator[Counts]:
        """Merge what is staged, at that depth, batch by batch."""
        after: Key = ("",) * len(self._kind.key)  # no id is empty
        size = FIRST_BATCH
        while True:
            last, counts, seconds = self._merge_patiently(after, depth, size)
            if last is None:
                return
            yield counts
            after = last
            size = max(SMALLEST_BATCH, min(LARGEST_BATCH, 2 * size, int(size * BATCH_SECONDS / seconds)))

    def _merge_patiently(self, after: Key, depth: int | None, size: int) -> tuple[Key | None, Counts, float]:
        """Merge a batch, once more when it meets somebody else; its last key, counts, and the seconds that it took."""
        for attempt in range(TRIES):
            started_at = time.monotonic()
            try:
                with self._db.begin():
                    # The last record of the import, which waits for the disk, has all of it there.
                    self._db.exec_driver_sql("SET LOCAL synchronous_commit = off")
                    last, counts, rejected = self._merge(after, depth, size)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in MET_SOMEBODY:
                    raise
                if attempt == TRIES - 1:
                    where = "/".join(after) or "the first"
                    raise CommandError(
                        f"somebody else has held rows of {self._kind.plural} behind {where} for a minute; what was "
                        "merged stays, start it again"
                    ) from error
                time.sleep(random.uniform(0, min(2, 0.05 * 2**attempt)))
            else:
                break
        for line, reason, said in rejected:
            self._rejects.add(line, reason, said)
        return last, counts, time.monotonic() - started_at

    def _merge(self, after: Key, depth: int | None, size: int) -> tuple[Key | None, Counts, Sequence[Any]]:
        """Merge `size` rows behind that key: the last key, None when there are none; what became of them; the bad."""
        staging = self._staging
        names = {"of_depth": depth, "size": size, **self._bound("after", after)}
        last = self._db.execute(staging.find_last, names).first()
        if last is None:
            return None, Counts(), []
        self._db.execute(staging.fill, {**names, **self._bound("last", last)})
        rows, taken, new, changed, disabled, rejected = self._db.execute(staging.count).one()
        counts = Counts(rows, new, changed, taken - new - changed, rows - taken - rejected, rejected)
        if not self._dry_run:
            if changed or disabled:
                self._db.execute(staging.lock)
            if changed:
                self._db.execute(staging.record, {"of_operator": self._by})
                self._db.execute(staging.update)
            if new:
                self._db.execute(staging.insert)
            if new or changed:
                for statement in staging.write_parts:
                    self._db.execute(statement)
            if disabled:
                counts.sessions_ended = self._end_sessions()
        elif disabled:
            counts.sessions_ended = self._db.execute(staging.count_sessions()).scalar_one()
        return tuple(last), counts, self._db.execute(staging.list_rejected).all() if rejected else []

    def _bound(self, word: str, key: Sequence[str]) -> dict[str, object]:
        return {f"{word}_{name}": value for name, value in zip(self._kind.key, key, strict=True)}

    def _end_sessions(self) -> int:
        """End the sessions of what the batch disables, as one is disabled; how many."""
        reason: EndReason = "account_disabled" if self._kind is ACCOUNTS else "device_disabled"
        ended = ending.end_sessions(self._db, reason, self._staging.is_of_disabled())
        return change_log.record_ended(self._db, self._by, ended)


def export(database: Database, kind: Kind) -> Iterator[Resource]:
    """All resources of the kind, in the order of their keys; page by page, each as it is when its turn comes."""
    staging = Staging(kind, dry_run=True)
    table, parts = staging.table, PARTS.get(kind)
    key = staging.key_of(table)
    columns = [
        table.c[name] if parts is None or name != parts.field else parts.of(key[0]).label(name) for name in staging.bits
    ]
    behind = tuple_(*key) > tuple_(*(bindparam(name, type_=Text) for name in kind.key))
    page = select(*columns).where(behind).order_by(*key).limit(EXPORTED_AT_ONCE)
    after = dict.fromkeys(kind.key, "")  # no id is empty
    while after:
        with database.transaction() as db:
            rows = db.execute(page, after).mappings().all()
        for row in rows:
            yield _resource(kind, dict(row))
        after = {name: rows[-1][name] for name in kind.key} if rows else {}


def _resource(kind: Kind, row: dict[str, Any]) -> Resource:
    if kind is PRODUCTS:
        words = (word.partition(":") for word in row["contents"])
        row["contents"] = [{"content_type": type_, "content_id": id_} for type_, _, id_ in words]
    return documents.model_of(kind).of_row(row)
