"""Measure keep-alive, setup and teardown beside an empty view and beside the bare SQL statement.

Service, database and load run on this machine, so absolute numbers say little about another machine. Ratios say more.
The service has the shipped settings, a reaper, and an embedded database with 100,000 live sessions. Each measurement of
the service comes with one of the empty view, in turn: a machine that gets slower meanwhile is slower for both.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
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

CLIENTS_AT_ONCE = 8
"""Clients of pgbench."""

RESULTS = Path("var/bench.json")
EMPTY_PORT = PORT + 1
NO_TELEMETRY_PORT = PORT + 2
LIVE_SESSIONS = 100_000
PLAYERS = 5_000
"""Sessions that get keep-alives, and accounts that set up sessions.

In production a token lives for hours and comes every few seconds, so each worker has it in its cache. After the warm-up
nearly every worker has all of these 5,000. `keep_alive_new_token` shows the cost of a token that is not cached.
"""
WARM_UP_SECONDS = 20
EMPTY_VIEW = (gunicorn_conf.CORES + 1, "--worker-class", "gthread", "--threads", "2")
"""Processes and options of gunicorn for the empty view: those of SRM 0.1."""

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
"""Leave each of these accounts with three sessions, on its other devices."""

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
    """Results of wrk over one or more runs of one kind of request."""

    requests: int = 0
    seconds: float = 0
    p50_ms: float = 0
    p99_ms: float = 0

    @property
    def rps(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    def add(self, run: dict[str, float]) -> None:
        """Add a run. The percentiles become the means over all runs, weighted by requests."""
        total = self.requests + int(run["requests"])
        for name in ("p50_ms", "p99_ms"):
            mean = (getattr(self, name) * self.requests + run[name] * run["requests"]) / total
            setattr(self, name, mean)
        self.requests = total
        self.seconds += run["seconds"]

    def summary(self) -> dict[str, float]:
        """Return the numbers for the report."""
        return {"rps": round(self.rps), "p50_ms": round(self.p50_ms, 2), "p99_ms": round(self.p99_ms, 2)}


@dataclass
class Bench:
    """The database, the folder for request files, and the length of each measurement."""

    url: str
    folder: Path
    seconds: int
    clients: int
    """Clients of pgbench."""

    def wrk(self, port: int, name: str, seconds: int) -> dict[str, float]:
        """Send the requests of a file to the port; return the numbers of wrk."""
        return result(wrk(port, self.folder / name, seconds), name)

    def query(self, sql: str) -> Any:
        """Return the first column of the first row."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(sql).fetchone()
        return row[0] if row else None

    def execute(self, sql: str) -> None:
        """Execute a statement and commit."""
        with psycopg.connect(self.url) as connection:
            connection.execute(sql)

    def pgbench(self, seconds: int) -> float:
        """Run the bare keep-alive statement with as many clients as the service has connections; return its rate."""
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
    """Yield one setup from each account of this kind."""
    body = json.dumps({"content": {"contentID": "film", "contentType": "COD"}})
    for number in range(1, count + 1):
        yield "POST", "/srm/v1/sessions", token(f"{kind}-{number}", "device-0"), body


