"""Processes: the supervisor, the configuration and the worker of gunicorn, the heartbeat."""
