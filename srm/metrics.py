"""What the service counts and measures, for Prometheus.

Under gunicorn each process keeps its numbers in files of a folder that all of them share, and whichever is asked adds
them up. The folder has to be named in the environment before this module is loaded: `srm.gunicorn_conf` does. Elsewhere
there is one process, and its memory.
"""

import os

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Fixed by prometheus-client."""

REGISTRY = CollectorRegistry()
"""For every metric: without those that prometheus-client adds by itself, which several processes cannot add up."""


def expose() -> bytes:
    """The numbers of all processes, in the text format of Prometheus."""
    if FOLDER_VARIABLE not in os.environ:
        return generate_latest(REGISTRY)
    of_all = CollectorRegistry()
    MultiProcessCollector(of_all)  # type: ignore[no-untyped-call]
    return generate_latest(of_all)
