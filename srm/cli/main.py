"""The `srm` command."""

import os
import pwd
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import click
from alembic.util import CommandError
from psycopg.errors import DataError, InsufficientPrivilege
from sqlalchemy.exc import DBAPIError

from srm import config, logs
from srm.cli import progress
from srm.clients import tokens
from srm.config import Settings
from srm.db import embedded, schema
from srm.db.breaker import is_unavailable
from srm.db.database import Database
from srm.db.models import Role
from srm.errors import Conflict, DependencyUnavailable, StartupError, first_line
from srm.operators import demo
from srm.operators import keys as operators
from srm.operators.bulk import files as formats
from srm.operators.bulk import importer as bulk
from srm.operators.bulk.files import Format
from srm.operators.resources import Kind
from srm.playback import limit_check as audits
from srm.reaper.runner import STATEMENT_TIMEOUT_SECONDS, Reaper, run_forever
from srm.serve import supervisor as serving

COMMAND_TIMEOUT_SECONDS = 3600
"""Of one statement: an audit, or the sorting of all rows of an import."""

NICENESS = 10
"""Of an import, and of the reaper: requests go first."""


@click.group()
@click.version_option(package_name="srm")
def cli() -> None:
    """Session Resource Manager. Configured by environment variables SRM_…; see the README."""


@contextmanager
def _database(settings: Settings, timeout_seconds: float, name: str = "srm-cli") -> Iterator[Database]:
    """The database in use, with a schema that is not older than this version."""
    with embedded.database_url(settings) as url:
        database = Database(url, application_name=name, statement_timeout_seconds=timeout_seconds)
        try:
            with database.transaction() as db:
                schema.check_not_behind(db)
            yield database
        finally:
            database.dispose()


def _stand_back() -> None:
    """Let whoever answers requests on this machine go first; nothing is asked for that is so already."""
    if os.getpriority(os.PRIO_PROCESS, 0) < NICENESS:
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, 0, NICENESS)


@cli.command()
@click.option("--bind", help="Address to listen on; default SRM_BIND")
@click.option("--workers", type=click.IntRange(1), help="Worker processes; default one for each core")
@click.option("--threads", type=click.IntRange(1), help="Threads of each worker")
@click.option("--demo", "with_demo", is_flag=True, help="Load the demo data into the embedded database")
def serve(bind: str | None, workers: int | None, threads: int | None, with_demo: bool) -> None:
    """Run gunicorn and the reaper, and the embedded database when no other is configured."""
    settings = config.load() if bind is None else config.load(bind=bind)
    logs.configure(settings.log_format)
    serving.serve(settings, workers=workers, threads=threads, with_demo=with_demo)


@cli.command()
def reaper() -> None:
    """Run the reaper alone; any number may run, one at a time works."""
    settings = config.load()
    logs.configure(settings.log_format)
    database = Database(
        settings.require_database_url(),
        application_name="srm-reaper",
        statement_timeout_seconds=STATEMENT_TIMEOUT_SECONDS,
    )
    worker = Reaper(
        database,
        ended_retention_seconds=settings.ended_retention_seconds,
        history_retention_days=settings.history_retention_days,
    )
    _stand_back()
    run_forever(worker, settings.reaper_interval_seconds)


@cli.group()
def token() -> None:
    """Client-Tokens."""


@token.command("issue")
@click.option("--account", required=True, help="Account id")
@click.option("--device", required=True, help="Device id")
@click.option("--ttl", type=click.IntRange(1), default=3600, show_default=True, help="Seconds until it expires")
def issue_token(account: str, device: str, ttl: int) -> None:
    """Print a Client-Token signed with the configured key."""
    click.echo(tokens.issue(config.load(), account, device, ttl))


@cli.group("operator")
def operator_group() -> None:
    """Operators, and their keys for the operator API."""


@operator_group.command("add")
@click.argument("name")
@click.option("--role", required=True, type=click.Choice(get_args(Role)), help="viewer reads, care ends sessions too")
def add_operator(name: str, role: Role) -> None:
    """Make an Operator-Key and print it; it cannot be shown again."""
    with _database(config.load(), COMMAND_TIMEOUT_SECONDS) as database, database.transaction() as connection:
        key = operators.add(connection, _user(), name, role)
    click.echo(f"{name} is {role}; header Operator-Key:")
    click.echo(key)


