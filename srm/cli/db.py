"""`srm db`: the URL of the database, and its migrations."""

import click

from srm import config
from srm.cli import psql
from srm.config import Settings
from srm.db import embedded, schema
from srm.errors import CommandError


@click.group()
def db() -> None:
    """Show and migrate the database."""


@db.command("url")
def print_url() -> None:
    """Print the URL of the database in use, password included."""
    click.echo(_url_in_use(config.load()))


@db.command("shell", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PSQL-ARGUMENT]...")
def shell(arguments: tuple[str, ...]) -> None:
    """Open psql on the database in use.

    Arguments and standard input go to psql: srm db shell -c 'SELECT 1'. A statement that fails ends a script with exit
    code 3. Put -- before an argument that srm would take for its own, such as --help.
    """
    psql.run(_url_in_use(config.load()), arguments)


def _url_in_use(settings: Settings) -> str:
    """Return the URL of the database. Raises CommandError when the embedded database is in use and does not run."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    server = embedded.EmbeddedServer(settings.data_dir)
    if not server.is_running():
        raise CommandError(f"the embedded database in {settings.data_dir} does not run: start `srm serve`")
    return server.url


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
