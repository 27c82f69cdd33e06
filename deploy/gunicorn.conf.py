"""Gunicorn behind nginx: `gunicorn --config deploy/gunicorn.conf.py wsgi:app`.

Worker class, processes, threads and time-outs are those of `srm serve`; `srm.gunicorn_conf`, which ships with SRM, says
why. Here stands what only a service needs that runs for months and has a proxy in front.
"""

from srm.config import load
from srm.serve.gunicorn_conf import *  # noqa: F403

bind = load().bind
"""SRM_BIND: loopback unless it says otherwise, best a Unix socket. From systemd a socket comes that is open already."""

max_requests = 1_000_000
max_requests_jitter = 500_000
"""A worker is replaced after so many requests, of 300 in a second after an hour, so that nothing grows for ever; not
all at once. It drains as on SIGTERM, and another takes its place."""

preload_app = False
"""Each worker loads the application for itself. Loaded before the fork it would share connections' locks and the
metrics of its parent, whose folder is not named yet, and a reload (HUP) would leave it as it is."""