@operator_group.command("list")
def list_operators() -> None:
    """List all operators: name, role, when the key was made, when it was revoked."""
    with _database(config.load(), COMMAND_TIMEOUT_SECONDS) as database, database.transaction() as connection:
        everybody = operators.everybody(connection)
    for name, role, created_at, revoked_at in everybody:
        state = "active" if revoked_at is None else f"revoked {revoked_at:%Y-%m-%d %H:%M:%SZ}"
        click.echo(f"{name}\t{role}\tcreated {created_at:%Y-%m-%d %H:%M:%SZ}\t{state}")


@operator_group.command("revoke")
@click.argument("name")
def revoke_operator(name: str) -> None:
    """Make the key of an operator stop working, at once and everywhere."""
    with _database(config.load(), COMMAND_TIMEOUT_SECONDS) as database, database.transaction() as connection:
        operators.revoke(connection, _user(), name)
    click.echo(f"the key of {name} is revoked")


def _user() -> str:
    """Who the record of changes says it was."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # as in containers
        return f"cli:{os.getuid()}"


@cli.group()
def db() -> None:
    """The database."""


@db.command("url")
def print_url() -> None:
    """Print the URL of the database in use: psql "$(srm db url)"."""
    settings = config.load()
    if settings.database_url is not None:
        click.echo(settings.database_url.get_secret_value())
        return
    server = embedded.EmbeddedServer(settings.data_dir)
    if not server.is_running():
        raise StartupError(f"the embedded database in {settings.data_dir} does not run: start `srm serve`")
    click.echo(server.url)


@db.command()
@click.argument("revision", default="head")
@click.option("--sql", is_flag=True, help="Print the SQL instead; the revision may be a range, 0001:0003")
def upgrade(revision: str, sql: bool) -> None:
    """Run the migrations."""
    if sql:
        schema.upgrade("", revision, sql=True)
        return
    with embedded.database_url(config.load()) as url:
        schema.upgrade(url, revision)


@cli.command()
def audit() -> None:
    """Check from the tables that no account ever went over its limits; exit code 1 if one did."""
    with _database(config.load(), COMMAND_TIMEOUT_SECONDS) as database, database.transaction() as connection:
        found = audits.excesses(connection)
        checked = audits.counted(connection)
    if not found:
        click.echo(f"clean: {checked} sessions checked, no limit was ever exceeded")
        return
    click.echo(f"exceeded {len(found)} times in {checked} sessions")
    for excess in found:
        what = "seconds" if excess.rule == "max_session_seconds" else "active"
        counts = f"{excess.rule}: {excess.active} {what}, limit {excess.limit}"
        click.echo(f"account {excess.account_id} at {excess.at.isoformat()}: {counts}")
    sys.exit(1)


@cli.group("demo")
def demo_group() -> None:
    """The demo data."""


@demo_group.command("load")
def load_demo() -> None:
    """Load the demo data; safe to repeat."""
    with _database(config.load(), COMMAND_TIMEOUT_SECONDS) as database, database.transaction() as connection:
        demo.load(connection)
    click.echo("demo data loaded")


@cli.command("import")
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
        _database(config.load(), COMMAND_TIMEOUT_SECONDS) as database,
    ):
        _stand_back()
        with formats.RejectFile(put_aside) as bad, progress.shown() as watch:
            counts = bulk.import_(database, _user(), of_kind, rows, bad, watch, dry_run=dry_run)
    said = [f"{counts.new:,} new", f"{counts.changed:,} changed", f"{counts.unchanged:,} unchanged"]
    said += [f"{counts.repeated:,} repeated in the file"] if counts.repeated else []
    said += [f"{counts.sessions_ended:,} sessions ended"] if counts.sessions_ended else []
    seconds = f"{time.monotonic() - started_at:.1f} s"
    click.echo(f"{kind}{' (dry run)' if dry_run else ''}: {counts.rows:,} rows in {seconds}: {', '.join(said)}")
    if counts.rejected:
        raise StartupError(f"{counts.rejected:,} rows were rejected: see {put_aside}")


@cli.command()
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
        _database(config.load(), COMMAND_TIMEOUT_SECONDS) as database,
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


def main() -> None:
    """The command; what an operator can mend is one line on standard error, exit code 1."""
    try:
        cli()
    except (StartupError, CommandError, Conflict) as error:
        sys.exit(f"srm: {error}")
    except DependencyUnavailable as error:
        sys.exit(f"srm: database unavailable: {_first_line(error.__cause__)}")
    except DBAPIError as error:
        if is_unavailable(error):
            sys.exit(f"srm: database unavailable: {_first_line(error)}")
        if not isinstance(error.orig, InsufficientPrivilege | DataError):
            raise
        sys.exit(f"srm: database: {_first_line(error)}")


def _first_line(error: BaseException | None) -> str:
    return first_line(error.orig if isinstance(error, DBAPIError) else error)
