"""`srm db`: the URL of the database, and its migrations."""

import click

from srm import config
from srm.db import embedded, schema
from srm.errors import CommandError


@click.group()
def db() -> None:
    """Show and migrate the database."""


@db.command("url")
def print_url() -> None:
    """Print the URL of the database, password included: psql "$(srm db url)"."""
    settings = config.load()
    if settings.database_url is not None:
        click.echo(settings.database_url.get_secret_value())
        return
    server = embedded.EmbeddedServer(settings.data_dir)
    if not server.is_running():
        raise CommandError(f"the embedded database in {settings.data_dir} does not run: start `srm serve`")
    click.echo(server.url)


@db.command()
@click.argument("revision", default="head")
@click.option("--sql", is_flag=True, help="Print the SQL, run nothing. REVISION may be a range such as 0001:0003")
def upgrade(revision: str, sql: bool) -> None:
    """Run the migrations up to REVISION. Default: the newest."""
    if sql:
        schema.upgrade("", revision, sql=True)
        return
    with embedded.database_url(config.load()) as url:
        schema.upgrade(url, revision)
