"""`srm import` and `srm export`: accounts, devices, entitlements, contents and products in bulk."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import click

from srm import config
from srm.cli import progress
from srm.cli.common import lower_priority, open_database, user
from srm.errors import CommandError
from srm.operators.bulk import exporter, files, importer
from srm.operators.bulk.files import Format
from srm.operators.bulk.merger import Counts
from srm.operators.resources import Kind

KIND_METAVAR = "[accounts|devices|entitlements|contents|products]"


@click.command("import")
@click.argument("kind", metavar=KIND_METAVAR)
@click.argument("file")
@click.option("--dry-run", is_flag=True, help="Count what would change, and change nothing")
@click.option(
    "--rejects", help="File for bad rows. Default: FILE.rejected.csv, or KIND.rejected.csv for standard input"
)
def import_(kind: str, file: str, dry_run: bool, rejects: str | None) -> None:
    """Create and change rows in bulk while the service runs.

    FILE is CSV with a header, or JSON lines. It may be compressed with gzip. - means standard input. Columns have the
    names of the API.

    Rows and columns that FILE does not have stay as they are. An empty cell changes nothing, unless its value may be
    null: then it sets null.

    Bad rows go to a file of their own with line number and reason, and the exit code is 1. You may kill the import and
    start it again.
    """
    chosen = _kind(kind)
    started_at = time.monotonic()
    rejected_to = Path(rejects or f"{kind if file == files.STREAM else file}.rejected.csv")
    if file != files.STREAM and rejected_to.resolve() == Path(file).resolve():
        raise CommandError(f"{file} is the file to import: name another one for bad rows")
    with _file_errors_in_one_line(), files.reading(chosen, file) as rows, open_database(config.load()) as database:
        lower_priority()
        with files.RejectFile(rejected_to) as bad, progress.shown() as report:
            counts = importer.import_rows(database, user(), rows, bad, report, dry_run=dry_run)
    seconds = time.monotonic() - started_at
    click.echo(f"{kind}{' (dry run)' if dry_run else ''}: {counts.rows:,} rows in {seconds:.1f} s: {_summary(counts)}")
    if counts.rejected:
        raise CommandError(f"{counts.rejected:,} rows were rejected: see {rejected_to}")


def _summary(counts: Counts) -> str:
    parts = [f"{counts.new:,} new", f"{counts.changed:,} changed", f"{counts.unchanged:,} unchanged"]
    if counts.repeated:
        parts.append(f"{counts.repeated:,} repeated in the file")
    if counts.sessions_ended:
        parts.append(f"{counts.sessions_ended:,} sessions ended")
    return ", ".join(parts)


@click.command()
@click.argument("kind", metavar=KIND_METAVAR)
@click.argument("file", default=files.STREAM)
@click.option(
    "--format", "format_", type=click.Choice(get_args(Format)), help="Default: by the name of FILE, csv without one"
)
def export(kind: str, file: str, format_: Format | None) -> None:
    """Write rows to FILE, or to standard output, in the format of `srm import`.

    A name that ends in .jsonl or .jsonl.gz means JSON lines; .gz means gzip; any other means CSV.
    """
    chosen = _kind(kind)
    format_ = format_ or files.format_of(file)
    with (
        _file_errors_in_one_line(),
        open_database(config.load()) as database,
        files.writing(chosen, file, format_) as write,
    ):
        for resource in exporter.export_resources(database, chosen):
            write(resource)


def _kind(name: str) -> Kind:
    for kind in importer.KINDS:
        if kind.plural == name:
            return kind
    raise CommandError(f"{name}: no such kind; there are {', '.join(kind.plural for kind in importer.KINDS)}")


@contextmanager
def _file_errors_in_one_line() -> Iterator[None]:
    """Turn an unusable file or a full disk into a CommandError."""
    try:
        yield
    except BrokenPipeError:
        raise  # click ends quietly: the reader has read enough
    except OSError as error:
        raise CommandError(": ".join(str(part) for part in (error.filename, error.strerror or error) if part)) from None
