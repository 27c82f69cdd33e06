"""What the service counts and measures, for Prometheus.

Under gunicorn each process keeps its numbers in files of a folder that all of them share, and whichever is asked adds
them up. The folder, and the process's slot in it, have to be named in the environment before this module is loaded:
`srm.gunicorn_conf` does. Elsewhere there is one process, and its memory.
"""

import os

from prometheus_client import CollectorRegistry, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Fixed by prometheus-client."""

SLOT_VARIABLE = "SRM_METRICS_SLOT"
"""Names the files of this process. One that takes the place of another goes on with its files."""

if SLOT_VARIABLE in os.environ:
    SLOT = os.environ[SLOT_VARIABLE]
    values.ValueClass = values.MultiProcessValue(lambda: SLOT)  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
"""For every metric: without those that prometheus-client adds by itself, which several processes cannot add up."""


def expose(*collectors: Collector) -> bytes:
    """The numbers of all processes, and what the collectors find, in the text format of Prometheus."""
    everything = CollectorRegistry()
    if FOLDER_VARIABLE in os.environ:
        MultiProcessCollector(everything)  # type: ignore[no-untyped-call]
    else:
        everything.register(REGISTRY)
    for collector in collectors:
        everything.register(collector)
    return generate_latest(everything)
