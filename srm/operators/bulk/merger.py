"""Merges the staged rows of an import into the tables, in batches that are short transactions."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from sqlalchemy import Connection, Row
from sqlalchemy.exc import DBAPIError

from srm.db.models import EndReason
from srm.errors import CommandError
from srm.operators import change_log
from srm.operators.bulk.batch import BatchCounts, BatchStatements, Rejected
from srm.operators.bulk.merge import MergeStatements
from srm.operators.bulk.staging import DEPTH, Staging
from srm.operators.resources import ACCOUNTS, ResourceKey
from srm.playback import ending

BATCH_SECONDS = 0.1
"""Duration that batches aim at: the next one is smaller or larger accordingly."""

FIRST_BATCH, SMALLEST_BATCH, LARGEST_BATCH = 500, 50, 5_000
"""Rows in a batch."""

TRIES = 60
"""Tries of one batch that meets the changes of others: about a minute."""

RETRIED = (
    "23503",  # foreign key violation: a resource that the batch refers to is being deleted
    "23505",  # unique violation: a row is being created
    "40001",  # serialization failure
    "40P01",  # deadlock detected
    "55P03",  # lock not available
)
"""The SQLSTATEs after which a batch is tried again."""


@dataclass
class Counts:
    """Numbers of rows of the file by what became of them, and the number of sessions that the import ended.

    `repeated`: good rows with the key of a later good row.
    """

    rows: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    repeated: int = 0
    rejected: int = 0
    sessions_ended: int = 0

    def add(self, other: "Counts") -> None:
        """Add the numbers of another part of the import."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Batch(NamedTuple):
    """A merged batch. `last` is its last key; None = there were no rows left."""

    last: ResourceKey | None
    counts: Counts
    rejected: Sequence[Rejected] = ()


class Merger:
    """Merges what is staged, in the order of keys. A dry run only counts."""

    def __init__(self, db: Connection, operator: str, staging: Staging, *, dry_run: bool) -> None:
        self._db = db
        self._operator = operator
        self._kind = staging.kind
        self._dry_run = dry_run
        self._batch = BatchStatements(staging, dry_run=dry_run)
        self._merge = MergeStatements(staging)

    def batches(self, depth: int | None) -> Iterator[Batch]:
        """Merge all staged rows, or the contents of that depth; yield each batch once it is committed."""
        after: ResourceKey = ("",) * len(self._kind.key)  # no id is empty
        size = FIRST_BATCH
        while True:
            batch, seconds = self._merge_with_retries(after, depth, size)
            if batch.last is None:
                return
            yield batch
            after = batch.last
            size = max(SMALLEST_BATCH, min(LARGEST_BATCH, 2 * size, int(size * BATCH_SECONDS / seconds)))

    def _merge_with_retries(self, after: ResourceKey, depth: int | None, size: int) -> tuple[Batch, float]:
        """Merge one batch; return it with the seconds that the last try took.

        Raises CommandError when others hold its rows through all TRIES.
        """
        for attempt in range(TRIES):
            started_at = time.monotonic()
            try:
                with self._db.begin():
                    # The import's last entry in the change log waits for the disk, and all batches with it.
                    self._db.exec_driver_sql("SET LOCAL synchronous_commit = off")
                    batch = self._merge_batch(after, depth, size)
                return batch, time.monotonic() - started_at
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in RETRIED:
                    raise
                if attempt == TRIES - 1:
                    where = "/".join(after) or "the first"
                    raise CommandError(
                        f"another transaction has held rows of {self._kind.plural} after {where} for a minute; "
                        "merged rows stay, start the import again"
                    ) from error
                time.sleep(random.uniform(0, min(2, 0.05 * 2**attempt)))
        raise AssertionError  # the last try returns or raises

    def _merge_batch(self, after: ResourceKey, depth: int | None, size: int) -> Batch:
        """Merge at most `size` rows after that key, in the current transaction."""
        parameters = {DEPTH.key: depth, "size": size, **self._named("after", after)}
        last = self._db.execute(self._batch.find_last, parameters).first()
        if last is None:
            return Batch(None, Counts())
        self._db.execute(self._batch.fill, {**parameters, **self._named("last", last)})
        found = BatchCounts(**self._db.execute(self._batch.count).one()._mapping)
        counts = Counts(
            rows=found.rows,
            new=found.new,
            changed=found.changed,
            unchanged=found.taken - found.new - found.changed,
            repeated=found.rows - found.taken - found.rejected,
            rejected=found.rejected,
        )
        if not self._dry_run:
            counts.sessions_ended = self._write(found)
        elif found.disabled:
            counts.sessions_ended = self._db.execute(self._merge.count_sessions()).scalar_one()
        rejected = self._db.execute(self._batch.list_rejected) if found.rejected else ()
        return Batch(tuple(last), counts, [Rejected(**row._mapping) for row in rejected])

    def _write(self, found: BatchCounts) -> int:
        """Write the batch to the tables and return the number of sessions that it ended."""
        if found.changed or found.disabled:
            self._db.execute(self._merge.lock)
        if found.changed:
            self._db.execute(self._merge.record, {"changed_by": self._operator})
            self._db.execute(self._merge.update)
        if found.new:
            self._db.execute(self._merge.insert)
        if found.new or found.changed:
            for statement in self._merge.write_lists:
                self._db.execute(statement)
        if not found.disabled:
            return 0
        reason: EndReason = "account_disabled" if self._kind is ACCOUNTS else "device_disabled"
        ended = ending.end_sessions(self._db, reason, self._merge.is_of_disabled())
        return change_log.record_ended(self._db, self._operator, ended)

    def _named(self, prefix: str, key: ResourceKey | Row[str]) -> dict[str, object]:
        """Parameters of a key: `after_account_id` and so on."""
        return {f"{prefix}_{name}": value for name, value in zip(self._kind.key, key, strict=True)}
