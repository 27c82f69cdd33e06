"""The rows that the loads need, and the loads on the service: keep-alives, setups, refused setups and teardowns."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from bench.rounds import Rounds, Run
from bench.service import (
    CONNECTIONS,
    Request,
    Service,
    gunicorn,
    on_session,
    process,
    result,
    token,
    write_requests,
    wrk,
)
from srm.serve import gunicorn_conf

LIVE_SESSIONS = 100_000
PLAYERS = 5_000
"""Sessions that get keep-alives, and accounts of each kind that set up sessions.

In production a token lives for hours and comes every few seconds, so each worker has it in its cache. After the warm-up
nearly every worker has all of these 5,000. Loads with new tokens show the cost of a token that is not cached.
"""
WARM_UP_SECONDS = 5
NEW_TOKENS_SECONDS = 5
"""Longest load with new tokens: a file has no more of them."""
GTHREAD = ("--workers", "3", "--worker-class", "gthread", "--threads", "2")
"""Options of gunicorn for the empty view: those of SRM 0.1 on two cores."""

SETUP_FILE, RULES_FILE, FULL_FILE = "new", "rules", "full"
"""Files of setups, named for their kind of account."""

FORGET_SETUPS = """
DELETE FROM srm.sessions WHERE device_id = 'device-0' AND (account_id LIKE 'new-%' OR account_id LIKE 'rules-%')
"""
"""Leave each of these accounts with three sessions, on its other devices."""

REVIVE = """
UPDATE srm.sessions SET ended_at = NULL, end_reason = NULL WHERE ended_at IS NOT NULL AND account_id LIKE 'live-%'
"""
COUNT = "SELECT count(*) FROM srm.sessions"
FORGET_UPDATES = "SELECT pg_stat_reset_single_table_counters('srm.sessions'::regclass)"
HOT_SHARE = """
SELECT n_tup_hot_upd::float / n_tup_upd FROM pg_stat_user_tables WHERE relid = 'srm.sessions'::regclass
"""


def seed(live_sessions: int) -> str:
    """Return the statements that fill the tables. `live_sessions`: sessions for keep-alives and teardowns."""
    return f"""
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
SELECT 'live-' || n, 'bench' FROM generate_series(1, {live_sessions // 4}) n
UNION ALL SELECT 'new-' || n, 'bench' FROM generate_series(1, {PLAYERS}) n
UNION ALL SELECT 'rules-' || n, 'bench-rules' FROM generate_series(1, {PLAYERS}) n
UNION ALL SELECT 'full-' || n, 'bench-full' FROM generate_series(1, {PLAYERS}) n;
INSERT INTO srm.devices (account_id, device_id, device_group, name)
SELECT account_id, 'device-' || n, 'tv', 'device ' || n FROM srm.accounts, generate_series(0, 3) n;
INSERT INTO srm.entitlements (account_id, product_id) SELECT account_id, 'bench' FROM srm.accounts;
INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds, max_sessions)
SELECT 'live-' || 1 + n / 4, lpad(to_hex(n), 32, '0')::uuid, 'device-' || n % 4, 'COD', 'film', 3600, 1000
FROM generate_series(0, {live_sessions - 1}) n;
INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds, max_sessions)
SELECT 'full-' || n, gen_random_uuid(), 'device-' || s, 'COD', 'film', 3600, 3
FROM generate_series(1, {PLAYERS}) n, generate_series(1, 3) s;
INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds, max_sessions,
                          device_group, content_groups, address)
