"""`srm demo`: the demo data of the documents."""

import click

from srm import config
from srm.cli.common import open_database
from srm.operators import demo


@click.group("demo")
def demo_group() -> None:
    """Manage the demo data of the documents."""


@demo_group.command("load")
def load_demo() -> None:
    """Load the demo data. Safe to repeat."""
    with open_database(config.load()) as database, database.transaction() as connection:
        demo.load(connection)
    click.echo("demo data loaded")
