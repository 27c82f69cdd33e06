"""Marks of `make bench` and `make bench-peer`, and the names of the loads that they compare."""

from bench.rounds import Mark

KEEP_ALIVE = "keep-alive"
NEW_TOKEN = "keep-alive, each with a new token"
SETUP = "setup"
ALL_RULES = "setup by all rules"
REFUSED = "refused setup, with its record"
TEARDOWN = "teardown, each with a new token"

EMPTY_THREADS = "empty Flask view, 3 processes of 2 threads"
EMPTY_SHIPPED = "empty Flask view, shipped worker"
BARE_SHIPPED = "bare WSGI, shipped worker"

CONNECTIONS = (32, 256, 2_000)
AT_CONNECTIONS = {count: f"keep-alive, {count:,} connections" for count in CONNECTIONS}
HALF_KEEP_ALIVE = "keep-alive at half of the highest rate"
HALF_SETUP = "setup at half of the highest rate"
TELEMETRY = "keep-alive with metrics and access log"
NO_TELEMETRY = "keep-alive without metrics and access log"
FEW, MANY = 10_000, 1_000_000
AMONG = {
    (load, count): f"{load} among {count:,} live sessions" for load in (KEEP_ALIVE, SETUP) for count in (FEW, MANY)
}
HOT_DENSE = "keep-alives of neighbouring rows"
HOT_MANY = f"keep-alives spread over {MANY:,} rows"

SERVICE = {
    "rates": (Mark(KEEP_ALIVE, 1.2, of=(EMPTY_THREADS,)),),
    "connections": (
        *(Mark(AT_CONNECTIONS[count], 0.9, of=tuple(AT_CONNECTIONS.values())) for count in CONNECTIONS[1:]),
        Mark(HOT_DENSE, 0.95, "hot_share"),
    ),
    "latency": (
        Mark(HALF_KEEP_ALIVE, 5, "p99_ms", at_most=True),
        Mark(HALF_SETUP, 8, "p99_ms", at_most=True),
        Mark(HALF_KEEP_ALIVE, 0.9, "reached"),
        Mark(HALF_SETUP, 0.9, "reached"),
    ),
    "telemetry": (Mark(TELEMETRY, 1.05, "cpu_us", of=(NO_TELEMETRY,), at_most=True),),
    "sessions": (
        *(Mark(AMONG[load, MANY], 1 / 1.1, of=(AMONG[load, FEW],)) for load in (KEEP_ALIVE, SETUP)),
        Mark(HOT_MANY, 0.95, "hot_share"),
    ),
}
"""Marks of `make bench`, by part."""

SYNC = ("on", "off")
INTERIM = {sync: f"FreeRADIUS interim update, synchronous_commit {sync}" for sync in SYNC}
PAIR = {sync: f"FreeRADIUS access and start, synchronous_commit {sync}" for sync in SYNC}
STOP = {sync: f"FreeRADIUS stop, synchronous_commit {sync}" for sync in SYNC}

PEER = (
    Mark(KEEP_ALIVE, 1.3, of=(INTERIM["on"],)),
    Mark(KEEP_ALIVE, 1.0, of=(INTERIM["off"],)),
    Mark(KEEP_ALIVE, 1.2, of=(EMPTY_THREADS,)),
    Mark(TEARDOWN, 1.0, of=(STOP["on"],)),
    Mark(SETUP, 1.0, of=(PAIR["on"],)),
    Mark(ALL_RULES, 0.9, of=(PAIR["on"],)),
    Mark(REFUSED, 0.9, of=(PAIR["on"],)),
)
"""Marks of `make bench-peer`. SRM's setups and teardowns are durable, as FreeRADIUS' are with synchronous_commit on."""
