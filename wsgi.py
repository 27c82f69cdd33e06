"""For a WSGI server: `gunicorn --config python:srm.gunicorn_conf wsgi:app`."""

from srm import availability
from srm.app import create_app

app = create_app()
availability.keep_ticking(app.extensions["srm.database"])
