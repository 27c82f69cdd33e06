"""Settings of gunicorn, as shipped: `gunicorn --config python:srm.gunicorn_conf wsgi:app`.

A request is a little Python around a few statements. One process for each core runs the Python, and one more has
something to do while the others wait for the database or the disk; a second thread of each runs meanwhile. With more
threads they only contend for the interpreter lock, with more processes for the cores (`make bench` shows it, with
`--workers` and `--threads`). A thread worker keeps client connections open, which the plain sync worker cannot.
"""

import gc
import os
import sys
from typing import Any

from srm.config import load
from srm.errors import StartupError
from srm.tokens import key_from

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

worker_class = "srm.gunicorn_worker.Worker"
logger_class = "srm.gunicorn_worker.Logger"
workers = min(CORES + 1, 32)
threads = 2
keepalive = 75  # seconds; longer than the 60 of nginx, so that nginx is the one to hang up
graceful_timeout = 10  # seconds; no request takes longer than a third of it
timeout = 30
http_parser = "fast"
control_socket_disable = True  # signals do


def on_starting(_: Any) -> None:
    """Stop at once, with one line, rather than start workers that cannot work."""
    try:
        settings = load()
        settings.require_database_url()
        key_from(settings)
    except StartupError as error:
        sys.exit(f"srm: {error}")


def post_worker_init(_: Any) -> None:
    """Take what is loaded, once and for all, out of what the garbage collector walks through again and again."""
    gc.collect()
    gc.freeze()
