"""`srm demo`: the demo data."""

import click

from srm import config
from srm.cli.common import open_database
from srm.operators import demo


@click.group("demo")
def demo_group() -> None:
    """The demo data."""


@demo_group.command("load")
def load_demo() -> None:
    """Load the demo data; safe to repeat."""
    with open_database(config.load()) as database, database.transaction() as connection:
        demo.load(connection)
    click.echo("demo data loaded")
