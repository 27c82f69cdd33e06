"""`srm import` and `srm export`: accounts, devices, entitlements and the catalogue by the million."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import click

from srm import config
from srm.cli import progress
from srm.cli.common import open_database, stand_back, user
from srm.errors import StartupError
from srm.operators.bulk import files as formats
from srm.operators.bulk import importer as bulk
from srm.operators.bulk.files import Format
from srm.operators.resources import Kind


@click.command("import")
@click.argument("kind", metavar="[accounts|devices|entitlements|contents|products]")
@click.argument("file")
@click.option("--dry-run", is_flag=True, help="Only say what would become of the rows")
@click.option("--rejects", help="Where bad rows go; default FILE.rejected.csv, for standard input KIND.rejected.csv")
def import_(kind: str, file: str, dry_run: bool, rejects: str | None) -> None:
    """Create and change by the million, while the service goes on.

    FILE, or standard input when it is -, is CSV with a header or JSON lines, gzip or not, with the names of the API.
    What it does not name stays: rows, and the columns that it does not have; nor does an empty cell name anything,
    unless the value may be null. Bad rows are put aside with line number and reason, and make the exit code 1. It may
    be killed and started again.
    """
    of_kind = _kind(kind)
    started_at = time.monotonic()
    put_aside = Path(rejects or f"{kind if file == formats.STREAM else file}.rejected.csv")
    if file != formats.STREAM and put_aside.resolve() == Path(file).resolve():
        raise StartupError(f"{file} is what is to be read: name another file for bad rows")
    with (
        _files(),
        formats.reading(of_kind, file) as rows,
        open_database(config.load()) as database,
    ):
        stand_back()
        with formats.RejectFile(put_aside) as bad, progress.shown() as watch:
            counts = bulk.import_(database, user(), of_kind, rows, bad, watch, dry_run=dry_run)
    said = [f"{counts.new:,} new", f"{counts.changed:,} changed", f"{counts.unchanged:,} unchanged"]
    said += [f"{counts.repeated:,} repeated in the file"] if counts.repeated else []
    said += [f"{counts.sessions_ended:,} sessions ended"] if counts.sessions_ended else []
    seconds = f"{time.monotonic() - started_at:.1f} s"
    click.echo(f"{kind}{' (dry run)' if dry_run else ''}: {counts.rows:,} rows in {seconds}: {', '.join(said)}")
    if counts.rejected:
        raise StartupError(f"{counts.rejected:,} rows were rejected: see {put_aside}")


@click.command()
@click.argument("kind", metavar="[accounts|devices|entitlements|contents|products]")
@click.argument("file", default=formats.STREAM)
@click.option("--format", "format_", type=click.Choice(get_args(Format)), help="Default: by the name of FILE, or csv")
def export(kind: str, file: str, format_: Format | None) -> None:
    """Write what `srm import` reads.

    To standard output, or to FILE: JSON lines when its name ends in .jsonl or .jsonl.gz, gzip when it ends in .gz.
    """
    of_kind = _kind(kind)
    format_ = format_ or formats.format_of(file)
    with (
        _files(),
        open_database(config.load()) as database,
        formats.writing(of_kind, file, format_) as write,
    ):
        for resource in bulk.export(database, of_kind):
            write(resource)


def _kind(name: str) -> Kind:
    for kind in bulk.KINDS:
        if kind.plural == name:
            return kind
    raise StartupError(f"{name}: no such kind; there are {', '.join(kind.plural for kind in bulk.KINDS)}")


@contextmanager
def _files() -> Iterator[None]:
    """A file that cannot be used, or a full disk, is one line too."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads has enough
    except OSError as error:
        raise StartupError(": ".join(str(part) for part in (error.filename, error.strerror or error) if part)) from None
