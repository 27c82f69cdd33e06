"""Import: creates and changes accounts, devices, entitlements, contents and products in bulk while the service runs.

An import loads the whole file into a temporary table. Then it merges the rows in the order of their keys, in batches
that are short transactions. A setup waits only if its account is in the current batch, and no longer than that batch
takes.

An import may be killed at any instant. Merged rows stay. Started again with its file, the import leaves the tables as
an undisturbed import would.

- Rows that the file does not have stay as they are. So do fields that a line does not name; in a new row they get their
  defaults.
- If several good rows have one key, the last one counts. The others are counted as repeated.
- As in provisioning, the row of the account is locked while the account, or anything that belongs to it, changes.
  Accounts and devices that the import disables have no active session afterwards.
"""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, Index

from srm.db.database import Database
from srm.operators import change_log, documents
from srm.operators.bulk import content_order, loader
from srm.operators.bulk.files import RejectFile, Rows
from srm.operators.bulk.merger import Counts, Merger
from srm.operators.bulk.progress import ProgressReporter
from srm.operators.bulk.staging import Staging
from srm.operators.change_log import NewChange
from srm.operators.resources import ACCOUNTS, CONTENTS, DEVICES, ENTITLEMENTS, PRODUCTS, Kind

KINDS = (ACCOUNTS, DEVICES, ENTITLEMENTS, CONTENTS, PRODUCTS)
"""The kinds that can be imported and exported."""

IMPORT_SETTINGS = (
    "SET lock_timeout = '300ms'",  # others queue behind a batch that waits for a lock
    "SET idle_in_transaction_session_timeout = '5s'",  # an import that is stopped with Ctrl-Z must not keep locks
    "SET temp_buffers = '32MB'",
)
BATCH_SETTINGS = (
    "SET plan_cache_mode = force_custom_plan",
    "SET jit = off",
    "SET enable_hashjoin = off",
    "SET enable_mergejoin = off",
    "SET enable_seqscan = off",
)
"""The tables grow much faster than their statistics. These settings make every batch find its rows by an index."""


def import_rows(
    database: Database,
    operator: str,
    rows: Rows,
    rejects: RejectFile,
    progress: ProgressReporter,
    *,
    dry_run: bool = False,
) -> Counts:
    """Merge the rows of a file into the tables, and count them. A dry run counts what would happen.

    Bad rows go to the reject file; the others are merged. The change log gets the beginning of the import, and its end
    with the counts. It also gets every changed row with its values before and after, and every session that ended. New
    rows are not listed. Raises CommandError when the file cannot be read to its end, or is not in an import format:
    then nothing was merged.
    """
    with database.connection() as db:
        if not dry_run:
            _record(db, operator, rows.kind, file=rows.name)
        counts = _load_and_merge(db, operator, rows, rejects, progress, dry_run=dry_run)
        if not dry_run:
            _record(db, operator, rows.kind, file=rows.name, **asdict(counts))
    return counts


def _record(db: Connection, operator: str, kind: Kind, **fields: object) -> None:
    with db.begin():
        change_log.record(db, [NewChange(operator, "import", kind.plural, after=documents.of_fields(**fields))])


def _load_and_merge(
    db: Connection, operator: str, rows: Rows, rejects: RejectFile, progress: ProgressReporter, *, dry_run: bool
) -> Counts:
    staging = Staging(rows.kind)
    _set(db, IMPORT_SETTINGS)
    with db.begin():
        staging.staged.create(db)
        staging.batch.create(db)
    staged = loader.load(db, staging, rows, rejects, progress)
    counts = Counts(rows=rejects.count, rejected=rejects.count)
    total = counts.rows + staged
    progress("sort", staged, None)
    depths: Sequence[int | None] = (None,)
    if staging.kind is CONTENTS:
        repeated = content_order.set_depths(db, staging)
        counts.add(Counts(rows=repeated, repeated=repeated))
        depths = content_order.depths(db, staging)
    _index_in_order(db, staging)
    _set(db, BATCH_SETTINGS)
    merger = Merger(db, operator, staging, dry_run=dry_run)
    for depth in depths:
        for batch in merger.batches(depth):
            counts.add(batch.counts)
            for row in batch.rejected:
                rejects.add(row.line, row.reason, row.text)
            progress("merge", counts.rows, counts.rows / total)
    return counts


def _set(db: Connection, settings: Sequence[str]) -> None:
    with db.begin():
        for setting in settings:
            db.exec_driver_sql(setting)


def _index_in_order(db: Connection, staging: Staging) -> None:
    """Index the staged rows in the order in which they are merged."""
    staged = staging.staged
    depth = (staged.c.depth,) if staging.kind is CONTENTS else ()
    with db.begin():
        Index("staged_in_order", *depth, *staging.key_of(staged)).create(db)
        db.exec_driver_sql("ANALYZE staged")
