"""Measures keep-alive, setup and teardown, side by side with an empty view and with the bare statement.

All on this machine, load included, so the absolute numbers say little about another one; the ratios do.
The service runs with the shipped gunicorn settings and a reaper beside it, on an embedded database of its
own with 100,000 live sessions. The empty view is measured beside each of the others, in turn, so that a machine
that gets slower meanwhile is slower for both.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
from rich.console import Console
from rich.table import Table

from bench.service import (
    CONNECTIONS,
    PORT,
    Request,
    gunicorn,
    on_session,
    prepared,
    process,
    result,
    settings,
    token,
    write_requests,
    wrk,
)
from srm.db.embedded import programs
from srm.serve import gunicorn_conf

RESULTS = Path("var/bench.json")
LIVE_SESSIONS = 100_000
PLAYERS = 5_000
"""Sessions that keep-alives go to, and accounts that setups come from. A token lives for hours and is seen every few
seconds, so it is known to the workers; 5,000 are known to nearly all of them after the warm-up. `keep_alive_new_token`
is what an unknown one costs."""
WARM_UP_SECONDS = 20
ROUNDS = 3

SEED = f"""
INSERT INTO srm.account_profiles (profile_id, max_sessions, timeout_seconds)
VALUES ('bench', 1000, 3600), ('bench-full', 3, 3600);
INSERT INTO srm.account_profiles (profile_id, max_sessions, max_sessions_per_content, max_ip_addresses,
                                  max_sessions_per_ip, timeout_seconds, max_session_seconds, on_limit, same_device)
VALUES ('bench-rules', 1000, 1000, 1000, 1000, 3600, 86400, 'evict_oldest', 'replace');
INSERT INTO srm.profile_device_groups (profile_id, device_group, max_sessions, counts)
VALUES ('bench-rules', 'tv', 1000, true), ('bench-rules', 'mobile', 1000, false);
INSERT INTO srm.profile_content_groups (profile_id, content_group, max_sessions)
VALUES ('bench-rules', 'films', 1000), ('bench-rules', 'sports', 1000);
INSERT INTO srm.contents (content_id) VALUES ('film');
INSERT INTO srm.content_groups (content_id, content_group) VALUES ('film', 'films');
INSERT INTO srm.products (product_id, name) VALUES ('bench', 'bench');
INSERT INTO srm.product_contents (product_id, content_type, content_id) VALUES ('bench', 'COD', 'film');
INSERT INTO srm.accounts (account_id, profile_id)
SELECT 'live-' || n, 'bench' FROM generate_series(1, {LIVE_SESSIONS // 4}) n
UNION ALL SELECT 'new-' || n, 'bench' FROM generate_series(1, {PLAYERS}) n
UNION ALL SELECT 'rules-' || n, 'bench-rules' FROM generate_series(1, {PLAYERS}) n
UNION ALL SELECT 'full-' || n, 'bench-full' FROM generate_series(1, {PLAYERS}) n;
INSERT INTO srm.devices (account_id, device_id, device_group, name)
SELECT account_id, 'device-' || n, 'tv', 'device ' || n FROM srm.accounts, generate_series(0, 3) n;
INSERT INTO srm.entitlements (account_id, product_id) SELECT account_id, 'bench' FROM srm.accounts;
INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds, max_sessions)
SELECT 'live-' || 1 + n / 4, lpad(to_hex(n), 32, '0')::uuid, 'device-' || n % 4, 'COD', 'film', 3600, 1000
FROM generate_series(0, {LIVE_SESSIONS - 1}) n;
INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds, max_sessions)
SELECT 'full-' || n, gen_random_uuid(), 'device-' || s, 'COD', 'film', 3600, 3
FROM generate_series(1, {PLAYERS}) n, generate_series(1, 3) s;
INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds, max_sessions,
                          device_group, content_groups, address)
SELECT account || n, gen_random_uuid(), 'device-' || s, 'COD', 'film', 3600, 1000, 'tv', ARRAY['films'], '192.0.2.1'
FROM unnest(ARRAY['new-', 'rules-']) account, generate_series(1, {PLAYERS}) n, generate_series(1, 3) s;
"""

FORGET_SETUPS = """
DELETE FROM srm.sessions WHERE device_id = 'device-0' AND (account_id LIKE 'new-%' OR account_id LIKE 'rules-%')
"""
"""Each of these accounts has three sessions again, on its other devices."""

SESSIONS = "SELECT count(*) FROM srm.sessions"

BARE_KEEP_ALIVE = f"""
\\set n random(0, {PLAYERS - 1})
UPDATE srm.sessions SET last_keep_alive_at = greatest(last_keep_alive_at, statement_timestamp())
WHERE account_id = 'live-' || (1 + :n::int / 4) AND session_id = lpad(to_hex(:n::int), 32, '0')::uuid
  AND device_id = 'device-' || (:n::int % 4) AND ended_at IS NULL
  AND (statement_timestamp() - greatest(last_keep_alive_at,
         (SELECT CASE WHEN seen_at < statement_timestamp() - interval '5 s' THEN statement_timestamp()
                      ELSE available_since END FROM srm.availability))
       >= make_interval(secs => timeout_seconds)
       OR statement_timestamp() - started_at >= make_interval(secs => max_session_seconds)) IS NOT TRUE;
