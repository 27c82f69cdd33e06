"""`srm audit`: checks from the tables that no limit was ever exceeded."""

import sys

import click

from srm import config
from srm.cli.common import open_database
from srm.playback import limit_check as audits


@click.command()
def audit() -> None:
    """Check from the tables that no account ever went over its limits; exit code 1 if one did."""
    with open_database(config.load()) as database, database.transaction() as connection:
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
