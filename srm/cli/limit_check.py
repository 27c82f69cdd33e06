"""`srm audit`: check from the tables that no account ever exceeded a limit."""

import sys

import click

from srm import config
from srm.cli.common import open_database
from srm.playback import limit_check


@click.command()
def audit() -> None:
    """Check from the tables that no account ever exceeded a limit. Exit code 1 if one did."""
    with open_database(config.load()) as database, database.transaction() as connection:
        found = limit_check.excesses(connection)
        checked = limit_check.count_sessions(connection)
    if not found:
        click.echo(f"clean: {checked} sessions checked, no limit was ever exceeded")
        return
    click.echo(f"exceeded {len(found)} times in {checked} sessions")
    for excess in found:
        unit = "seconds" if excess.rule == "max_session_seconds" else "active"
        counts = f"{excess.rule}: {excess.active} {unit}, limit {excess.limit}"
        click.echo(f"account {excess.account_id} at {excess.at.isoformat()}: {counts}")
    sys.exit(1)
