"""Settings of gunicorn, as shipped: `gunicorn --config python:srm.gunicorn_conf wsgi:app`.

A request is a little Python around a few statements. One process for each core runs the Python, and one more has
something to do while the others wait for the database or the disk; a second thread of each runs meanwhile. With more
threads they only contend for the interpreter lock, with more processes for the cores (`make bench` shows it, with
`--workers` and `--threads`). A thread worker keeps client connections open, which the plain sync worker cannot.
"""

import gc
import os
import shutil
import sys
import tempfile
from itertools import count
from typing import Any

from srm.clients.tokens import key_from
from srm.config import ENTITLEMENT_CALLS_AT_ONCE, load
from srm.errors import StartupError

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""As in srm.metrics, which the master must not load: prometheus-client looks at it when it is loaded, not later."""
SLOT_VARIABLE = "SRM_METRICS_SLOT"
"""The same."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folder_in_memory() -> str | None:
    """Where files are not on a disk; None = where TMPDIR says.

    A process that writes to a mapped file, as prometheus-client does, and finds the disk full, is killed (mmap(2)).
    """
    shared_memory = "/dev/shm"  # noqa: S108 nobody else knows the name of the folder in it
    return shared_memory if "TMPDIR" not in os.environ and os.access(shared_memory, os.W_OK) else None


def _threads_of_setups() -> int:
    """Threads that may all wait for the entitlement service, for as long as its time-out, while keep-alives go on."""
    try:
        return ENTITLEMENT_CALLS_AT_ONCE if load().entitlements == "http" else 0
    except StartupError:
        return 0  # the start says it in a moment


worker_class = "srm.serve.worker.Worker"
logger_class = "srm.serve.worker.Logger"
workers = min(CORES + 1, 32)
threads = 2 + _threads_of_setups()
keepalive = 75  # seconds; longer than those of any proxy, so that the proxy is the one to hang up
DRAIN_SECONDS = 5
"""How long a worker behind a proxy goes on after SIGTERM: longer than the proxy keeps an idle connection (nginx as in
deploy/: 3 s), and than a load balancer takes to look at /readyz. Without a proxy nobody waits: Ctrl-C is quick."""
graceful_timeout = 10  # seconds; DRAIN_SECONDS, and no request takes longer than 3 s
timeout = 30
http_parser = "auto"  # the one in C where it is installed (extra `fast`), else the one in Python
forwarder_headers = ""  # no header says SCRIPT_NAME: what a proxy has let pass as one path would be another
control_socket_disable = True  # signals do


def on_starting(_: Any) -> None:
    """Stop at once, with one line, rather than start workers that cannot work; else make them a folder for metrics.

    Always a new one: what an earlier run has counted, or the master that this one takes over from, is not ours.
    """
    try:
        settings = load()
        settings.require_database_url()
        key_from(settings)
    except StartupError as error:
        sys.exit(f"srm: {error}")
    os.environ[METRICS_VARIABLE] = tempfile.mkdtemp(prefix="srm-metrics-", dir=_folder_in_memory())


def pre_fork(server: Any, worker: Any) -> None:
    """Give a worker the files of one that has ended, if any: with files of its own each would leave some behind."""
    taken = {other.metrics_slot for other in server.WORKERS.values()}
    worker.metrics_slot = next(slot for slot in count(1) if slot not in taken)


def post_fork(_: Any, worker: Any) -> None:
    """Tell the worker, before it loads the application."""
    os.environ[SLOT_VARIABLE] = str(worker.metrics_slot)


def child_exit(_: Any, worker: Any) -> None:
    """Forget how a worker is that is no more; what it has counted stays."""
    from prometheus_client.multiprocess import mark_process_dead  # not before the folder is named

    mark_process_dead(worker.metrics_slot)  # type: ignore[no-untyped-call]


def on_exit(_: Any) -> None:
    """Remove the folder; all workers have ended."""
    shutil.rmtree(os.environ[METRICS_VARIABLE], ignore_errors=True)


def post_worker_init(worker: Any) -> None:
    """Tell the worker who counts and how it stops, and the application how many threads it has.

    `--threads` may have changed that. And take what is loaded, once and for all, out of what the garbage collector
    walks through again and again.
    """
    from srm.api import telemetry  # not in the master, as above

    worker.observe_wait = telemetry.WAITED.observe
    worker.drain_seconds = DRAIN_SECONDS if load().trusted_proxies else 0
    service = getattr(worker.wsgi, "extensions", {}).get("srm.entitlement_service")
    if service is not None:
        service.leave_threads(worker.cfg.threads)
    gc.collect()
    gc.freeze()
