"""Measure how fast the reaper ends 100,000 of a million sessions that lapse at once, and its effect on keep-alives.

The service and the reaper have the shipped settings and an embedded database. Only the retention of ended sessions is
shorter. Keep-alives come at a steady rate that leaves the machine idle most of the time. First they come alone, then
until all lapsed sessions are ended, then until they are in the history.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
from rich.console import Console
from rich.table import Table

from bench.service import (
    FOREVER_SECONDS,
    LOG,
    PORT,
    gunicorn,
    keep_alives,
    on_session,
    prepared,
    process,
    result,
    settings,
    write_requests,
)
from srm.serve import gunicorn_conf

RESULTS = Path("var/bench-reaper.json")
PLAYERS = 5_000
"""Sessions that get keep-alives, spread over the whole table."""
LAPSING_SHARE = 10
"""One session in this number lapses, all at one instant. The others have a timeout of an hour."""
WARM_UP_SECONDS = 10
PREPARATION_SECONDS = 45
"""Time from the seed to the measurement at rest: vacuum, warm-up, and allowance for a slower machine."""
RETENTION_SECONDS = 30
"""Retention of ended sessions. The default of five minutes would only add waiting."""
GIVE_UP_SECONDS = 300

MOST_SECONDS = 10
MOST_TIMES_P99 = 2

SESSIONS = f"""
INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds, max_sessions,
                          device_group, content_groups, address)
SELECT 'live-' || 1 + n / 4, lpad(to_hex(n), 32, '0')::uuid, 'device-' || n % 4, 'COD', 'film',
       CASE n % {LAPSING_SHARE} WHEN 0 THEN {{lapse_after}} ELSE {FOREVER_SECONDS} END,
       1000, 'tv', ARRAY['films'], '192.0.2.1'
