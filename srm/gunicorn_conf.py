"""Settings of gunicorn under their public name, `python:srm.gunicorn_conf`. Configurations of operators use it."""

from srm.serve.gunicorn_conf import *  # noqa: F403
