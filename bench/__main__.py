"""Measure keep-alive, setup and teardown beside an empty view, in interleaved rounds, and judge the marks.

Service, database and load run on this machine, so absolute numbers say little about another machine. Ratios say more.
The service has the shipped settings, a reaper, and an embedded database. The loads of a part follow each other in each
round: a machine that gets slower meanwhile is slower for all of them.
"""

import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click

from bench.loads import (
    FORGET_UPDATES,
    GTHREAD,
    HOT_SHARE,
    LIVE_SESSIONS,
    RULES_FILE,
    SETUP_FILE,
    Loads,
    limits_hold,
    seed,
)
from bench.marks import (
    ALL_RULES,
    AMONG,
    AT_CONNECTIONS,
    BARE_SHIPPED,
    CONNECTIONS,
    EMPTY_SHIPPED,
    EMPTY_THREADS,
    FEW,
    HALF_KEEP_ALIVE,
    HALF_SETUP,
    HOT_DENSE,
    HOT_MANY,
    KEEP_ALIVE,
    MANY,
    NEW_TOKEN,
    NO_TELEMETRY,
    REFUSED,
    SERVICE,
    SETUP,
    TEARDOWN,
    TELEMETRY,
)
from bench.rounds import Rounds, conclude
from bench.service import PORT, Service, fill, prepared, settings
from srm.serve import gunicorn_conf

RESULTS = Path("var/bench.json")
PACED_CONNECTIONS = 256
"""Connections of a load at a steady rate: so many that a slow answer delays few of the next requests."""


def rates(loads: Loads, srm: Service) -> None:
    """Measure the highest rate of each kind of request, and of baselines that do nothing."""
    with (
        loads.service("bench.empty:app", PORT + 1, GTHREAD) as threads,
        loads.service("bench.empty:app", PORT + 2) as shipped,
        loads.service("bench.empty:bare", PORT + 3) as bare,
    ):
        for _ in range(loads.rounds.count):
            loads.keep_alives(BARE_SHIPPED, bare)
            loads.keep_alives(EMPTY_SHIPPED, shipped)
            loads.keep_alives(EMPTY_THREADS, threads)
            loads.keep_alives(KEEP_ALIVE, srm)
            loads.new_tokens(NEW_TOKEN, srm, "PUT")
            loads.setups(SETUP, srm, SETUP_FILE)
            loads.setups(ALL_RULES, srm, RULES_FILE)
            loads.refused_setups(REFUSED, srm)
            loads.new_tokens(TEARDOWN, srm, "DELETE")


def connections(loads: Loads, srm: Service) -> None:
    """Measure keep-alives over few and over many connections."""
    loads.query(FORGET_UPDATES)
    for _ in range(loads.rounds.count):
        for count in CONNECTIONS:
            loads.keep_alives(AT_CONNECTIONS[count], srm, count)
    loads.rounds.add(HOT_DENSE, {"hot_share": loads.query(HOT_SHARE)})


def latency(loads: Loads, srm: Service) -> None:
    """Measure keep-alives and setups at half of their highest rates. Needs the part `rates` before it."""
    for _ in range(loads.rounds.count):
        for load, half, file in ((KEEP_ALIVE, HALF_KEEP_ALIVE, "keep-alive"), (SETUP, HALF_SETUP, SETUP_FILE)):
            loads.paced(half, srm, file, loads.rounds.median(load) / 2, PACED_CONNECTIONS)


def telemetry(loads: Loads, srm: Service) -> None:
    """Measure the processor time of keep-alives with and without metrics and access log, each first in turn."""
    with loads.service("bench.no_telemetry:app", PORT + 1) as without:
        for number in range(loads.rounds.count):
            pair = [(TELEMETRY, srm), (NO_TELEMETRY, without)]
            for load, service in pair if number % 2 else reversed(pair):
                loads.keep_alives(load, service)


def sessions(loads: Loads, _srm: Service) -> None:
    """Measure keep-alives and setups among few and among many live sessions, in databases of their own."""
    few, many = (_with_sessions(loads, count) for count in (FEW, MANY))
    with (
        few.reaper(),
        many.reaper(),
        few.service("wsgi:app", PORT + 1) as few_service,
        many.service("wsgi:app", PORT + 2) as many_service,
    ):
        pairs = ((few, few_service), (many, many_service))
        many.query(FORGET_UPDATES)
        for _ in range(loads.rounds.count):
            for each, service in pairs:
                each.keep_alives(AMONG[KEEP_ALIVE, each.live_sessions], service)
        loads.rounds.add(HOT_MANY, {"hot_share": many.query(HOT_SHARE)})
        for _ in range(loads.rounds.count):
            for each, service in pairs:
                each.setups(AMONG[SETUP, each.live_sessions], service, SETUP_FILE)


def _with_sessions(loads: Loads, count: int) -> Loads:
    name = f"srm_{count}"
    loads.execute(f"CREATE DATABASE {name}")
    url = loads.url.replace("/srm?", f"/{name}?")
    fill(url, seed(count), f"{count:,} live sessions")
    return replace(loads, url=url, folder=loads.folder / name, live_sessions=count)


@dataclass(frozen=True)
class Part:
    """A part of the run. `loads`: in each round. `seconds`: beside its loads, for rows and warm-up."""

    measure: Callable[[Loads, Service], None]
    loads: int
    seconds: int


PARTS = {
    "rates": Part(rates, 9, 40),
    "connections": Part(connections, len(CONNECTIONS), 0),
    "latency": Part(latency, 2, 0),
    "telemetry": Part(telemetry, 2, 10),
    "sessions": Part(sessions, 4, 90),
}
PREPARATION_SECONDS = 20
PAUSE_SECONDS = 1.5
"""Between two loads."""


@click.command()
@click.option("--rounds", "count", type=click.IntRange(1), default=3, show_default=True, help="Of all loads of a part")
@click.option("--seconds", type=click.IntRange(1), default=5, show_default=True, help="Of each load")
@click.option("--workers", type=click.IntRange(1), default=gunicorn_conf.workers, help="Default: as shipped")
@click.option("--part", "names", type=click.Choice(list(PARTS)), multiple=True, help="Again for more; default: all")
def main(count: int, seconds: int, workers: int, names: tuple[str, ...]) -> None:
    """Measure the service, print a table, write var/bench.json; exit with 1 when a mark is missed."""
    chosen = [name for name in PARTS if not names or name in names]
    if "latency" in chosen and "rates" not in chosen:
        raise click.UsageError("--part latency needs --part rates: it halves the rates that were found there")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection of wrk is an open file
    each = count * (seconds + PAUSE_SECONDS)
    minutes = (PREPARATION_SECONDS + sum(PARTS[name].loads * each + PARTS[name].seconds for name in chosen)) / 60
    print(f"bench: {', '.join(chosen)}: {count} rounds, {seconds} s each load, about {minutes:.0f} minutes in all")
    rounds = Rounds(count)
    with prepared(seed(LIVE_SESSIONS), f"{LIVE_SESSIONS:,} live sessions") as (url, folder):
        loads = Loads(url, folder / "requests", rounds, seconds, workers)
        with loads.reaper(), loads.service("wsgi:app", PORT) as srm:
            for name in chosen:
                print(f"bench: measuring {name}", flush=True)
                PARTS[name].measure(loads, srm)
        limits_hold(url)
    marks = [mark for name in chosen for mark in SERVICE[name]]
    conclude(RESULTS, rounds, marks, settings(workers, live_sessions=LIVE_SESSIONS, rounds=count, seconds=seconds))


if __name__ == "__main__":
    main()
