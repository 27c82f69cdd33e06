"""Settings of gunicorn for `srm serve`; use them as `gunicorn --config python:srm.gunicorn_conf wsgi:app`.

Each core has one process. The event loop of a process serves all its connections. While one request waits for the
database, the entitlement service or its client, the loop goes on with another. More processes would only compete for
the cores.
"""

import gc
import os
import resource
import shutil
import sys
import tempfile
from itertools import count
from typing import Any, NoReturn

from srm.config import load
from srm.errors import StartupError

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Copy of srm.metrics.FOLDER_VARIABLE. The master must not import srm.metrics: prometheus-client reads the variable on
import, and only then."""

SLOT_VARIABLE = "SRM_METRICS_SLOT"
"""Copy of srm.metrics.SLOT_VARIABLE, which the master must not import either."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folder_in_memory() -> str | None:
    """Return a folder in memory for the metrics; None when TMPDIR is set or there is no such folder.

    prometheus-client writes to mapped files. On a full disk such a write kills the process (mmap(2)).
    """
    shared_memory = "/dev/shm"  # noqa: S108 mkdtemp makes a folder in it with a random name
    return shared_memory if "TMPDIR" not in os.environ and os.access(shared_memory, os.W_OK) else None


worker_class = "srm.serve.worker.Worker"
logger_class = "srm.serve.worker.Logger"
workers = min(CORES, 32)
worker_connections = 5_000  # of one process; further ones wait in the backlog
keepalive = 75  # seconds; longer than in any proxy, so that the proxy closes first
DRAIN_SECONDS = 5
"""Time for which a worker behind a proxy goes on after SIGTERM, for new connections too.

Longer than the proxy keeps an idle connection (3 s in deploy/nginx), and than a load balancer takes to look at /readyz.
Without a proxy the worker stops at once, so that Ctrl-C is quick.
"""
graceful_timeout = 10  # seconds; more than DRAIN_SECONDS and the 3 s of the longest request
timeout = 30
http_parser = "auto"  # in C where the extra `fast` is installed, else in Python
forwarder_headers = ""  # no header may set SCRIPT_NAME: the path would differ from the one that the proxy checked
control_socket_disable = True  # signals control gunicorn


FILES_OF_A_WORKER = 500
"""Open files of a worker beside its clients: connections to the database, metrics, code."""


def on_starting(server: Any) -> None:
    """Check the settings, and make the folder for the metrics. Exit with one line when a setting is wrong.

    Each connection is an open file, so the limit for open files is raised as far as the system allows.

    The folder is always new: numbers of an earlier run, or of the master that this one replaces, do not belong in it.
    """
    checker = os.fork()
    if checker == 0:
        _check_settings()
    _, status = os.waitpid(checker, 0)
    if status:
        sys.exit(os.waitstatus_to_exitcode(status))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = server.cfg.worker_connections + FILES_OF_A_WORKER
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    os.environ[METRICS_VARIABLE] = tempfile.mkdtemp(prefix="srm-metrics-", dir=_folder_in_memory())


def _check_settings() -> NoReturn:
    """Check the settings in a process of its own, and exit.

    A worker makes the standard library cooperative before it imports modules that use it. The check imports such
    modules, so the master must not do it itself: workers would inherit them.
    """
    from srm.clients.tokens import key_from

    try:
        settings = load()
        settings.require_database_url()
        key_from(settings)
    except StartupError as error:
        sys.stderr.write(f"srm: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def pre_fork(server: Any, worker: Any) -> None:
    """Give a new worker the metric files of an ended one. Otherwise each worker would leave files behind."""
    taken = {other.metrics_slot for other in server.WORKERS.values()}
    worker.metrics_slot = next(slot for slot in count(1) if slot not in taken)


def post_fork(_: Any, worker: Any) -> None:
    """Name the worker's metric files, before the worker imports srm.metrics."""
    os.environ[SLOT_VARIABLE] = str(worker.metrics_slot)


def child_exit(_: Any, worker: Any) -> None:
    """Drop the gauges of an ended worker. Its counters stay."""
    from prometheus_client.multiprocess import mark_process_dead  # reads the folder on import

    mark_process_dead(worker.metrics_slot)  # type: ignore[no-untyped-call]


def on_exit(_: Any) -> None:
    """Remove the metrics folder. All workers have ended."""
    shutil.rmtree(os.environ[METRICS_VARIABLE], ignore_errors=True)


def post_worker_init(worker: Any) -> None:
    """Finish a worker that has loaded the application.

    The worker gets its metric and its drain time, and from now on tells the application of a stop. Loaded objects leave
    the garbage collector, which would otherwise scan them in every full run.
    """
    from srm.api import parts, telemetry  # both import prometheus_client, which the master must not do

    worker.observe_wait = telemetry.WAITED.observe
    worker.drain_seconds = DRAIN_SECONDS if load().trusted_proxies else 0
    installed = getattr(worker.wsgi, "extensions", {}).get(parts.KEY)
    if installed is not None:
        worker.announce_stop = installed.draining.set
    gc.collect()
    gc.freeze()
