"""Settings of gunicorn under the name that operators' configurations use: `python:srm.gunicorn_conf`."""

from srm.serve.gunicorn_conf import *  # noqa: F403
