"""For a WSGI server: `gunicorn --config python:srm.gunicorn_conf wsgi:app`."""

from srm import ticker
from srm.app import create_app

app = create_app()
ticker.start(app.extensions["srm.database"])