FROM generate_series(0, {{count}} - 1) n
"""
"""One statement, so that all sessions start at one instant. It runs when the service runs already: during an outage no
session lapses."""

LAPSING = f"srm.sessions WHERE timeout_seconds < {FOREVER_SECONDS}"
SECONDS_LEFT = f"""
SELECT extract(epoch FROM last_keep_alive_at + make_interval(secs => timeout_seconds) - clock_timestamp())::float
FROM {LAPSING} LIMIT 1
"""
NOT_ENDED_RIGHTLY = f"""
SELECT count(*) FROM {LAPSING}
AND (end_reason = 'expired' AND ended_at = last_keep_alive_at + make_interval(secs => timeout_seconds)) IS NOT TRUE
"""
HOT = "SELECT n_tup_upd, n_tup_hot_upd, n_dead_tup FROM pg_stat_user_tables WHERE relid = 'srm.sessions'::regclass"


@dataclass
class Measured:
    """One measurement: the work of the reaper, and the latency of keep-alives meanwhile."""

    name: str
    sessions: int
    seconds: float
    keep_alives: int
    p50_ms: float
    p99_ms: float


@dataclass
class Bench:
    """A connection to the database, and the file of keep-alive requests."""

    connection: psycopg.Connection[tuple[Any, ...]]
    requests: Path

    def query(self, sql: str) -> Any:
        """Return the first column of the first row."""
        row = self.connection.execute(sql).fetchone()
        return row[0] if row else None

    def at_rest(self, seconds: int) -> Measured:
        """Measure keep-alives alone."""
        return measured("at rest", keep_alives(self.requests, seconds))

    def until(self, name: str, total: str, sessions: int) -> Measured:
        """Measure keep-alives until the counter `total` of the reaper is at `sessions`."""
        began_at = time.monotonic()
        load = keep_alives(self.requests, FOREVER_SECONDS)
        try:
            while self.query(f"SELECT {total} FROM srm.reaper_state") < sessions:
                if time.monotonic() - began_at > GIVE_UP_SECONDS:
                    sys.exit(f"bench: {name}: not done after {GIVE_UP_SECONDS} s; see {LOG}")
                time.sleep(0.05)
            seconds = time.monotonic() - began_at
        finally:
            load.send_signal(signal.SIGINT)
        return measured(name, load, sessions, seconds)


def measured(name: str, load: subprocess.Popen[str], sessions: int = 0, seconds: float = 0) -> Measured:
    """Wait for wrk; return its numbers with the numbers of the reaper."""
    run = result(load, name)
    p50, p99 = round(run["p50_ms"], 2), round(run["p99_ms"], 2)
    return Measured(name, sessions, round(seconds, 1), int(run["requests"]), p50, p99)


def measure(bench: Bench, url: str, count: int, rest: int) -> list[Measured]:
    """Run all measurements: at rest, while sessions end, while they move to the history."""
    lapse_after = PREPARATION_SECONDS + rest
    bench.connection.execute(SESSIONS.format(count=count, lapse_after=lapse_after))
    bench.connection.execute("VACUUM ANALYZE srm.sessions")
    lapsing = bench.query(f"SELECT count(*) FROM {LAPSING}")
    reaper = [sys.executable, "-m", "srm.cli", "reaper"]
    with process(reaper, SRM_DATABASE_URL=url, SRM_ENDED_RETENTION_SECONDS=str(RETENTION_SECONDS)):
        result(keep_alives(bench.requests, WARM_UP_SECONDS), "warm-up")
        print(f"bench: measuring at rest, {rest} s")
        found = [bench.at_rest(rest)]
        left = bench.query(SECONDS_LEFT)
        if left <= 0:
            sys.exit("bench: the sessions lapsed before the measurement; this machine is too slow for it")
        print(f"bench: {lapsing:,} of {count:,} sessions lapse in {left:.0f} s")
        time.sleep(left)
        found.append(bench.until("ending", "expired", lapsing))
        if wrong := bench.query(NOT_ENDED_RIGHTLY):
            sys.exit(f"bench: {wrong} sessions have not ended as of their lapse")
        found.append(bench.until("moving to the history", "archived", lapsing))
    return found


def targets_missed(found: list[Measured]) -> list[str]:
    """List the targets that were missed: time, latency of keep-alives."""
    rest, ending, moving = found
    missed = [f"{ending.seconds} s instead of {MOST_SECONDS}"] if ending.seconds > MOST_SECONDS else []
    missed += [
        f"{row.name}: p99 {row.p99_ms} ms instead of {MOST_TIMES_P99} times {rest.p99_ms} ms"
        for row in (ending, moving)
        if row.p99_ms > MOST_TIMES_P99 * rest.p99_ms
    ]
    return missed


def show(found: list[Measured], missed: list[str]) -> None:
    """Print the report as a table."""
    rest = found[0]
    table = Table("", "sessions", "s", "keep-alives", "p50 ms", "p99 ms", "of at rest")
    for row in found:
        about = (f"{row.sessions:,}", f"{row.seconds}") if row.sessions else ("", "")
        ratio = f"{row.p99_ms / rest.p99_ms:.2f}"
        table.add_row(row.name, *about, f"{row.keep_alives:,}", f"{row.p50_ms}", f"{row.p99_ms}", ratio)
    Console().print(table)
    print(f"The reaper: {', '.join(missed) or 'all targets are met'}")


@click.command()
@click.option(
    "--sessions", "count", type=click.IntRange(PLAYERS), default=1_000_000, show_default=True, help="Live sessions"
)
@click.option("--rest", type=click.IntRange(1), default=60, show_default=True, help="Seconds of keep-alives alone")
def main(count: int, rest: int) -> None:
    """Measure the reaper, print a table and write var/bench-reaper.json; exit with 1 when a target is missed."""
    with (
        prepared("", f"{count:,} live sessions") as (url, folder),
        gunicorn("wsgi:app", PORT, url, gunicorn_conf.workers),
        psycopg.connect(url, autocommit=True) as connection,
    ):
        bench = Bench(connection, folder / "requests")
        # The first session of each part of the table does not lapse.
        write_requests(bench.requests, on_session("PUT", range(1, count, count // PLAYERS)))
        found = measure(bench, url, count, rest)
        updates, hot, dead = connection.execute(HOT).fetchone() or (0, 0, 0)
    missed = targets_missed(found)
    report = {
        "targets_missed": missed,
        "measured": [asdict(row) for row in found],
        "sessions_table": {"updates": updates, "hot_updates": hot, "dead_rows": dead},
        "settings": settings(live_sessions=count),
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    show(found, missed)
    print(f"{updates:,} updates of sessions, {hot:,} of them heap-only; {dead:,} dead rows are left to autovacuum")
    print(f"Written to {RESULTS}")
    if missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
