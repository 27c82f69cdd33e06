"""The `srm` command: its commands, and its exit code and one line of text after an error."""

import sys

import click
from alembic.util import CommandError as MigrationError
from psycopg.errors import DataError, InsufficientPrivilege
from sqlalchemy.exc import DBAPIError

from srm import version
from srm.cli import bulk, db, demo, limit_check, operators, processes, tokens
from srm.db.breaker import is_unavailable
from srm.errors import CommandError, Conflict, DependencyUnavailable, StartupError, first_line


def _print_version(context: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if is_asked and not context.resilient_parsing:
        click.echo(f"srm, version {version.build()}")
        context.exit()


@click.group()
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Session Resource Manager. Environment variables SRM_… configure it: see docs/configuration.md."""


for command in (
    processes.serve,
    processes.reaper,
    tokens.token,
    operators.operator_group,
    db.db,
    limit_check.audit,
    demo.demo_group,
    bulk.import_,
    bulk.export,
):
    cli.add_command(command)


def main() -> None:
    """Run the command. An error that an operator can mend is one line on standard error, with exit code 1."""
    try:
        cli()
    except (StartupError, CommandError, MigrationError, Conflict) as error:
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
