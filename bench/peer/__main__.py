"""Measure SRM beside FreeRADIUS on one PostgreSQL, in interleaved rounds, and judge the marks.

Both use a PostgreSQL of Debian with its default settings. Only one of them runs at a time. Each load begins after a
vacuum and a checkpoint.
"""

from pathlib import Path

import click
import psycopg

from bench.loads import GTHREAD, LIVE_SESSIONS, RULES_FILE, SETUP_FILE, Loads, limits_hold, seed
from bench.marks import (
    ALL_RULES,
    EMPTY_THREADS,
    INTERIM,
    KEEP_ALIVE,
    PAIR,
    PEER,
    REFUSED,
    SETUP,
    STOP,
    SYNC,
    TEARDOWN,
)
from bench.peer import freeradius
from bench.peer.freeradius import IN_FLIGHT, USERS, FreeRadius
from bench.peer.postgresql import ADMIN_URL, server
from bench.rounds import Rounds, conclude
from bench.service import PORT, fill, scratch, settings
from srm.serve import gunicorn_conf

RESULTS = Path("var/bench-peer.json")
ROUND_SECONDS = 50
"""Seconds of a round beside its loads: starts, warm-ups, rows."""
LOADS = 12
"""Loads of a round."""


def srm(loads: Loads) -> None:
    """Measure one round of SRM and of the empty view."""
    with (
        loads.reaper(),
        loads.service("bench.empty:app", PORT + 1, GTHREAD) as threads,
        loads.service("wsgi:app", PORT) as service,
    ):
        loads.keep_alives(EMPTY_THREADS, threads)
        loads.keep_alives(KEEP_ALIVE, service)
        loads.setups(SETUP, service, SETUP_FILE)
        loads.setups(ALL_RULES, service, RULES_FILE)
        loads.refused_setups(REFUSED, service)
        loads.new_tokens(TEARDOWN, service, "DELETE")


def peer(radius: FreeRadius, rounds: Rounds, seconds: int) -> None:
    """Measure one round of FreeRADIUS with synchronous_commit on, and one with off."""
    for sync in SYNC:
        with radius.running(sync):
            radius.load("interim", 1)  # warm-up
            rounds.add(INTERIM[sync], radius.load("interim", seconds))
            rounds.add(PAIR[sync], radius.load("pair", seconds))
            rounds.add(STOP[sync], radius.load("stop", seconds, sessions_each=3))


@click.command()
@click.option("--rounds", "count", type=click.IntRange(1), default=3, show_default=True, help="Of all loads")
@click.option("--seconds", type=click.IntRange(1), default=5, show_default=True, help="Of each load")
def main(count: int, seconds: int) -> None:
    """Measure both, print a table, write var/bench-peer.json; exit with 1 when a mark is missed."""
    freeradius.check()
    minutes = count * (LOADS * (seconds + 1.5) + ROUND_SECONDS) / 60
    print(f"bench-peer: {count} rounds, {seconds} s each load, about {minutes:.0f} minutes in all")
    rounds = Rounds(count)
    with scratch() as folder, server(folder / "postgresql"):
        with psycopg.connect(f"{ADMIN_URL}/postgres", autocommit=True) as admin:
            admin.execute("CREATE DATABASE srm")
        url = f"{ADMIN_URL}/srm"
        fill(url, seed(LIVE_SESSIONS), f"{LIVE_SESSIONS:,} live sessions")
        loads = Loads(url, folder / "requests", rounds, seconds)
        radius = FreeRadius.prepared(folder / "freeradius")
        for number in range(1, count + 1):
            print(f"bench-peer: round {number}", flush=True)
            srm(loads)
            peer(radius, rounds, seconds)
        limits_hold(url)
    about = settings(gunicorn_conf.workers, live_sessions=LIVE_SESSIONS, rounds=count, seconds=seconds)
    conclude(RESULTS, rounds, PEER, {**about, "radius_users": USERS, "radius_in_flight": IN_FLIGHT})


if __name__ == "__main__":
    main()
