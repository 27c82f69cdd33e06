"""Settings of gunicorn behind nginx: `gunicorn --config deploy/gunicorn.conf.py wsgi:app`.

`srm.serve.gunicorn_conf` has the worker class, the number of processes and the time-outs, and says why. This file adds
settings for a service that runs for months behind a proxy.
"""

from srm.config import load
from srm.serve.gunicorn_conf import *  # noqa: F403

bind = load().bind
"""SRM_BIND; loopback by default. systemd passes a socket that is open already, and this value is ignored."""

max_requests = 1_000_000
max_requests_jitter = 500_000
"""A worker is replaced after a million to 1.5 million requests, so that its memory cannot grow for ever. At 300
requests a second that takes an hour. The jitter keeps workers from being replaced together. A worker drains as on
SIGTERM."""

preload_app = False
"""Each worker loads the application for itself. An application that was loaded before the fork would share locks of
connections, would look for metrics before their folder has a name, and would survive a reload (HUP) unchanged."""
