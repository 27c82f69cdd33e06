"""`srm serve` and `srm reaper`: the processes of the service."""

import click

from srm import config, logs
from srm.cli.common import stand_back
from srm.db.database import Database
from srm.reaper.runner import STATEMENT_TIMEOUT_SECONDS, Reaper, run_forever
from srm.serve import supervisor as serving


@click.command()
@click.option("--bind", help="Address to listen on; default SRM_BIND")
@click.option("--workers", type=click.IntRange(1), help="Worker processes; default one for each core")
@click.option("--threads", type=click.IntRange(1), help="Threads of each worker")
@click.option("--demo", "with_demo", is_flag=True, help="Load the demo data into the embedded database")
def serve(bind: str | None, workers: int | None, threads: int | None, with_demo: bool) -> None:
    """Run gunicorn and the reaper, and the embedded database when no other is configured."""
    settings = config.load() if bind is None else config.load(bind=bind)
    logs.configure(settings.log_format)
    serving.serve(settings, workers=workers, threads=threads, with_demo=with_demo)


@click.command()
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
    stand_back()
    run_forever(worker, settings.reaper_interval_seconds)
