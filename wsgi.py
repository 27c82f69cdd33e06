"""For a WSGI server: `gunicorn --config python:srm.gunicorn_conf wsgi:app`."""

from srm.app import create_app

app = create_app()
