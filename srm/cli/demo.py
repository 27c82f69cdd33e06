"""`srm demo`: the demo data of the documents."""

import click

from srm import config
from srm.cli.common import open_database, user
from srm.operators import demo


@click.group("demo")
def demo_group() -> None:
    """Manage the demo data of the documents."""


@demo_group.command("load")
def load_demo() -> None:
    """Load the demo data. Safe to repeat."""
    with open_database(config.load()) as database, database.transaction() as connection:
        demo.load(connection, user())
    click.echo("demo data loaded")


@demo_group.command("reset")
@click.argument("accounts", nargs=-1, type=click.Choice(list(demo.ACCOUNTS)), metavar="[ACCOUNT]...")
def reset_demo(accounts: tuple[str, ...]) -> None:
    """End the sessions of these demo accounts, or of all, and set the demo data back.

    Other data stays, and so does what is on record. Safe while the service runs.
    """
    with open_database(config.load()) as database, database.transaction() as connection:
        ended = demo.reset(connection, user(), accounts)
    click.echo(f"demo data set back, {ended} {'session' if ended == 1 else 'sessions'} ended")