"""


@dataclass
class Load:
    """What wrk saw of one or more runs of the same requests."""

    requests: int = 0
    seconds: float = 0
    p50_ms: float = 0
    p99_ms: float = 0

    @property
    def rps(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    def add(self, run: dict[str, float]) -> None:
        """Count one more run; the percentiles are the means of those of the runs, weighted by requests."""
        total = self.requests + int(run["requests"])
        for name in ("p50_ms", "p99_ms"):
            mean = (getattr(self, name) * self.requests + run[name] * run["requests"]) / total
            setattr(self, name, mean)
        self.requests = total
        self.seconds += run["seconds"]

    def summary(self) -> dict[str, float]:
        """The numbers of the report."""
        return {"rps": round(self.rps), "p50_ms": round(self.p50_ms, 2), "p99_ms": round(self.p99_ms, 2)}


@dataclass
class Bench:
    """The parts of one run: the database, its connection, the ports and the folder for request files."""

    url: str
    folder: Path
    seconds: int
    clients: int
    """Requests that the service works on at once."""

    def wrk(self, port: int, name: str, seconds: int) -> dict[str, float]:
        """Drive the requests of a file against the port; all but a stray answer must be a 2xx."""
        return result(wrk(port, self.folder / name, seconds), name)

    def query(self, sql: str) -> Any:
        """The first column of the first row."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(sql).fetchone()
        return row[0] if row else None

    def execute(self, sql: str) -> None:
        """Change something, for good."""
        with psycopg.connect(self.url) as connection:
            connection.execute(sql)

    def pgbench(self, seconds: int) -> float:
        """The bare keep-alive statement, by as many clients as the service has connections; per second."""
        script = self.folder / "keep-alive.sql"
        script.write_text(BARE_KEEP_ALIVE)
        output = subprocess.run(
            [programs() / "pgbench", "--no-vacuum", "--protocol=prepared", f"--client={self.clients}", "--jobs=2",
             f"--time={seconds}", f"--file={script}", self.url],
            env={**os.environ, "PGOPTIONS": "-c synchronous_commit=off"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        line = next(line for line in output.stdout.splitlines() if line.startswith("tps"))
        return float(line.split()[2])


def setups(kind: str, count: int) -> Iterator[Request]:
    """Setups, one after the other from each account of the kind."""
    body = json.dumps({"content": {"contentID": "film", "contentType": "COD"}})
    for number in range(1, count + 1):
        yield "POST", "/srm/v1/sessions", token(f"{kind}-{number}", "device-0"), body


def measure(bench: Bench, workers: int, threads: int) -> dict[str, Any]:
    """All the runs; the content of bench.json but for the audit."""
    write_requests(bench.folder / "keep_alive", on_session("PUT", range(PLAYERS)))
    write_requests(bench.folder / "keep_alive_new_token", on_session("PUT", range(PLAYERS, LIVE_SESSIONS // 2)))
    write_requests(bench.folder / "teardown", on_session("DELETE", range(LIVE_SESSIONS // 2, LIVE_SESSIONS)))
    write_requests(bench.folder / "setup", setups("new", PLAYERS))
    write_requests(bench.folder / "setup_all_rules", setups("rules", PLAYERS))
    write_requests(bench.folder / "setup_refused", setups("full", PLAYERS))

    loads: dict[str, Load] = {}
    empty: dict[str, Load] = {}
    port, empty_port, unwatched_port = PORT, PORT + 1, PORT + 2
    statements = 0.0
    unwatched = Load()

    def side_by_side(name: str, seconds: int) -> Load:
        """Measure the empty view, and then the requests from the beginning of their file."""
        empty.setdefault(name, Load()).add(bench.wrk(empty_port, "keep_alive", seconds))
        load = loads.setdefault(name, Load())
        load.add(bench.wrk(port, name, seconds))
        time.sleep(1)  # what was under way when it stopped; and the counters of the server lag behind
        return load

    def admitted_by(name: str) -> None:
        """Measure setups, all of which must be admitted."""
        before = loads[name].requests if name in loads else 0, bench.query(SESSIONS)
        answered = side_by_side(name, bench.seconds // ROUNDS).requests - before[0]
        admitted = bench.query(SESSIONS) - before[1]
        if abs(admitted - answered) > CONNECTIONS:
            raise SystemExit(f"bench: {answered} setups answered, {admitted} admitted")

    with (
        gunicorn("wsgi:app", port, bench.url, workers, threads),
        gunicorn("bench.empty:app", empty_port, bench.url, workers, threads),
        gunicorn("bench.unwatched:app", unwatched_port, bench.url, workers, threads),
        process([sys.executable, "-m", "srm.cli", "reaper"], SRM_DATABASE_URL=bench.url),
    ):
        for warmed_up in (unwatched_port, port):
            bench.wrk(warmed_up, "keep_alive", WARM_UP_SECONDS)
        bench.query("SELECT pg_stat_reset_single_table_counters('srm.sessions'::regclass)")
        for _ in range(ROUNDS):
            side_by_side("keep_alive", bench.seconds // ROUNDS)
            unwatched.add(bench.wrk(unwatched_port, "keep_alive", bench.seconds // ROUNDS))
            statements += bench.pgbench(bench.seconds // ROUNDS) / ROUNDS
        hot_share = bench.query(
            "SELECT n_tup_hot_upd::float / n_tup_upd FROM pg_stat_user_tables WHERE relid = 'srm.sessions'::regclass"
        )
        side_by_side("keep_alive_new_token", min(5, bench.seconds))  # there are no more
        before = bench.query(SESSIONS)
        bench.wrk(port, "setup_refused", WARM_UP_SECONDS)
        for _ in range(ROUNDS):
            side_by_side("setup_refused", bench.seconds // ROUNDS)
        if bench.query(SESSIONS) != before:
            raise SystemExit("bench: a setup beyond the limit was admitted")
        for name in ("setup", "setup_all_rules"):
            bench.wrk(port, name, WARM_UP_SECONDS // 2)
        time.sleep(1)
        for _ in range(ROUNDS):
            for name in ("setup", "setup_all_rules"):
                bench.execute(FORGET_SETUPS)
                admitted_by(name)
        side_by_side("teardown", min(10, bench.seconds))  # nor of these
    report: dict[str, Any] = {"empty_view": empty["keep_alive"].summary()}
    for name, load in loads.items():
        report[name] = {**load.summary(), "ratio_to_empty_view": round(load.rps / empty[name].rps, 3)}
    report["setup_all_rules"]["cost_of_rules"] = round(loads["setup"].rps / loads["setup_all_rules"].rps, 3)
    report["keep_alive"]["ratio_to_pgbench"] = round(loads["keep_alive"].rps / statements, 3)
    report["keep_alive"]["hot_share"] = round(hot_share, 4)
    report["keep_alive"]["cost_of_watching"] = round(unwatched.rps / loads["keep_alive"].rps, 3)
    report["keep_alive_unwatched"] = unwatched.summary()
    report["pgbench"] = {"rps": round(statements)}
    report["settings"] = settings(workers, threads, live_sessions=LIVE_SESSIONS, seconds=bench.seconds)
    return report


def show(report: dict[str, Any]) -> None:
    """The report as a table."""
    table = Table("", "requests/s", "p50 ms", "p99 ms", "of empty view", "of pgbench", title=f"{report['settings']}")
    for name, row in report.items():
        if isinstance(row, dict) and "rps" in row:
            keys = ("rps", "p50_ms", "p99_ms", "ratio_to_empty_view", "ratio_to_pgbench")
            table.add_row(name, *(f"{row[key]:,}" if key in row else "" for key in keys))
    Console().print(table)
    print(f"A setup by all rules costs {report['setup_all_rules']['cost_of_rules']} times one by max_sessions alone")
    print(
        f"Without metrics and access log there are {report['keep_alive']['cost_of_watching']} times as many keep-alives"
    )
    print(f"HOT share of the keep-alives: {report['keep_alive']['hot_share']:.2%}; audit: {report['audit']}")


@click.command()
@click.option("--seconds", type=click.IntRange(ROUNDS), default=12, show_default=True, help="Of each measurement")
@click.option("--workers", type=click.IntRange(1), default=gunicorn_conf.workers, help="Other than shipped, to compare")
@click.option("--threads", type=click.IntRange(1), default=gunicorn_conf.threads, help="Other than shipped, to compare")
def main(seconds: int, workers: int, threads: int) -> None:
    """Measure the service, print a table and write var/bench.json."""
    with prepared(SEED, f"{LIVE_SESSIONS:,} live sessions") as (url, folder):
        print(f"bench: measuring, {seconds} s each")
        report = measure(Bench(url, folder, seconds, workers * threads), workers, threads)
        audit = subprocess.run(
            [sys.executable, "-m", "srm.cli", "audit"],
            env={**os.environ, "SRM_DATABASE_URL": url},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        report["audit"] = audit.stdout.split(":")[0] if audit.returncode == 0 else audit.stdout + audit.stderr
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    print(f"Written to {RESULTS}")
    if audit.returncode != 0:
        sys.exit(1)


if __name__ == "__main__":
    main()
