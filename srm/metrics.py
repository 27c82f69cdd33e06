"""The registry of all metrics, and their text for Prometheus.

Under gunicorn each process keeps its numbers in files of one shared folder, and the process that is asked adds them up.
The environment must name the folder, and the files of the process, before this module is imported. srm.gunicorn_conf
does so. Elsewhere the numbers are in the memory of one process.
"""

import os

from prometheus_client import CollectorRegistry, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Name of the variable; prometheus-client defines it."""

SLOT_VARIABLE = "SRM_METRICS_SLOT"
"""Names the files of this process. A worker that replaces another one continues its files."""

if SLOT_VARIABLE in os.environ:
    SLOT = os.environ[SLOT_VARIABLE]
    values.ValueClass = values.MultiProcessValue(lambda: SLOT)  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
"""Registry of every metric. Metrics that prometheus-client adds by itself are left out: they cannot be added up."""


def expose(*collectors: Collector) -> bytes:
    """Return the numbers of all processes and of the collectors, in the text format of Prometheus."""
    everything = CollectorRegistry()
    if FOLDER_VARIABLE in os.environ:
        MultiProcessCollector(everything)  # type: ignore[no-untyped-call]
    else:
        everything.register(REGISTRY)
    for collector in collectors:
        everything.register(collector)
    return generate_latest(everything)
