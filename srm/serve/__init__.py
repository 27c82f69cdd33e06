"""Processes of the service: the supervisor, gunicorn's settings and worker, the heartbeat."""
