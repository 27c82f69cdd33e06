"""WSGI application, for a server such as `gunicorn --config python:srm.gunicorn_conf wsgi:app`."""

from srm.api.parts import parts_of
from srm.app import create_app
from srm.serve import heartbeat

app = create_app()
heartbeat.start(parts_of(app).lanes)
