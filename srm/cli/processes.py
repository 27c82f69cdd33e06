"""`srm serve` and `srm reaper`: run the processes of the service."""

import click

from srm import config, logs
from srm.cli.common import lower_priority
from srm.db.database import Database
from srm.reaper.runner import STATEMENT_TIMEOUT_SECONDS, Reaper, run_forever
from srm.serve import supervisor


@click.command()
@click.option("--bind", help="Address to listen on: host:port or unix:/path. Default: SRM_BIND")
@click.option("--workers", type=click.IntRange(1), help="Worker processes. Default: one for each core, at most 32")
@click.option("--threads", type=click.IntRange(1), hidden=True)
@click.option("--demo", "with_demo", is_flag=True, help="Load the demo data into the embedded database")
def serve(bind: str | None, workers: int | None, threads: int | None, with_demo: bool) -> None:
    """Run the API and the reaper until Ctrl-C. Without SRM_DATABASE_URL, run the embedded database too."""
    if threads is not None:
        click.echo("srm: --threads has no effect any more: workers have no threads", err=True)
    settings = config.load() if bind is None else config.load(bind=bind)
    logs.configure(settings.log_format)
    supervisor.serve(settings, workers=workers, with_demo=with_demo)


@click.command()
def reaper() -> None:
    """Run the reaper alone. Any number may run; one at a time works."""
    settings = config.load()
    logs.configure(settings.log_format)
    database = Database(
        settings.require_database_url(),
        application_name="srm-reaper",
        statement_timeout_seconds=STATEMENT_TIMEOUT_SECONDS,
    )
    work = Reaper(
        database,
        ended_retention_seconds=settings.ended_retention_seconds,
        history_retention_days=settings.history_retention_days,
    )
    lower_priority()
    run_forever(work, settings.reaper_interval_seconds)