SELECT account || n, gen_random_uuid(), 'device-' || s, 'COD', 'film', 3600, 1000, 'tv', ARRAY['films'], '192.0.2.1'
FROM unnest(ARRAY['new-', 'rules-']) account, generate_series(1, {PLAYERS}) n, generate_series(1, 3) s;
"""


def setups(kind: str) -> Iterator[Request]:
    """Yield one setup from each account of this kind."""
    body = json.dumps({"content": {"contentID": "film", "contentType": "COD"}})
    for number in range(1, PLAYERS + 1):
        yield "POST", "/srm/v1/sessions", token(f"{kind}-{number}", "device-0"), body


@dataclass
class Loads:
    """Loads on services that use one database, with the files of requests for them."""

    url: str
    folder: Path
    rounds: Rounds
    seconds: int
    """Length of each load."""
    workers: int = gunicorn_conf.workers
    live_sessions: int = LIVE_SESSIONS
    series: Iterator[int] = field(default_factory=lambda: iter(range(1, 1_000)))

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        # The players are spread over the whole table in a database of another size.
        step = 1 if self.live_sessions == LIVE_SESSIONS else self.live_sessions // PLAYERS
        write_requests(self.folder / "keep-alive", on_session("PUT", range(0, PLAYERS * step, step)))
        for kind in (SETUP_FILE, RULES_FILE, FULL_FILE):
            write_requests(self.folder / kind, setups(kind))

    def query(self, sql: str) -> Any:
        """Return the first column of the first row."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(sql).fetchone()
        return row[0] if row else None

    def execute(self, *statements: str) -> None:
        """Execute statements, each in a transaction of its own."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    @contextmanager
    def service(self, application: str, port: int, options: tuple[str, ...] = ()) -> Iterator[Service]:
        """Run an application on the database during the block. Keep-alives fill its caches of tokens first."""
        with gunicorn(application, port, self.url, self.workers, *options) as running:
            result(wrk(port, self.folder / "keep-alive", WARM_UP_SECONDS), "warm-up")
            yield running

    @contextmanager
    def reaper(self) -> Iterator[None]:
        """Run a reaper on the database during the block."""
        with process([sys.executable, "-m", "srm.cli", "reaper"], SRM_DATABASE_URL=self.url):
            yield

    def keep_alives(self, load: str, service: Service, connections: int = CONNECTIONS) -> None:
        """Measure keep-alives with cached tokens, and the processor time of each."""
        cpu_seconds = service.cpu_seconds()
        run = self._run(load, service, "keep-alive", connections=connections)
        run["cpu_us"] = (service.cpu_seconds() - cpu_seconds) / run["requests"] * 1e6
        self.rounds.add(load, run)

    def new_tokens(self, load: str, service: Service, method: str) -> None:
        """Measure keep-alives (PUT) or teardowns (DELETE) whose tokens no worker has seen; revive what has ended."""
        file = self.folder / f"new-tokens-{method}"
        write_requests(file, on_session(method, range(PLAYERS, self.live_sessions), next(self.series)))
        seconds = min(self.seconds, NEW_TOKENS_SECONDS)
        self.rounds.add(load, self._run(load, service, file.name, seconds=seconds))
        self.execute(REVIVE)

    def setups(self, load: str, service: Service, kind: str) -> None:
        """Measure setups by accounts that have three sessions. Exit when one of them is not admitted."""
        self.execute(FORGET_SETUPS)
        before = self.query(COUNT)
        run = self._run(load, service, kind)
        self.rounds.add(load, run)
        admitted = self.query(COUNT) - before
        # A replaced session stays in the table until its retention is over.
        if abs(admitted - run["requests"]) > CONNECTIONS:
            raise SystemExit(f"bench: {load}: {run['requests']} setups answered, {admitted} admitted")

    def refused_setups(self, load: str, service: Service) -> None:
        """Measure setups at the limit. Exit when one of them is admitted."""
        before = self.query(COUNT)
        self.rounds.add(load, self._run(load, service, FULL_FILE))
        if self.query(COUNT) != before:
            raise SystemExit(f"bench: {load}: a setup beyond the limit was admitted")

    def paced(self, load: str, service: Service, file: str, rate: float, connections: int) -> None:
        """Measure requests at a steady rate: each connection waits at random before each request."""
        self.execute(FORGET_SETUPS)
        run = self._run(load, service, file, delay=round(1000 * connections / rate), connections=connections)
        run["reached"] = run["rps"] / rate
        self.rounds.add(load, run)

    def _run(
        self,
        load: str,
        service: Service,
        file: str,
        *,
        seconds: int = 0,
        delay: int = 0,
        connections: int = CONNECTIONS,
    ) -> Run:
        self.execute("VACUUM srm.sessions", "CHECKPOINT")
        run = result(wrk(service.port, self.folder / file, seconds or self.seconds, delay, connections), load)
        run["rps"] = run["requests"] / run["seconds"]
        time.sleep(0.5)  # for requests in progress, and for counters of the server that come late
        return run


def limits_hold(url: str) -> None:
    """Exit when `srm audit` finds more sessions than a limit allows."""
    audit = subprocess.run(
        [sys.executable, "-m", "srm.cli", "audit"],
        env={**os.environ, "SRM_DATABASE_URL": url},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(f"srm audit: {audit.stdout.strip() or audit.stderr.strip()}")
    if audit.returncode != 0:
        raise SystemExit("bench: srm audit found a violation")