@dataclass
class Comparison:
    """The service, the empty view and the service without telemetry, measured in turn."""

    bench: Bench
    loads: dict[str, Load] = field(default_factory=dict)
    empty: dict[str, Load] = field(default_factory=dict)
    no_telemetry: Load = field(default_factory=Load)
    statements: float = 0
    hot_share: float = 0

    def side_by_side(self, name: str, seconds: int) -> Load:
        """Measure the empty view, then the requests from the beginning of their file."""
        self.empty.setdefault(name, Load()).add(self.bench.wrk(EMPTY_PORT, "keep_alive", seconds))
        load = self.loads.setdefault(name, Load())
        load.add(self.bench.wrk(PORT, name, seconds))
        time.sleep(1)  # for requests in progress, and for counters of the server that come late
        return load

    def keep_alives(self) -> None:
        """Measure keep-alives, with and without telemetry, and the bare statement."""
        for port in (NO_TELEMETRY_PORT, PORT):
            self.bench.wrk(port, "keep_alive", WARM_UP_SECONDS)
        self.bench.query("SELECT pg_stat_reset_single_table_counters('srm.sessions'::regclass)")
        seconds = self.bench.seconds // ROUNDS
        for _ in range(ROUNDS):
            self.side_by_side("keep_alive", seconds)
            self.no_telemetry.add(self.bench.wrk(NO_TELEMETRY_PORT, "keep_alive", seconds))
            self.statements += self.bench.pgbench(seconds) / ROUNDS
        self.hot_share = self.bench.query(
            "SELECT n_tup_hot_upd::float / n_tup_upd FROM pg_stat_user_tables WHERE relid = 'srm.sessions'::regclass"
        )
        self.side_by_side("keep_alive_new_token", min(5, self.bench.seconds))  # the file has no more new tokens

    def denied_setups(self) -> None:
        """Measure setups at the limit. Exit when one of them is admitted."""
        before = self.bench.query(SESSIONS)
        self.bench.wrk(PORT, "setup_denied", WARM_UP_SECONDS)
        for _ in range(ROUNDS):
            self.side_by_side("setup_denied", self.bench.seconds // ROUNDS)
        if self.bench.query(SESSIONS) != before:
            raise SystemExit("bench: a setup beyond the limit was admitted")

    def setups(self) -> None:
        """Measure setups by max_sessions alone and by all rules. Exit when one of them is not admitted."""
        names = ("setup", "setup_all_rules")
        for name in names:
            self.bench.wrk(PORT, name, WARM_UP_SECONDS // 2)
        time.sleep(1)
        for _ in range(ROUNDS):
            for name in names:
                self.bench.execute(FORGET_SETUPS)
                self._admitted(name)

    def _admitted(self, name: str) -> None:
        requests = self.loads[name].requests if name in self.loads else 0
        sessions = self.bench.query(SESSIONS)
        answered = self.side_by_side(name, self.bench.seconds // ROUNDS).requests - requests
        admitted = self.bench.query(SESSIONS) - sessions
        if abs(admitted - answered) > CONNECTIONS:
            raise SystemExit(f"bench: {answered} setups answered, {admitted} admitted")

    def teardowns(self) -> None:
        """Measure teardowns."""
        self.side_by_side("teardown", min(10, self.bench.seconds))  # the file has no more sessions

    def report(self) -> dict[str, Any]:
        """Return all numbers and their ratios."""
        loads = self.loads
        report: dict[str, Any] = {"empty_view": self.empty["keep_alive"].summary()}
        for name, load in loads.items():
            report[name] = {**load.summary(), "ratio_to_empty_view": round(load.rps / self.empty[name].rps, 3)}
        report["setup_all_rules"]["cost_of_rules"] = round(loads["setup"].rps / loads["setup_all_rules"].rps, 3)
        keep_alive = report["keep_alive"]
        keep_alive["ratio_to_pgbench"] = round(loads["keep_alive"].rps / self.statements, 3)
        keep_alive["hot_share"] = round(self.hot_share, 4)
        keep_alive["cost_of_telemetry"] = round(self.no_telemetry.rps / loads["keep_alive"].rps, 3)
        report["keep_alive_no_telemetry"] = self.no_telemetry.summary()
        report["pgbench"] = {"rps": round(self.statements)}
        return report


def write_request_files(folder: Path) -> None:
    """Write a file of requests for each measurement."""
    write_requests(folder / "keep_alive", on_session("PUT", range(PLAYERS)))
    write_requests(folder / "keep_alive_new_token", on_session("PUT", range(PLAYERS, LIVE_SESSIONS // 2)))
    write_requests(folder / "teardown", on_session("DELETE", range(LIVE_SESSIONS // 2, LIVE_SESSIONS)))
    write_requests(folder / "setup", setups("new", PLAYERS))
    write_requests(folder / "setup_all_rules", setups("rules", PLAYERS))
    write_requests(folder / "setup_denied", setups("full", PLAYERS))


def measure(bench: Bench, workers: int) -> dict[str, Any]:
    """Run all measurements; return the content of bench.json without the result of `srm audit`."""
    write_request_files(bench.folder)
    comparison = Comparison(bench)
    with (
        gunicorn("wsgi:app", PORT, bench.url, workers),
        gunicorn("bench.empty:app", EMPTY_PORT, bench.url, *EMPTY_VIEW),
        gunicorn("bench.no_telemetry:app", NO_TELEMETRY_PORT, bench.url, workers),
        process([sys.executable, "-m", "srm.cli", "reaper"], SRM_DATABASE_URL=bench.url),
    ):
        comparison.keep_alives()
        comparison.denied_setups()
        comparison.setups()
        comparison.teardowns()
    return {
        **comparison.report(),
        "settings": settings(workers, live_sessions=LIVE_SESSIONS, seconds=bench.seconds),
    }


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    table = Table("", "requests/s", "p50 ms", "p99 ms", "of empty view", "of pgbench", title=f"{report['settings']}")
    for name, row in report.items():
        if isinstance(row, dict) and "rps" in row:
            keys = ("rps", "p50_ms", "p99_ms", "ratio_to_empty_view", "ratio_to_pgbench")
            table.add_row(name, *(f"{row[key]:,}" if key in row else "" for key in keys))
    Console().print(table)
    rules, telemetry = report["setup_all_rules"]["cost_of_rules"], report["keep_alive"]["cost_of_telemetry"]
    print(f"A setup with all rules costs {rules} times as much as one with max_sessions alone")
    print(f"Without telemetry the service answers {telemetry} times as many keep-alives")
    print(f"HOT share of the keep-alives: {report['keep_alive']['hot_share']:.2%}; audit: {report['audit']}")


@click.command()
@click.option("--seconds", type=click.IntRange(ROUNDS), default=12, show_default=True, help="Of each measurement")
@click.option("--workers", type=click.IntRange(1), default=gunicorn_conf.workers, help="Default: as shipped")
def main(seconds: int, workers: int) -> None:
    """Measure the service, print a table and write var/bench.json."""
    with prepared(SEED, f"{LIVE_SESSIONS:,} live sessions") as (url, folder):
        print(f"bench: measuring, {seconds} s each")
        report = measure(Bench(url, folder, seconds, CLIENTS_AT_ONCE), workers)
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
