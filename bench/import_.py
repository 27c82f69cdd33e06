"""Measure `srm import` of a million accounts with devices and entitlements, and its effect on keep-alives.

The service has the shipped settings, a reaper and an embedded database. Keep-alives come at a steady rate that leaves
the machine idle most of the time. First they come alone, then while accounts, devices and entitlements are imported,
one file after the other.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table

from bench.service import (
    FOREVER_SECONDS,
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

RESULTS = Path("var/bench-import.json")
LIVE_SESSIONS = 5_000
PRODUCTS = ("basic", "sports", "films")

MOST_SECONDS = 300
MOST_MIB = 200
MOST_TIMES_P99 = 3

SEED = f"""
INSERT INTO srm.account_profiles (profile_id, max_sessions, timeout_seconds) VALUES ('bench', 1000, 3600);
INSERT INTO srm.contents (content_id) VALUES ('film');
INSERT INTO srm.products (product_id, name) SELECT n, n FROM unnest(ARRAY{list(PRODUCTS)}) n;
INSERT INTO srm.accounts (account_id, profile_id)
SELECT 'live-' || n, 'bench' FROM generate_series(1, {LIVE_SESSIONS // 4}) n;
INSERT INTO srm.devices (account_id, device_id, device_group, name)
SELECT account_id, 'device-' || n, 'tv', 'device ' || n FROM srm.accounts, generate_series(0, 3) n;
INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds, max_sessions)
SELECT 'live-' || 1 + n / 4, lpad(to_hex(n), 32, '0')::uuid, 'device-' || n % 4, 'COD', 'film', 3600, 1000
FROM generate_series(0, {LIVE_SESSIONS - 1}) n;
"""


@dataclass
class Measured:
    """One measurement: the rows of an import, and the latency of keep-alives meanwhile."""

    name: str
    rows: int
    seconds: float
    mib: float
    keep_alives: int
    p50_ms: float
    p99_ms: float


def accounts(count: int) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the accounts file."""
    yield "accountId", "profileId", "enabled", "maxSessions"
    for number in range(count):
        yield f"customer-{number}", "bench", "true", "2" if number % 10 == 0 else ""


def devices(count: int) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the devices file, two for each account."""
    yield "accountId", "deviceId", "deviceGroup", "name", "enabled"
    for number in range(count):
        yield f"customer-{number}", f"stb-{number}", "tv", "Living-room TV", "true"
        yield f"customer-{number}", f"app-{number}", "mobile", "Phone, Anna's", "true"


def entitlements(count: int) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the entitlements file, three for each account."""
    yield "accountId", "productId", "validFrom", "validUntil"
    for number in range(count):
        for product in PRODUCTS:
            yield f"customer-{number}", product, "2026-01-01T00:00:00Z", "" if number % 2 else "2030-01-01T00:00:00Z"


def write_rows(file: Path, rows: Iterable[tuple[str, ...]]) -> None:
    """Write a CSV file to import."""
    with file.open("w", newline="") as text:
        csv.writer(text).writerows(rows)


def measured(name: str, running: subprocess.Popen[str], rows: int = 0, seconds: float = 0, mib: float = 0) -> Measured:
    """Wait for wrk; return its numbers with the numbers of the import."""
    run = result(running, name)
    p50, p99 = round(run["p50_ms"], 2), round(run["p99_ms"], 2)
    return Measured(name, rows, round(seconds, 1), round(mib, 1), int(run["requests"]), p50, p99)


def import_(url: str, file: Path, requests: Path, rows: int) -> Measured:
    """Import a file while keep-alives come; measure both."""
    load = keep_alives(requests, FOREVER_SECONDS)
    started_at = time.monotonic()
    try:
        with psutil.Popen(
            [sys.executable, "-m", "srm.cli", "import", file.stem, str(file)],
            env={**os.environ, "SRM_DATABASE_URL": url},
        ) as process:
            most = 0
            while process.poll() is None:
                most = max(most, memory(process))
                time.sleep(0.2)
        seconds = time.monotonic() - started_at
    finally:
        load.send_signal(signal.SIGINT)
    if process.returncode != 0:
        sys.exit(f"bench: the import of {file.stem} failed")
    return measured(file.stem, load, rows, seconds, most / 2**20)


def memory(process: psutil.Process) -> int:
    """Return the memory of the process in bytes; 0 when it has ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def show(found: list[Measured], missed: list[str]) -> None:
    """Print the report as a table."""
    rest = found[0]
    table = Table("", "rows", "s", "rows/s", "MiB", "keep-alives", "p50 ms", "p99 ms", "of at rest")
    for row in found:
        rate = f"{row.rows / row.seconds:,.0f}" if row.rows else ""
        ratio = f"{row.p99_ms / rest.p99_ms:.2f}"
        about = (f"{row.rows:,}", f"{row.seconds}", rate, f"{row.mib}") if row.rows else ("", "", "", "")
        table.add_row(row.name, *about, f"{row.keep_alives:,}", f"{row.p50_ms}", f"{row.p99_ms}", ratio)
    Console().print(table)
    print(f"All imports: {sum(row.seconds for row in found):.0f} s; {', '.join(missed) or 'all targets are met'}")


@click.command()
@click.option(
    "--accounts", "count", type=click.IntRange(1), default=1_000_000, show_default=True, help="How many accounts"
)
@click.option("--rest", type=click.IntRange(1), default=60, show_default=True, help="Seconds of keep-alives alone")
def main(count: int, rest: int) -> None:
    """Measure an import, print a table and write var/bench-import.json; exit with 1 when a target is missed."""
    with prepared(SEED, f"{count:,} accounts") as (url, folder):
        files = {folder / f"{rows.__name__}.csv": rows for rows in (accounts, devices, entitlements)}
        for file, rows in files.items():
            write_rows(file, rows(count))
        requests = folder / "requests"
        write_requests(requests, on_session("PUT", range(LIVE_SESSIONS)))
        with (
            gunicorn("wsgi:app", PORT, url, gunicorn_conf.workers),
            process([sys.executable, "-m", "srm.cli", "reaper"], SRM_DATABASE_URL=url),
        ):
            result(keep_alives(requests, 10), "warm-up")
            print(f"bench: measuring at rest, {rest} s")
            found = [measured("at rest", keep_alives(requests, rest))]
            for times, file in enumerate(files, start=1):
                found.append(import_(url, file, requests, times * count))
    missed = targets_missed(found)
    report = {
        "targets_missed": missed,
        "measured": [asdict(row) for row in found],
        "settings": settings(accounts=count, live_sessions=LIVE_SESSIONS),
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    show(found, missed)
    print(f"Written to {RESULTS}")
    if missed:
        sys.exit(1)


def targets_missed(found: list[Measured]) -> list[str]:
    """List the targets that were missed: time, memory, latency of keep-alives."""
    rest, *imports = found
    seconds = sum(row.seconds for row in imports)
    missed = [f"{seconds:.0f} s instead of {MOST_SECONDS}"] if seconds > MOST_SECONDS else []
    for row in imports:
        if row.mib > MOST_MIB:
            missed.append(f"{row.name}: {row.mib} MiB instead of {MOST_MIB}")
        if row.p99_ms > MOST_TIMES_P99 * rest.p99_ms:
            missed.append(f"{row.name}: p99 {row.p99_ms} ms instead of {MOST_TIMES_P99} times {rest.p99_ms} ms")
    return missed


if __name__ == "__main__":
    main()
