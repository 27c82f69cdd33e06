"""For a WSGI server: `gunicorn --config python:srm.gunicorn_conf wsgi:app`."""

from srm.app import create_app
from srm.serve import heartbeat

app = create_app()
heartbeat.start(app.extensions["srm.database"])
